//! The same loops on AVX2 registers.

use std::arch::x86_64::{
    __m128, __m256, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm_add_ps, _mm_movehl_ps, _mm_movelh_ps,
    _mm_storeu_ps, _mm_unpackhi_ps, _mm_unpacklo_ps,
};

use super::kernel::{self, Vector};
use super::{Lanes, Rows};

/// Whether this machine has AVX2 with fused multiply-add and half conversion.
#[inline]
pub(crate) fn available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// Adds the products of every pair; see [`super::accumulate`].
pub(super) fn accumulate(ws: Rows, xs: Rows, acc: &mut [Lanes]) {
    #[target_feature(enable = "avx2,fma")]
    fn run(ws: Rows, xs: Rows, acc: &mut [Lanes]) {
        kernel::accumulate::<Register>(ws, xs, acc)
    }
    assert!(available());
    // SAFETY: the features were just found to be there.
    unsafe { run(ws, xs, acc) }
}

/// Adds weighted rows; see [`super::weighted_sum`].
pub(super) fn weighted_sum(out: &mut [f32], weights: &[f32], rows: Rows) {
    #[target_feature(enable = "avx2,fma")]
    fn run(out: &mut [f32], weights: &[f32], rows: Rows) {
        kernel::weighted_sum::<Register>(out, weights, rows)
    }
    assert!(available());
    // SAFETY: the features were just found to be there.
    unsafe { run(out, weights, rows) }
}

/// Sums lanes, four at a time; see [`super::sums`].
pub(super) fn sums(lanes: &[Lanes], out: &mut [f32]) {
    #[target_feature(enable = "avx2,fma")]
    fn run(lanes: &[Lanes], out: &mut [f32]) {
        let (fours, rest) = lanes.as_chunks::<4>();
        let (out_fours, out_rest) = out.as_chunks_mut::<4>();
        for ([a, b, c, d], out) in fours.iter().zip(out_fours) {
            let (a, b, c, d) = (halves(a), halves(b), halves(c), halves(d));
            // In the lower half the sums s[0] + s[2] of two of them, in the upper s[1] + s[3].
            let ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
            let cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
            let sums = _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
            // SAFETY: four writable f32; the store needs no alignment.
            unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
        }
        for (out, lanes) in out_rest.iter_mut().zip(rest) {
            *out = super::sum(lanes);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn halves(lanes: &Lanes) -> __m128 {
        let Register(lanes) = Register::load(lanes);
        _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes))
    }
    assert!(available());
    // SAFETY: the features were just found to be there.
    unsafe { run(lanes, out) }
}

/// Private to this module, whose entry points run it only where [`available`] holds.
#[derive(Clone, Copy)]
struct Register(__m256);

impl Vector for Register {
    #[inline(always)]
    fn load(values: &Lanes) -> Self {
        // SAFETY: eight readable f32; unaligned loads are allowed; the features are there.
        Self(unsafe { _mm256_loadu_ps(values.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, values: &mut Lanes) {
        // SAFETY: eight writable f32; unaligned stores are allowed; the features are there.
        unsafe { _mm256_storeu_ps(values.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: the features are there.
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: the features are there.
        Self(unsafe { _mm256_fmadd_ps(a.0, b.0, self.0) })
    }
}
