//! The byte forms of a row, exact for rows that were rounded as the model rounds them.
//!
//! An attention row ([`RowFormat::Fp8`]) of `nope + rope` channels:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | `nope` | E4M3 codes, channel by channel |
//! | `nope` | `2·rope` | BF16, little endian: the channels that carry the position |
//! | `nope + 2·rope` | `nope / block` | scales: byte `b` is `2^(b − 127)`, `105 ≤ b ≤ 246` |
//! | | | zeros up to a multiple of 8 |
//!
//! `block` is 64, or the largest power of two that divides `nope` if that is less. The full model's
//! 448 + 64 channels take 584 bytes.
//!
//! An indexer key ([`RowFormat::Fp4`]) of `width` channels, a power of two:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | `⌈width / 2⌉` | E2M1 codes, the even channel in the low nibble |
//! | | `width / block` | scales, `1 ≤ b ≤ 252`; `block` is 32, or `width` if that is less |
//! | | | zeros up to a multiple of 4 |
//!
//! The full model's 128 channels take 68 bytes.
//!
//! Scales are canonical: of the block's values `y` as they were rounded, `2^⌈log2(max(|y|max, 1e-4) /
//! 448)⌉` and `2^⌈log2(max(|y|max, 6·2^-126) / 6)⌉`. That is the rounding's own scale, or half of it
//! where the largest value was rounded down to the middle of the grid; codes of either are exact.
//! So a row has one byte form, whatever device it was made on.
//!
//! `include/kv.h` says the same for kernels.
#![forbid(unsafe_code)]

use half::bf16;

use crate::rounding::{block_of, fp4_scale, fp8_scale, FP4_BLOCK, FP8_BLOCK};

/// How a row is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowFormat {
    /// As it is computed: where rows are not rounded.
    F32 {
        /// Values in a row.
        width: usize,
    },
    /// A row that attention reads: FP8 with a scale for each block, then BF16.
    Fp8 {
        /// Channels without position: E4M3.
        nope: usize,
        /// Channels that carry the position: BF16.
        rope: usize,
    },
    /// An indexer key: FP4 with a scale for each block.
    Fp4 {
        /// Values in a row.
        width: usize,
    },
}

/// A row that its format cannot hold to the bit: the rounding that should have come before did not,
/// or a value is not finite.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("channel {channel} is {value:e}, which {format:?} cannot hold exactly")]
pub struct NotPackable {
    /// Its first channel that does not fit.
    pub channel: usize,
    /// What is there.
    pub value: f32,
    /// The form it was to take.
    pub format: RowFormat,
}

/// Bytes that are no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} of a packed row is {byte:#04x}, which is no {what}")]
pub struct NotARow {
    /// Where in the row.
    pub at: usize,
    /// What is there.
    pub byte: u8,
    /// What should be.
    pub what: &'static str,
}

impl RowFormat {
    /// Values in a row.
    pub fn width(self) -> usize {
        match self {
            Self::F32 { width } | Self::Fp4 { width } => width,
            Self::Fp8 { nope, rope } => nope + rope,
        }
    }

    /// Bytes of a row.
    pub fn row_bytes(self) -> usize {
        match self {
            Self::F32 { width } => width * 4,
            Self::Fp8 { nope, .. } => (self.scales_at() + nope / self.block()).next_multiple_of(8),
            Self::Fp4 { width } => (self.scales_at() + width / self.block()).next_multiple_of(4),
        }
    }

    /// Values that share a scale.
    pub fn block(self) -> usize {
        match self {
            Self::F32 { .. } => 1,
            Self::Fp8 { nope, .. } => block_of(nope, FP8_BLOCK),
            Self::Fp4 { width } => block_of(width, FP4_BLOCK),
        }
    }

    /// Where the scales begin.
    pub(crate) fn scales_at(self) -> usize {
        match self {
            Self::F32 { width } => width * 4,
            Self::Fp8 { nope, rope } => nope + 2 * rope,
            Self::Fp4 { width } => width.div_ceil(2),
        }
    }

