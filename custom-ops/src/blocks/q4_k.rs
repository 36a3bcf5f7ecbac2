//! Q4_K, 144 bytes for 256 values: `f16 d`, `f16 dmin`, `u8 s[12]`, `u8 q[128]`.
//!
//! Eight groups of 32. Group `j < 4` has scale `s[j] & 63` and minimum `s[j + 4] & 63`; group
//! `j ≥ 4` has the low nibble of `s[j + 4]` under the top two bits of `s[j − 4]` as its scale, and
//! the high nibble under the top two bits of `s[j]` as its minimum. Value `l` of group `j` is the
//! low (even `j`) or high (odd `j`) nibble of `q[32·(j / 2) + l]`; `x = d·scale·q − dmin·minimum`.

use super::half_at;

/// Values in a block.
pub(super) const LEN: usize = 256;
/// Bytes of a block.
pub(super) const BYTES: usize = 144;

pub(super) const D: usize = 0;
pub(super) const DMIN: usize = 2;
pub(super) const SCALES: usize = 4;
pub(super) const QS: usize = 16;

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
        for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_and_min(block, j);
            let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
            for (out, q) in out.iter_mut().zip(&block[QS + 32 * (j / 2)..]) {
                *out = scale * f32::from((q >> (4 * (j % 2))) & 15) - min;
            }
        }
    }
}

/// The six-bit scale and minimum of group `j`.
#[inline(always)]
fn scale_and_min(block: &[u8; BYTES], j: usize) -> (u8, u8) {
    let s = &block[SCALES..QS];
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        ((s[j + 4] & 15) | (s[j - 4] >> 6 << 4), (s[j + 4] >> 4) | (s[j] >> 6 << 4))
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_fmsub_ps,
        _mm256_set1_epi32, _mm256_set1_ps, _mm256_srli_epi32,
    };

    use super::super::avx2::{half_at, load8, store};
    use super::{scale_and_min, BYTES, D, DMIN, LEN, QS};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn decode(blocks: &[[u8; BYTES]], out: &mut [[f32; LEN]]) {
        let nibble = _mm256_set1_epi32(15);
        for (block, out) in blocks.iter().zip(out) {
            let (d, dmin) = (half_at(block, D), half_at(block, DMIN));
            for pair in 0..4 {
                let [even, odd] = [2 * pair, 2 * pair + 1].map(|j| {
                    let (scale, min) = scale_and_min(block, j);
                    (d * f32::from(scale), dmin * f32::from(min))
                });
                for i in (0..32).step_by(8) {
                    let q = _mm256_cvtepu8_epi32(load8(block, QS + 32 * pair + i));
                    let low = _mm256_cvtepi32_ps(_mm256_and_si256(q, nibble));
                    let high = _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(q));
                    for (at, q, (scale, min)) in [(0, low, even), (32, high, odd)] {
                        let x = _mm256_fmsub_ps(_mm256_set1_ps(scale), q, _mm256_set1_ps(min));
                        store(out, 64 * pair + at + i, x);
                    }
                }
            }
        }
    }
}
