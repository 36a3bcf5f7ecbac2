//! The reference, in f32 throughout but for the norm's sum.

use rayon::prelude::*;

use super::MixParams;
use crate::rms_norm::scale as rms_scale;

/// Tokens from which on the cores share the work.
const PARALLEL_TOKENS: usize = 16;

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
    let one = |state: &[f32], raw: &[f32], out: &mut [f32]| {
        let norm = rms_scale(state, params.norm_eps);
        let m = |i: usize, scale: f32| raw[i] * norm * scale + base[i];
        for i in 0..n {
            out[i] = sigmoid(m(i, scale[0])) + params.eps;
            out[n + i] = 2.0 * sigmoid(m(n + i, scale[1]));
        }
        for (i, c) in out[2 * n..].iter_mut().enumerate() {
            *c = m(2 * n + i, scale[2]);
        }
        sinkhorn(&mut out[2 * n..], n, params.sinkhorn_iterations, params.eps);
    };
    let tokens = state.chunks_exact(per_token).zip(raw.chunks_exact(width));
    if out.len() < PARALLEL_TOKENS * width {
        tokens.zip(out.chunks_exact_mut(width)).for_each(|((s, r), o)| one(s, r, o));
    } else {
        let states = state.par_chunks_exact(per_token).zip(raw.par_chunks_exact(width));
        states.zip(out.par_chunks_exact_mut(width)).for_each(|((s, r), o)| one(s, r, o));
    }
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
    let tokens = state.chunks_exact(per_token).zip(raw.chunks_exact(n));
    for ((state, raw), out) in tokens.zip(out.chunks_exact_mut(n)) {
        let norm = rms_scale(state, params.norm_eps);
        for i in 0..n {
            out[i] = sigmoid(raw[i] * norm * scale[0] + base[i]) + params.eps;
        }
    }
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

pub(super) fn collapse(state: &[f32], mix: &[f32], width: usize, hidden: usize, out: &mut [f32]) {
    if hidden == 0 || out.is_empty() {
        return;
    }
    let per_token = state.len() / (out.len() / hidden);
    let tokens = state.chunks_exact(per_token).zip(mix.chunks_exact(width));
    for ((state, mix), out) in tokens.zip(out.chunks_exact_mut(hidden)) {
        out.fill(0.0);
        for (stream, &pre) in state.chunks_exact(hidden).zip(mix) {
            for (out, &s) in out.iter_mut().zip(stream) {
                *out += pre * s;
            }
        }
    }
}

pub(super) fn expand(state: &mut [f32], y: &[f32], mix: &[f32], streams: usize, hidden: usize) {
    let width = (2 + streams) * streams;
    let one = |state: &mut [f32], y: &[f32], mix: &[f32]| {
        let (post, c) = (&mix[streams..2 * streams], &mix[2 * streams..]);
        // Channel by channel, since each new stream needs all old ones.
        let mut old = vec![0f32; streams];
        for (channel, &y) in y.iter().enumerate() {
            for (j, old) in old.iter_mut().enumerate() {
                *old = state[j * hidden + channel];
            }
            for k in 0..streams {
                let mut sum = post[k] * y;
                for (j, &old) in old.iter().enumerate() {
                    sum += c[j * streams + k] * old;
                }
                state[k * hidden + channel] = sum;
            }
        }
    };
    let per_token = streams * hidden;
    if y.len() < PARALLEL_TOKENS * hidden {
        let tokens = state.chunks_exact_mut(per_token).zip(y.chunks_exact(hidden));
        tokens.zip(mix.chunks_exact(width)).for_each(|((s, y), m)| one(s, y, m));
    } else {
        let tokens = state.par_chunks_exact_mut(per_token).zip(y.par_chunks_exact(hidden));
        tokens.zip(mix.par_chunks_exact(width)).for_each(|((s, y), m)| one(s, y, m));
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
