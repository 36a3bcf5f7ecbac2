//! The reference.

use rayon::prelude::*;

use super::NO_ROW;
use crate::dot::{dot_tile, Rows};
use crate::kv::HostRows;

/// Multiply-adds from which on the cores share the work.
const PARALLEL_WORK: usize = 1 << 19;

/// The search of one sequence's tokens.
pub(super) struct Search<'a> {
    pub keys: &'a HostRows<'a>,
    pub heads: usize,
    pub dim: usize,
    pub ratio: usize,
    pub k: usize,
    /// Position of the first token.
    pub start: usize,
}

impl Search<'_> {
    pub(super) fn select(&self, q: &[f32], weights: &[f32], out: &mut [u32]) {
        let Self { heads, dim, k, .. } = *self;
        if k == 0 || heads * dim == 0 {
            return;
        }
        let one = |(token, out): (usize, &mut [u32])| {
            let q = &q[token * heads * dim..(token + 1) * heads * dim];
            let weights = &weights[token * heads..(token + 1) * heads];
            self.select_one((self.start + token + 1) / self.ratio, q, weights, out);
        };
        let tokens = out.len() / k;
        let work = q.len() * ((self.start + tokens) / self.ratio);
        if work < PARALLEL_WORK {
            out.chunks_exact_mut(k).enumerate().for_each(one);
        } else {
            out.par_chunks_exact_mut(k).enumerate().for_each(one);
        }
    }

    fn select_one(&self, visible: usize, q: &[f32], weights: &[f32], out: &mut [u32]) {
        if visible <= self.k {
            for (row, out) in out.iter_mut().enumerate() {
                *out = if row < visible { row as u32 } else { NO_ROW };
            }
            return;
        }
        let mut ranked = self.score(visible, q, weights);
        ranked.select_nth_unstable_by(self.k, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (out, &(_, row)) in out.iter_mut().zip(&ranked) {
            *out = row;
        }
        out.sort_unstable();
    }

    /// Score and index of each visible row.
    fn score(&self, visible: usize, q: &[f32], weights: &[f32]) -> Vec<(f32, u32)> {
        let queries = Rows::new(q, self.heads, self.dim, self.dim);
        let mut runs = Vec::new();
        self.keys.runs(visible, &mut runs);
        let mut ranked = Vec::with_capacity(visible);
        let mut dots = Vec::new();
        for run in runs {
            let count = run.count();
            dots.clear();
            dots.resize(self.heads * count, 0.0);
            dot_tile(run, queries, &mut dots, count);
            for row in 0..count {
                let of_heads = dots[row..].iter().step_by(count);
                let score = of_heads.zip(weights).map(|(&dot, &w)| w * dot.max(0.0)).sum();
                ranked.push((score, ranked.len() as u32));
            }
        }
        ranked
    }
}
