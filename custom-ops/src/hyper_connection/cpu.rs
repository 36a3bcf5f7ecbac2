//! The reference, in f32 throughout but for the norm's sum.

use super::MixParams;
use crate::device::for_each_row;
use crate::rms_norm::scale as rms_scale;

pub(super) fn mix(
    state: &[f32],
    raw: &[f32],
    scale: &[f32],
    base: &[f32],
    per_token: usize,
    params: &MixParams,
    out: &mut [f32],
) {
    let n = params.streams;
    let width = params.width();
    for_each_row(out, width, |token, out| {
        let norm = rms_scale(&state[token * per_token..(token + 1) * per_token], params.norm_eps);
        let raw = &raw[token * width..(token + 1) * width];
        let m = |i: usize, scale: f32| raw[i] * norm * scale + base[i];
        for i in 0..n {
            out[i] = sigmoid(m(i, scale[0])) + params.eps;
            out[n + i] = 2.0 * sigmoid(m(n + i, scale[1]));
        }
        for (i, c) in out[2 * n..].iter_mut().enumerate() {
            *c = m(2 * n + i, scale[2]);
        }
        sinkhorn(&mut out[2 * n..], n, params.sinkhorn_iterations, params.eps);
    });
}

pub(super) fn head_mix(
    state: &[f32],
    raw: &[f32],
    scale: &[f32],
    base: &[f32],
    per_token: usize,
    params: &MixParams,
    out: &mut [f32],
) {
    let n = params.streams;
    for_each_row(out, n, |token, out| {
        let norm = rms_scale(&state[token * per_token..(token + 1) * per_token], params.norm_eps);
        for (i, out) in out.iter_mut().enumerate() {
            *out = sigmoid(raw[token * n + i] * norm * scale[0] + base[i]) + params.eps;
        }
    });
}

/// Softmax of each row, then rows and columns in turn towards sums of one; columns last.
fn sinkhorn(c: &mut [f32], n: usize, iterations: usize, eps: f32) {
    for row in c.chunks_exact_mut(n) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|x| *x = (*x - max).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|x| *x = *x / sum + eps);
    }
    normalize_columns(c, n, eps);
    for _ in 1..iterations {
        for row in c.chunks_exact_mut(n) {
            let sum = row.iter().sum::<f32>() + eps;
            row.iter_mut().for_each(|x| *x /= sum);
        }
        normalize_columns(c, n, eps);
    }
}

fn normalize_columns(c: &mut [f32], n: usize, eps: f32) {
    for k in 0..n {
        let sum = c[k..].iter().step_by(n).sum::<f32>() + eps;
        c[k..].iter_mut().step_by(n).for_each(|x| *x /= sum);
    }
}

pub(super) fn collapse(
    state: &[f32],
    mix: &[f32],
    streams: usize,
    width: usize,
    hidden: usize,
    out: &mut [f32],
) {
    for_each_row(out, hidden, |token, out| {
        let state = &state[token * streams * hidden..(token + 1) * streams * hidden];
        out.fill(0.0);
        for (stream, &pre) in state.chunks_exact(hidden).zip(&mix[token * width..]) {
            for (out, &s) in out.iter_mut().zip(stream) {
                *out += pre * s;
            }
        }
    });
}

pub(super) fn expand(state: &mut [f32], y: &[f32], mix: &[f32], streams: usize, hidden: usize) {
    /// Channels treated at once: all their old streams are needed for each new one.
    const CHANNELS: usize = 64;
    let width = (2 + streams) * streams;
    for_each_row(state, streams * hidden, |token, state| {
        let y = &y[token * hidden..(token + 1) * hidden];
        let mix = &mix[token * width..(token + 1) * width];
        let (post, c) = (&mix[streams..2 * streams], &mix[2 * streams..]);
        let mut new = vec![0f32; streams * CHANNELS];
        for first in (0..hidden).step_by(CHANNELS) {
            let channels = first..(first + CHANNELS).min(hidden);
            for (k, new) in new.chunks_exact_mut(CHANNELS).enumerate() {
                for (new, &y) in new.iter_mut().zip(&y[channels.clone()]) {
                    *new = post[k] * y;
                }
                for j in 0..streams {
                    let weight = c[j * streams + k];
                    let old = &state[j * hidden..][channels.clone()];
                    for (new, &old) in new.iter_mut().zip(old) {
                        *new += weight * old;
                    }
                }
            }
            for (k, new) in new.chunks_exact(CHANNELS).enumerate() {
                let count = channels.len();
                state[k * hidden..][channels.clone()].copy_from_slice(&new[..count]);
            }
        }
    });
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
