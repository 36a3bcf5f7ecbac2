//! Q4_K: eight groups of 32, sixteen levels, multiples up to 63.

use super::super::q4_k::{BYTES, D, DMIN, LEN, QS, SCALES};
use super::affine::{self, Steps};
use super::Encode;

pub(super) struct Q4K;

impl Encode<BYTES> for Q4K {
    #[inline(always)]
    fn encode(x: &[f32; LEN], w: &[f32; LEN], out: &mut [u8; BYTES]) {
        let groups = |v: &[f32; LEN]| -> [[f32; 32]; 8] {
            std::array::from_fn(|g| std::array::from_fn(|i| v[32 * g + i]))
        };
        let steps = Steps { levels: 15.0, multiples: 63.0 };
        let fit = affine::encode(&groups(x), &groups(w), &steps);
        out[D..D + 2].copy_from_slice(&fit.d);
        out[DMIN..DMIN + 2].copy_from_slice(&fit.dmin);
        for j in 0..4 {
            // Groups 4 to 7 keep their low four bits together, the others lend them their top two.
            let (scale, min) = (fit.scales[j + 4], fit.mins[j + 4]);
            out[SCALES + j] = fit.scales[j] | scale >> 4 << 6;
            out[SCALES + 4 + j] = fit.mins[j] | min >> 4 << 6;
            out[SCALES + 8 + j] = (scale & 15) | (min & 15) << 4;
        }
        let (pairs, _) = fit.q.as_chunks::<2>();
        for ([even, odd], out) in pairs.iter().zip(out[QS..].as_chunks_mut::<32>().0) {
            for (out, (even, odd)) in out.iter_mut().zip(even.iter().zip(odd)) {
                *out = even | odd << 4;
            }
        }
    }
}
