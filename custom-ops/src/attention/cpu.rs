//! The reference: rows in the order of their positions, compressed ones last, whatever the cut of
//! the batch, so that every cut gives the same bits.

use candle_core::{bail, Result};
use rayon::prelude::*;

use crate::dot::{dot_tile, weighted_sum, Rows};
use crate::kv::HostRows;
use crate::ragged::Span;
use crate::NO_ROW;

/// Multiply-adds from which on the cores share the work.
const PARALLEL_WORK: usize = 1 << 19;
/// Heads of a task when there are fewer tokens than make the cores busy.
const HEADS_PER_TASK: usize = 8;

pub(super) enum Picks<'a> {
    Visible { ratio: usize },
    Chosen { ids: &'a [u32], k: usize },
}

/// One sequence of the batch.
pub(super) struct Sequence<'a> {
    pub span: Span,
    pub kv: &'a [f32],
    pub past: &'a [f32],
    pub slots: usize,
    pub window: usize,
    pub compressed: Option<(&'a HostRows<'a>, Picks<'a>)>,
    pub sinks: &'a [f32],
    pub scale: f32,
    pub heads: usize,
    pub dim: usize,
}

impl Sequence<'_> {
    pub(super) fn attend(&self, q: &[f32], out: &mut [f32]) -> Result<()> {
        let Self { heads, dim, span, .. } = *self;
        if span.len == 0 || heads * dim == 0 {
            return Ok(());
        }
        self.check_choices()?;
        let group = if span.len < 8 { HEADS_PER_TASK.min(heads) } else { heads };
        let groups = heads.div_ceil(group);
        let one = |(task, out): (usize, &mut [f32])| {
            let (token, first) = (task / groups, task % groups * group);
            let at = (token * heads + first) * dim;
            self.attend_heads(token, &self.sinks[first..], &q[at..at + out.len()], out);
        };
        // A task's heads must not reach into the next token.
        let tasks = out.chunks_mut(heads * dim).flat_map(|token| token.chunks_mut(group * dim));
        let work = 2 * heads * dim * span.len * self.window.min(span.end());
        if work < PARALLEL_WORK {
            tasks.enumerate().for_each(one);
        } else {
            let tasks: Vec<_> = tasks.enumerate().collect();
            tasks.into_par_iter().for_each(one);
        }
        Ok(())
    }

    /// Names a choice that points past the rows, before any thread indexes by it.
    fn check_choices(&self) -> Result<()> {
        let Some((rows, Picks::Chosen { ids, k })) = &self.compressed else {
            return Ok(());
        };
        for (token, ids) in ids.chunks_exact((*k).max(1)).enumerate() {
            let ids = &ids[..ids.iter().position(|&id| id == NO_ROW).unwrap_or(ids.len())];
            if let Some(id) = ids.iter().find(|&&id| id as usize >= rows.len()) {
                bail!("attention: token {token} chose row {id} of {}", rows.len());
            }
        }
        Ok(())
    }

    /// `q` and `out` hold the heads that `sinks` begins with.
    fn attend_heads(&self, token: usize, sinks: &[f32], q: &[f32], out: &mut [f32]) {
        let dim = self.dim;
        let heads = q.len() / dim;
        let mut in_page = Vec::new();
        let runs = self.rows_of(token, &mut in_page);
        let count: usize = runs.iter().map(Rows::count).sum();

        let queries = Rows::new(q, heads, dim, dim);
        let mut scores = vec![0f32; heads * count];
        let mut first = 0;
        for &run in &runs {
            dot_tile(run, queries, &mut scores[first..], count);
            first += run.count();
        }
        out.fill(0.0);
        for (head, out) in out.chunks_exact_mut(dim).enumerate() {
            let weights = &mut scores[head * count..(head + 1) * count];
            let sum = soften(weights, self.scale, sinks[head]);
            let mut rest = &*weights;
            for &run in &runs {
                let (of_run, after) = rest.split_at(run.count());
                weighted_sum(out, of_run, run);
                rest = after;
            }
            out.iter_mut().for_each(|x| *x /= sum);
        }
    }

    /// The rows that a token attends to, in runs.
    fn rows_of<'s>(&'s self, token: usize, in_page: &'s mut Vec<u32>) -> Vec<Rows<'s>> {
        let Self { span, dim, .. } = *self;
        let position = span.start + token;
        let mut runs = Vec::new();
        let from = (position + 1).saturating_sub(self.window);
        // Before the batch: at most two stretches of the ring.
        let mut at = from;
        while at < span.start {
            let slot = at % self.slots;
            let run = (self.slots - slot).min(span.start - at);
            runs.push(Rows::new(&self.past[slot * dim..], run, dim, dim));
            at += run;
        }
        let first = at - span.start;
        runs.push(Rows::new(&self.kv[first * dim..], token + 1 - first, dim, dim));
        match &self.compressed {
            Some((rows, Picks::Visible { ratio })) => {
                rows.runs((position + 1) / ratio, &mut runs);
            }
            Some((rows, Picks::Chosen { ids, k })) => {
                let ids = &ids[token * k..(token + 1) * k];
                let ids = &ids[..ids.iter().position(|&id| id == NO_ROW).unwrap_or(ids.len())];
                rows.picks(ids, in_page, &mut runs);
            }
            None => {}
        }
        runs
    }
}

/// Turns scores into weights; returns the sum to divide by, the sink's share included.
fn soften(scores: &mut [f32], scale: f32, sink: f32) -> f32 {
    let mut max = sink;
    for score in scores.iter_mut() {
        *score *= scale;
        max = max.max(*score);
    }
    let mut sum = (sink - max).exp();
    for score in scores {
        *score = (*score - max).exp();
        sum += *score;
    }
    sum
}
