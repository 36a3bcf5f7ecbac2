//! From values to blocks: each encoder minimises `Σ w·(x − x̂)²` over what its format can say.
//!
//! The weight of a column is how much an error there hurts: the mean square of what the matrix is
//! multiplied with, as an importance matrix has it, or 1. The searches use no fused multiplication,
//! so that every machine writes the same bytes.

mod affine;
mod iq2_xxs;
mod plain;
mod q2_k;
mod q4_k;
mod q8_0;

use candle_core::{bail, Result};

use super::Format;

/// Encodes `row` into the blocks `out`.
pub(super) fn encode(
    format: Format,
    row: &[f32],
    weights: Option<&[f32]>,
    out: &mut [u8],
) -> Result<()> {
    let wanted = format.row_bytes(row.len())?;
    if out.len() != wanted {
        bail!("{format}: {} values take {wanted} bytes, got room for {}", row.len(), out.len());
    }
    let most = largest(format);
    if let Some(at) = row.iter().position(|x| !x.is_finite() || x.abs() > most) {
        bail!("{format}: value {at} is {}, must be finite and at most {most}", row[at]);
    }
    if let Some(weights) = weights {
        if weights.len() != row.len() {
            bail!("{format}: {} weights for {} values", weights.len(), row.len());
        }
        if let Some(at) = weights.iter().position(|w| !w.is_finite() || *w < 0.0) {
            bail!("{format}: weight {at} is {}, must be finite and not negative", weights[at]);
        }
    }
    #[cfg(target_arch = "x86_64")]
    if crate::dot::avx2::available() {
        // SAFETY: the feature was just found to be there.
        unsafe { with_avx2(format, row, weights, out) };
        return Ok(());
    }
    blocks(format, row, weights, out);
    Ok(())
}

/// The largest magnitude that the format can hold without an infinite scale.
fn largest(format: Format) -> f32 {
    match format {
        Format::F32 | Format::BF16 => f32::MAX,
        Format::F16 => 65_504.0,
        // The scale is an IEEE half that a search may move by a few percent.
        Format::Q8_0 | Format::Q2K | Format::Q4K | Format::Iq2Xxs => 30_000.0,
    }
}

/// The same code, compiled for wider registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn with_avx2(format: Format, row: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    blocks(format, row, weights, out)
}

#[inline(always)]
pub(super) fn blocks(format: Format, row: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    match format {
        Format::F32 => plain::encode_f32(row, out),
        Format::F16 => plain::encode_f16(row, out),
        Format::BF16 => plain::encode_bf16(row, out),
        Format::Q8_0 => q8_0::encode(row, out),
        Format::Q2K => weighted::<q2_k::Q2K, _>(row, weights, out),
        Format::Q4K => weighted::<q4_k::Q4K, _>(row, weights, out),
        Format::Iq2Xxs => weighted::<iq2_xxs::Iq2Xxs, _>(row, weights, out),
    }
}

/// An encoder of blocks of 256 values. A trait, because a function that is passed as a value would be
/// compiled on its own, without the wide registers.
trait Encode<const BYTES: usize> {
    /// Encodes values with their weights.
    fn encode(x: &[f32; 256], w: &[f32; 256], out: &mut [u8; BYTES]);
}

/// Hands each block of 256 values with its weights, scaled to a mean of one, to an encoder.
///
/// Weights of a whole block that sum to nothing say nothing about it: they count as ones.
#[inline(always)]
fn weighted<E: Encode<BYTES>, const BYTES: usize>(
    row: &[f32],
    weights: Option<&[f32]>,
    out: &mut [u8],
) {
    let ones = [1f32; 256];
    let (row, out) = (row.as_chunks::<256>().0, out.as_chunks_mut::<BYTES>().0);
    for (i, (x, out)) in row.iter().zip(out).enumerate() {
        let given = weights.and_then(|weights| weights.as_chunks::<256>().0.get(i));
        let scaled = given.and_then(|given| {
            let mean = given.iter().map(|w| f64::from(*w)).sum::<f64>() / 256.0;
            // A column that never saw an input still has to come out near its value.
            let scale = |w: f32| (f64::from(w) / mean) as f32 + 1e-5;
            (mean > 0.0).then(|| given.map(scale))
        });
        E::encode(x, scaled.as_ref().unwrap_or(&ones), out);
    }
}

/// An IEEE half, as bytes and as the value that a decoder will read.
#[inline(always)]
fn half(value: f32) -> ([u8; 2], f32) {
    let half = half::f16::from_f32(value);
    (half.to_le_bytes(), half.to_f32())
}

#[cfg(test)]
mod tests;
