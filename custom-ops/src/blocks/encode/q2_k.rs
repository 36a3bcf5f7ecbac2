//! Q2_K: sixteen groups of 16, four levels, multiples up to 15.

use super::super::q2_k::{BYTES, D, DMIN, LEN, QS};
use super::affine::{self, Steps};
use super::Encode;

pub(super) struct Q2K;

impl Encode<BYTES> for Q2K {
    #[inline(always)]
    fn encode(x: &[f32; LEN], w: &[f32; LEN], out: &mut [u8; BYTES]) {
        let groups = |v: &[f32; LEN]| -> [[f32; 16]; 16] {
            std::array::from_fn(|g| std::array::from_fn(|i| v[16 * g + i]))
        };
        let steps = Steps { levels: 3.0, multiples: 15.0 };
        let fit = affine::encode(&groups(x), &groups(w), &steps);
        out[D..D + 2].copy_from_slice(&fit.d);
        out[DMIN..DMIN + 2].copy_from_slice(&fit.dmin);
        out[QS..D].fill(0);
        for (g, q) in fit.q.iter().enumerate() {
            out[g] = fit.scales[g] | fit.mins[g] << 4;
            let (h, j, k) = (g / 8, g / 2 % 4, g % 2);
            for (out, q) in out[QS + 32 * h + 16 * k..].iter_mut().zip(q) {
                *out |= q << (2 * j);
            }
        }
    }
}
