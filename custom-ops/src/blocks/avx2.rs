//! What the AVX2 decoders share.

use std::arch::x86_64::{
    __m128i, __m256, _mm256_storeu_ps, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32,
    _mm_loadl_epi64,
};

/// The IEEE half at this place of a block.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn half_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    let bits = i32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)))
}

/// Eight bytes of a block, in the lower half of a register.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load8<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> __m128i {
    let bytes = &block[at..at + 8];
    // SAFETY: eight readable bytes; the load needs no alignment.
    unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) }
}

/// Writes eight values.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store(out: &mut [f32], at: usize, values: __m256) {
    let out = &mut out[at..at + 8];
    // SAFETY: eight writable f32; the store needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) }
}
