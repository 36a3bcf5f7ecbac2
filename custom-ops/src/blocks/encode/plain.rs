//! F32, F16 and BF16: round to nearest, ties to even.

use half::{bf16, f16};

#[inline(always)]
pub(super) fn encode_f32(row: &[f32], out: &mut [u8]) {
    for (out, x) in out.as_chunks_mut().0.iter_mut().zip(row) {
        *out = x.to_le_bytes();
    }
}

#[inline(always)]
pub(super) fn encode_f16(row: &[f32], out: &mut [u8]) {
    for (out, x) in out.as_chunks_mut().0.iter_mut().zip(row) {
        *out = f16::from_f32(*x).to_le_bytes();
    }
}

#[inline(always)]
pub(super) fn encode_bf16(row: &[f32], out: &mut [u8]) {
    for (out, x) in out.as_chunks_mut().0.iter_mut().zip(row) {
        *out = bf16::from_f32(*x).to_le_bytes();
    }
}
