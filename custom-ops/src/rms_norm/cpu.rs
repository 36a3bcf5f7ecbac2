//! The reference: sums in f64, in a fixed order.

use crate::device::for_each_row;

/// Normalises each row of `n` values of `x`.
pub(super) fn rms_norm(x: &mut [f32], weight: Option<&[f32]>, eps: f64, n: usize) {
    for_each_row(x, n, |_, x| {
        let scale = scale(x, eps);
        match weight {
            Some(weight) => {
                for (x, &w) in x.iter_mut().zip(weight) {
                    *x = *x * scale * w;
                }
            }
            None => x.iter_mut().for_each(|x| *x *= scale),
        }
    });
}

/// `1 / sqrt(mean(x²) + eps)` of one row.
pub(crate) fn scale(x: &[f32], eps: f64) -> f32 {
    // Four sums, so that the additions do not wait for each other.
    let mut sums = [0f64; 4];
    let mut quads = x.chunks_exact(4);
    for quad in &mut quads {
        for (sum, &v) in sums.iter_mut().zip(quad) {
            *sum += f64::from(v) * f64::from(v);
        }
    }
    let rest: f64 = quads.remainder().iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    let sum = (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest;
    (1.0 / (sum / x.len() as f64 + eps).sqrt()) as f32
}
