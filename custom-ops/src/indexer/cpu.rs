//! The reference.

use rayon::prelude::*;

use super::NO_ROW;
use crate::dot::{dot_tile, Rows};
use crate::kv::HostRows;

/// Multiply-adds from which on the cores share the work.
const PARALLEL_WORK: usize = 1 << 19;
/// Tokens that share the unpacking of a page at most.
const TILE: usize = 16;

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
        let tokens = out.len() / k;
        // Tokens that look at a page together, so that it is unpacked once for all of them.
        let tile = match self.keys.packed() {
            true => (tokens / rayon::current_num_threads() / 4).clamp(1, TILE),
            false => 1,
        };
        let one = |(index, out): (usize, &mut [u32])| {
            let first = index * tile;
            let end = first + out.len() / k;
            let q = &q[first * heads * dim..end * heads * dim];
            self.select_tile(first, q, &weights[first * heads..end * heads], out);
        };
        let work = q.len() * ((self.start + tokens) / self.ratio);
        if work < PARALLEL_WORK {
            out.chunks_mut(k * tile).enumerate().for_each(one);
        } else {
            out.par_chunks_mut(k * tile).enumerate().for_each(one);
        }
    }

    /// The choices of the tokens from `first` on.
    fn select_tile(&self, first: usize, q: &[f32], weights: &[f32], out: &mut [u32]) {
        let visible = |index: usize| (self.start + first + index + 1) / self.ratio;
        let mut ranked: Vec<_> = out
            .chunks_exact(self.k)
            .enumerate()
            .map(|(index, _)| match visible(index) {
                // All are chosen, whatever their scores.
                few if few <= self.k => Vec::new(),
                many => Vec::with_capacity(many),
            })
            .collect();
        let most = (0..ranked.len()).filter(|&i| visible(i) > self.k).map(visible).max();
        let (mut unpacked, mut dots) = (Vec::new(), Vec::new());
        let mut before = 0;
        for (page, run) in self.keys.runs(most.unwrap_or(0)) {
            let keys = self.keys.page(page, run, &mut unpacked);
            for (index, ranked) in ranked.iter_mut().enumerate() {
                if visible(index) > self.k {
                    let keys = keys.range(0, run.min(visible(index).saturating_sub(before)));
                    let heads = index * self.heads..(index + 1) * self.heads;
                    let q = &q[heads.start * self.dim..heads.end * self.dim];
                    self.score(keys, q, &weights[heads], &mut dots, ranked);
                }
            }
            before += run;
        }
        let tokens = out.chunks_exact_mut(self.k).zip(&mut ranked);
        for (index, (out, ranked)) in tokens.enumerate() {
            self.best(visible(index), ranked, out);
        }
    }

    /// The rows of the highest scores, ascending.
    fn best(&self, visible: usize, ranked: &mut [(f32, u32)], out: &mut [u32]) {
        if visible <= self.k {
            for (row, out) in out.iter_mut().enumerate() {
                *out = if row < visible { row as u32 } else { NO_ROW };
            }
            return;
        }
        ranked.select_nth_unstable_by(self.k, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (out, &(_, row)) in out.iter_mut().zip(&*ranked) {
            *out = row;
        }
        out.sort_unstable();
    }

    /// Adds score and index of each of `keys`, which follow those in `ranked`.
    fn score(
        &self,
        keys: Rows<'_>,
        q: &[f32],
        weights: &[f32],
        dots: &mut Vec<f32>,
        ranked: &mut Vec<(f32, u32)>,
    ) {
        let count = keys.count();
        dots.clear();
        dots.resize(self.heads * count, 0.0);
        dot_tile(keys, Rows::new(q, self.heads, self.dim, self.dim), dots, count);
        for row in 0..count {
            let of_heads = dots[row..].iter().step_by(count);
            let score = of_heads.zip(weights).map(|(&dot, &w)| w * dot.max(0.0)).sum();
            ranked.push((score, ranked.len() as u32));
        }
    }
}