    /// Writes a row's byte form; `row` and `bytes` have the lengths that [`RowFormat::width`] and
    /// [`RowFormat::row_bytes`] say.
    ///
    /// # Errors
    /// If reading it back would give other bits, or a value is not finite.
    pub fn pack(self, row: &[f32], bytes: &mut [u8]) -> Result<(), NotPackable> {
        debug_assert!(row.len() == self.width() && bytes.len() == self.row_bytes());
        let failed = |channel: usize| NotPackable { channel, value: row[channel], format: self };
        let (codes, scales) = bytes.split_at_mut(self.scales_at());
        scales.fill(0);
        match self {
            Self::F32 { .. } => {
                for (channel, (x, out)) in row.iter().zip(codes.as_chunks_mut().0).enumerate() {
                    if !x.is_finite() {
                        return Err(failed(channel));
                    }
                    *out = x.to_le_bytes();
                }
            }
            Self::Fp8 { nope, .. } => {
                let block = self.block();
                let (row, turned) = row.split_at(nope);
                let (codes, bf16s) = codes.split_at_mut(nope);
                let blocks = row.chunks_exact(block).zip(codes.chunks_exact_mut(block));
                for (index, ((row, codes), scale)) in blocks.zip(scales).enumerate() {
                    let s = fp8_scale(row);
                    *scale = exponent(s);
                    for (at, (&x, code)) in row.iter().zip(codes).enumerate() {
                        *code = e4m3_code(x / s);
                        if is_nan_code(*code) || (e4m3(*code) * s).to_bits() != x.to_bits() {
                            return Err(failed(index * block + at));
                        }
                    }
                }
                for (at, (&x, out)) in turned.iter().zip(bf16s.as_chunks_mut().0).enumerate() {
                    if !x.is_finite() || x.to_bits() & 0xffff != 0 {
                        return Err(failed(nope + at));
                    }
                    *out = bf16::from_f32(x).to_le_bytes();
                }
            }
            Self::Fp4 { .. } => {
                let block = self.block();
                codes.fill(0);
                for (index, (row, scale)) in row.chunks_exact(block).zip(scales).enumerate() {
                    let s = fp4_scale(row);
                    *scale = exponent(s);
                    for (at, &x) in row.iter().enumerate() {
                        let channel = index * block + at;
                        let code = e2m1_code(x / s);
                        if !x.is_finite() || (e2m1(code) * s).to_bits() != x.to_bits() {
                            return Err(failed(channel));
                        }
                        codes[channel / 2] |= code << (channel % 2 * 4);
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads a row's byte form, of any bytes of the right length.
    // Inlined so that a caller can have it compiled for more registers than every machine has.
    #[inline(always)]
    pub fn unpack(self, bytes: &[u8], row: &mut [f32]) {
        debug_assert!(row.len() == self.width() && bytes.len() == self.row_bytes());
        let (codes, scales) = bytes.split_at(self.scales_at());
        let block = self.block();
        match self {
            Self::F32 { .. } => {
                for (x, bytes) in row.iter_mut().zip(codes.as_chunks().0) {
                    *x = f32::from_le_bytes(*bytes);
                }
            }
            Self::Fp8 { nope, .. } => {
                let (row, turned) = row.split_at_mut(nope);
                let (codes, bf16s) = codes.split_at(nope);
                let blocks = row.chunks_exact_mut(block).zip(codes.chunks_exact(block));
                for ((row, codes), &scale) in blocks.zip(scales) {
                    let s = power_of_two(scale);
                    for (x, &code) in row.iter_mut().zip(codes) {
                        *x = e4m3(code) * s;
                    }
                }
                for (x, &bytes) in turned.iter_mut().zip(bf16s.as_chunks().0) {
                    *x = f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
                }
            }
            Self::Fp4 { .. } => {
                let blocks = row.chunks_exact_mut(block).zip(codes.chunks_exact(block.div_ceil(2)));
                for ((row, codes), &scale) in blocks.zip(scales) {
                    let s = power_of_two(scale);
                    let (pairs, single) = row.as_chunks_mut::<2>();
                    for ([even, odd], &code) in pairs.iter_mut().zip(codes) {
                        *even = e2m1(code & 15) * s;
                        *odd = e2m1(code >> 4) * s;
                    }
                    for (x, &code) in single.iter_mut().zip(codes) {
                        *x = e2m1(code & 15) * s;
                    }
                }
            }
        }
    }

    /// Whether bytes from outside are a row: codes that are numbers, scales in range, padding zero.
    ///
    /// # Errors
    /// The first byte that is none.
    pub fn check(self, bytes: &[u8]) -> Result<(), NotARow> {
        let bad = |at: usize, what: &'static str| {
            Err(NotARow { at, byte: bytes.get(at).copied().unwrap_or(0), what })
        };
        if bytes.len() != self.row_bytes() {
            return bad(bytes.len(), "whole row");
        }
        let scales_at = self.scales_at();
        let (codes, scales) = bytes.split_at(scales_at);
        // All of a kind are tested at once, so that good rows pass at the speed of memory.
        match self {
            Self::F32 { .. } => {
                let infinite = |x: &[u8; 4]| u32::from_le_bytes(*x) & 0x7f80_0000 == 0x7f80_0000;
                let values = codes.as_chunks().0;
                if values.iter().fold(false, |any, x| any | infinite(x)) {
                    let at = values.iter().position(infinite).unwrap_or(0);
                    return bad(4 * at + 3, "finite number");
                }
            }
            Self::Fp8 { nope, .. } => {
                let (e4m3s, bf16s) = codes.split_at(nope);
                if e4m3s.iter().fold(false, |any, &code| any | is_nan_code(code)) {
                    let at = e4m3s.iter().position(|&code| is_nan_code(code)).unwrap_or(0);
                    return bad(at, "E4M3 number");
                }
                let infinite = |x: &[u8; 2]| u16::from_le_bytes(*x) & 0x7f80 == 0x7f80;
                let bf16s = bf16s.as_chunks().0;
                if bf16s.iter().fold(false, |any, x| any | infinite(x)) {
                    let at = bf16s.iter().position(infinite).unwrap_or(0);
                    return bad(nope + 2 * at + 1, "finite number");
                }
            }
            Self::Fp4 { .. } => {}
        }
        // Scales that the rounding can give: no code overflows with any of them.
        let (count, range) = match self {
            Self::F32 { .. } => (0, 0..=0),
            Self::Fp8 { nope, .. } => (nope / self.block(), 105..=246),
            Self::Fp4 { width } => (width / self.block(), 1..=252),
        };
        for (index, &byte) in scales.iter().enumerate() {
            match index < count {
                true if !range.contains(&byte) => return bad(scales_at + index, "scale"),
                false if byte != 0 => return bad(scales_at + index, "padding"),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Value of one of the sixteen E2M1 codes: sums and shifts, where a table would stop the compiler
/// from doing eight at a time.
#[inline(always)]
fn e2m1(code: u8) -> f32 {
    let code = u32::from(code);
    // Twice the value of each magnitude, four bits each.
    let twice = 0xc864_3210u32 >> (4 * (code & 7)) & 15;
    f32::from_bits((twice as i32 as f32 * 0.5).to_bits() | (code & 8) << 28)
}

/// Value of an E4M3 code; for the two that are no number some other number.
#[inline(always)]
fn e4m3(code: u8) -> f32 {
    let code = u32::from(code);
    // The exponent's bias goes from 7 to 127 by the product, subnormal codes included.
    f32::from_bits((code & 0x80) << 24 | (code & 0x7f) << 20) * TWO_POW_120
}

const TWO_POW_120: f32 = f32::from_bits((127 + 120) << 23);

/// A scale from its byte.
#[inline(always)]
fn power_of_two(byte: u8) -> f32 {
    f32::from_bits(u32::from(byte) << 23)
}

/// The byte of a scale.
fn exponent(scale: f32) -> u8 {
    (scale.to_bits() >> 23) as u8
}

fn is_nan_code(code: u8) -> bool {
    code & 0x7f == 0x7f
}

/// The code of an E4M3 number; of anything else a code whose value is another.
fn e4m3_code(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24 & 0x80) as u8;
    let a = x.abs();
    let magnitude = if a < 1.0 / 64.0 {
        (a * 512.0) as u8
    } else {
        // The exponent's bias goes from 127 to 7; what is too large becomes no number.
        ((a.to_bits() - (120 << 23)) >> 20).min(0x7f) as u8
    };
    sign | magnitude
}

/// The code of an E2M1 number; of anything else a code whose value is another.
fn e2m1_code(x: f32) -> u8 {
    let sign = (x.to_bits() >> 28 & 8) as u8;
    let a = x.abs();
    let magnitude = match a {
        _ if a < 2.0 => (a * 2.0) as u8,
        _ if a < 4.0 => (a + 2.0) as u8,
        _ if a < 6.0 => 6,
        _ => 7,
    };
    sign | magnitude
}

#[cfg(test)]
mod tests;
