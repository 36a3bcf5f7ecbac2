//! Q2_K, 84 bytes for 256 values: `u8 scales[16]`, `u8 q[64]`, `f16 d`, `f16 dmin`.
//!
//! Value `128h + 32j + 16k + l` (`h`, `k` below 2, `j` below 4, `l` below 16) has the two bits from
//! bit `2j` on of `q[32h + 16k + l]`, and the scale byte `s = scales[8h + 2j + k]`;
//! `x = d·(s & 15)·q − dmin·(s >> 4)`.

use super::half_at;

/// Values in a block.
pub(super) const LEN: usize = 256;
/// Bytes of a block.
pub(super) const BYTES: usize = 84;

pub(super) const QS: usize = 16;
pub(super) const D: usize = 80;
pub(super) const DMIN: usize = 82;

/// Decodes whole blocks.
pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    let (blocks, out) = (bytes.as_chunks().0, out.as_chunks_mut().0);
    #[cfg(target_arch = "x86_64")]
    if crate::dot::avx2::available() {
        // SAFETY: the features were just found to be there.
        return unsafe { avx2::decode(blocks, out) };
    }
    portable(blocks, out)
}

pub(super) fn portable(blocks: &[[u8; BYTES]], out: &mut [[f32; LEN]]) {
    for (block, out) in blocks.iter().zip(out) {
        let (d, dmin) = (half_at(block, D), half_at(block, DMIN));
        for (sixteen, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (h, j, k) = (sixteen / 8, sixteen / 2 % 4, sixteen % 2);
            let scale = d * f32::from(block[sixteen] & 15);
            let min = dmin * f32::from(block[sixteen] >> 4);
            for (out, q) in out.iter_mut().zip(&block[QS + 32 * h + 16 * k..]) {
                *out = scale * f32::from((q >> (2 * j)) & 3) - min;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m128i, __m256, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_fmsub_ps, _mm256_mul_ps,
        _mm256_permutevar_ps, _mm256_set1_ps, _mm256_setr_ps, _mm256_srl_epi32, _mm_and_si128,
        _mm_cvtsi32_si128, _mm_set1_epi8, _mm_srli_epi16,
    };

    use super::super::avx2::{half_at, load8, store};
    use super::{BYTES, D, DMIN, LEN, QS};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn decode(blocks: &[[u8; BYTES]], out: &mut [[f32; LEN]]) {
        // The four values that two bits can mean, in both halves of a register.
        let levels = _mm256_setr_ps(0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0);
        for (block, out) in blocks.iter().zip(out) {
            let d = _mm256_set1_ps(half_at(block, D));
            let dmin = _mm256_set1_ps(half_at(block, DMIN));
            let (mut scales, mut mins) = ([0f32; 16], [0f32; 16]);
            for i in [0, 8] {
                let bytes = load8(block, i);
                let low = _mm_and_si128(bytes, _mm_set1_epi8(15));
                let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), _mm_set1_epi8(15));
                store(&mut scales, i, times(d, low));
                store(&mut mins, i, times(dmin, high));
            }
            for h in 0..2 {
                for k in 0..2 {
                    let at = QS + 32 * h + 16 * k;
                    let q = [0, 8].map(|i| _mm256_cvtepu8_epi32(load8(block, at + i)));
                    for j in 0..4 {
                        let sixteen = 8 * h + 2 * j + k;
                        let (scale, min) = (scales[sixteen], mins[sixteen]);
                        let table =
                            _mm256_fmsub_ps(_mm256_set1_ps(scale), levels, _mm256_set1_ps(min));
                        for (i, q) in q.into_iter().enumerate() {
                            // The look-up minds the lowest two bits only: no mask is needed.
                            let q = _mm256_srl_epi32(q, _mm_cvtsi32_si128(2 * j as i32));
                            store(out, 16 * sixteen + 8 * i, _mm256_permutevar_ps(table, q));
                        }
                    }
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn times(factor: __m256, bytes: __m128i) -> __m256 {
        _mm256_mul_ps(factor, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)))
    }
}
