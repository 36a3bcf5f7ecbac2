//! The reference.

/// Rotates the tail of each head of `dim` values in one token's `heads`.
pub(super) fn rotate(heads: &mut [f32], dim: usize, freqs: &[f32], position: u32, sign: f32) {
    let tail = dim - 2 * freqs.len();
    // All heads of a token share their angles.
    for (i, &frequency) in freqs.iter().enumerate() {
        let (sin, cos) = angle(position, frequency);
        let sin = sign * sin;
        for head in heads.chunks_exact_mut(dim) {
            let pair = &mut head[tail + 2 * i..tail + 2 * i + 2];
            let (a, b) = (pair[0], pair[1]);
            pair[0] = a * cos - b * sin;
            pair[1] = a * sin + b * cos;
        }
    }
}

/// Sine and cosine of the *f32* product, taken in f64 and rounded.
fn angle(position: u32, frequency: f32) -> (f32, f32) {
    let angle = f64::from(position as f32 * frequency);
    (angle.sin() as f32, angle.cos() as f32)
}
