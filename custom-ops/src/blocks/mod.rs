//! Quantised block formats: how a run of weights lies in bytes, and what values it stands for.
//!
//! Every row of a tensor is a whole number of blocks. Decoding is defined to the bit: the products
//! fit an f32 exactly, so at most one rounding (the subtraction of Q2_K and Q4_K) is left, and the
//! AVX2 decoders agree with the portable ones and with any other correct decoder.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod encode;
mod iq2_xxs;
mod plain;
mod q2_k;
mod q4_k;
mod q8_0;

use candle_core::{bail, Result};

/// A block format of ggml.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single, 4 bytes a value.
    F32,
    /// IEEE half, 2 bytes a value.
    F16,
    /// The upper half of an IEEE single, 2 bytes a value.
    BF16,
    /// 8-bit integers with one scale for 32: 8.5 bits a value.
    Q8_0,
    /// 2-bit integers, a 4-bit scale and minimum for 16: 2.625 bits a value.
    Q2K,
    /// 4-bit integers, a 6-bit scale and minimum for 32: 4.5 bits a value.
    Q4K,
    /// 8 values out of a table of 256, with signs and a 4-bit scale for 32: 2.0625 bits a value.
    Iq2Xxs,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 7] =
        [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q2K, Self::Q4K, Self::Iq2Xxs];

    /// The name that ggml and GGUF tools print.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q4K => "Q4_K",
            Self::Iq2Xxs => "IQ2_XXS",
        }
    }

    /// What kernels are called by.
    #[cfg(metal_kernels)]
    pub(crate) fn kernel_name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q2K => "q2_k",
            Self::Q4K => "q4_k",
            Self::Iq2Xxs => "iq2_xxs",
        }
    }

    /// Values in a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 => q8_0::LEN,
            Self::Q2K => q2_k::LEN,
            Self::Q4K => q4_k::LEN,
            Self::Iq2Xxs => iq2_xxs::LEN,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => q8_0::BYTES,
            Self::Q2K => q2_k::BYTES,
            Self::Q4K => q4_k::BYTES,
            Self::Iq2Xxs => iq2_xxs::BYTES,
        }
    }

    /// Bytes of a row of `cols` values.
    ///
    /// # Errors
    /// If `cols` is not a whole number of blocks, or the product does not fit a `usize`.
    pub fn row_bytes(self, cols: usize) -> Result<usize> {
        let (name, len) = (self.name(), self.block_len());
        if !cols.is_multiple_of(len) {
            bail!("{name}: a row of {cols} values is not a whole number of blocks of {len}");
        }
        match (cols / len).checked_mul(self.block_bytes()) {
            Some(bytes) => Ok(bytes),
            None => bail!("{name}: a row of {cols} values has more bytes than memory"),
        }
    }

    /// Decodes the blocks in `bytes` into `out`.
    ///
    /// # Errors
    /// If `bytes` does not hold exactly the blocks of `out.len()` values.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        let wanted = self.row_bytes(out.len())?;
        if bytes.len() != wanted {
            let (name, len) = (self.name(), bytes.len());
            bail!("{name}: {} values lie in {wanted} bytes, got {len}", out.len());
        }
        self.decode_blocks(bytes, out);
        Ok(())
    }

    /// Encodes whole blocks of `row` into `out`, as close to it as the format can come: with `weights`,
    /// one for each value, an error counts by its weight, without, all count alike.
    ///
    /// A row may be encoded in pieces of whole blocks. The bytes are the same on every machine.
    ///
    /// # Errors
    /// If `out` is not exactly the room of `row`'s blocks, a value is not finite or too large for the
    /// format, or the weights are not one finite number from zero up for each value.
    pub fn encode(self, row: &[f32], weights: Option<&[f32]>, out: &mut [u8]) -> Result<()> {
        encode::encode(self, row, weights, out)
    }

    /// [`Format::decode`] of what is known to be whole blocks.
    pub(crate) fn decode_blocks(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => plain::decode_f32(bytes, out),
            Self::F16 => plain::decode_f16(bytes, out),
            Self::BF16 => plain::decode_bf16(bytes, out),
            Self::Q8_0 => q8_0::decode(bytes, out),
            Self::Q2K => q2_k::decode(bytes, out),
            Self::Q4K => q4_k::decode(bytes, out),
            Self::Iq2Xxs => iq2_xxs::decode(bytes, out),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The IEEE half at this place of a block.
#[inline(always)]
fn half_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The codes of IQ2_XXS's grid, to compare other copies with.
#[cfg(all(test, metal_kernels))]
pub(crate) fn iq2_xxs_codes() -> &'static [u16; 256] {
    &iq2_xxs::CODES
}

#[cfg(test)]
pub(crate) mod random;
#[cfg(test)]
mod tests;
