//! Q8_0: the largest value of a block becomes ±127.

use super::super::q8_0::{BYTES, LEN};
use super::half;

#[inline(always)]
pub(super) fn encode(row: &[f32], out: &mut [u8]) {
    let (row, out) = (row.as_chunks::<LEN>().0, out.as_chunks_mut::<BYTES>().0);
    for (x, out) in row.iter().zip(out) {
        let largest = x.iter().fold(0f32, |most, x| most.max(x.abs()));
        let d = largest / 127.0;
        let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
        out[..2].copy_from_slice(&half(d).0);
        for (q, x) in out[2..].iter_mut().zip(x) {
            // Halves go away from zero, as ggml has them: the bytes are the same.
            *q = (x * inverse).round() as i8 as u8;
        }
    }
}
