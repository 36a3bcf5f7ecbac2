//! Q8_0, 34 bytes for 32 values: `f16 d`, `i8 q[32]`; `x = d·q`.

use super::half_at;

/// Values in a block.
pub(super) const LEN: usize = 32;
/// Bytes of a block.
pub(super) const BYTES: usize = 34;

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
        let d = half_at(block, 0);
        for (out, &q) in out.iter_mut().zip(&block[2..]) {
            *out = d * f32::from(q as i8);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        _mm256_cvtepi32_ps, _mm256_cvtepi8_epi32, _mm256_mul_ps, _mm256_set1_ps,
    };

    use super::super::avx2::{half_at, load8, store};
    use super::{BYTES, LEN};

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn decode(blocks: &[[u8; BYTES]], out: &mut [[f32; LEN]]) {
        for (block, out) in blocks.iter().zip(out) {
            let d = _mm256_set1_ps(half_at(block, 0));
            for i in (0..LEN).step_by(8) {
                let q = _mm256_cvtepi8_epi32(load8(block, 2 + i));
                store(out, i, _mm256_mul_ps(d, _mm256_cvtepi32_ps(q)));
            }
        }
    }
}
