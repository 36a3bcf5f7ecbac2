//! The reference: rows in the order of their positions, compressed ones last, whatever the cut of
//! the batch, so that every cut gives the same bits.

use std::ops::Range;

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
/// Values of packed rows that are unpacked at a time: the choices of a few tokens of the full model.
const UNPACKED: usize = 1 << 22;

pub(super) enum Picks<'a> {
    Visible { ratio: usize },
    Chosen { ids: &'a [u32], k: usize },
}

/// The compressed rows that some tokens attend to.
enum Source<'a> {
    /// There are none.
    None,
    /// In the pages, all up to a token's last, or those of its choice.
    Pages(&'a HostRows<'a>),
    /// Unpacked, from the first on.
    First(Vec<f32>),
    /// Unpacked, those of these ascending ids.
    Chosen(Vec<u32>, Vec<f32>),
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

/// All sequences of a batch, each with its queries and its output; several cores share them if
/// there are several.
pub(super) fn attend_all(sequences: Vec<(Sequence<'_>, &[f32], &mut [f32])>) -> Result<()> {
    let work: usize = sequences.iter().map(|(sequence, ..)| sequence.work(sequence.span.len)).sum();
    if sequences.len() > 1 && work >= PARALLEL_WORK {
        let mut sequences = sequences;
        sequences.par_iter_mut().try_for_each(|(sequence, q, out)| sequence.attend(q, out))
    } else {
        sequences.into_iter().try_for_each(|(sequence, q, out)| sequence.attend(q, out))
    }
}

impl Sequence<'_> {
    /// Multiply-adds of some of its tokens, but for those with compressed rows.
    fn work(&self, tokens: usize) -> usize {
        2 * self.heads * self.dim * tokens * self.window.min(self.span.end())
    }

    fn attend(&self, q: &[f32], out: &mut [f32]) -> Result<()> {
        let Self { heads, dim, span, .. } = *self;
        if span.len == 0 || heads * dim == 0 {
            return Ok(());
        }
        self.check_choices()?;
        let group = if span.len < 8 { HEADS_PER_TASK.min(heads) } else { heads };
        let groups = heads.div_ceil(group);
        let at_a_time = match &self.compressed {
            Some((rows, Picks::Chosen { k, .. })) if rows.packed() => {
                (UNPACKED / (k * dim).max(1)).max(1)
            }
            _ => span.len,
        };
        for (index, out) in out.chunks_mut(at_a_time * heads * dim).enumerate() {
            let begin = index * at_a_time;
            let tokens = out.len() / (heads * dim);
            let source = self.source(begin..begin + tokens);
            let one = |(task, out): (usize, &mut [f32])| {
                let (token, first) = (begin + task / groups, task % groups * group);
                let at = (token * heads + first) * dim;
                let q = &q[at..at + out.len()];
                self.attend_heads(token, &source, &self.sinks[first..], q, out);
            };
            // A task's heads must not reach into the next token.
            let tasks = out.chunks_mut(heads * dim).flat_map(|token| token.chunks_mut(group * dim));
            if self.work(tokens) < PARALLEL_WORK {
                tasks.enumerate().for_each(one);
            } else {
                let tasks: Vec<_> = tasks.enumerate().collect();
                tasks.into_par_iter().for_each(one);
            }
        }
        Ok(())
    }

    /// The compressed rows of these tokens of the span.
    fn source(&self, tokens: Range<usize>) -> Source<'_> {
        match &self.compressed {
            None => Source::None,
            Some((rows, _)) if !rows.packed() => Source::Pages(rows),
            Some((rows, Picks::Visible { ratio })) => {
                Source::First(rows.unpack_first((self.span.start + tokens.end) / ratio))
            }
            Some((rows, Picks::Chosen { ids, k })) => {
                let mut distinct = ids[tokens.start * k..tokens.end * k].to_vec();
                distinct.sort_unstable();
                distinct.dedup();
                distinct.pop_if(|&mut id| id == NO_ROW);
                let values = rows.unpack(&distinct);
                Source::Chosen(distinct, values)
            }
        }
    }

    /// The choice of a token, of a span that has one.
    fn choice(&self, token: usize) -> &[u32] {
        let Some((_, Picks::Chosen { ids, k })) = &self.compressed else { return &[] };
        let ids = &ids[token * k..(token + 1) * k];
        &ids[..ids.iter().position(|&id| id == NO_ROW).unwrap_or(ids.len())]
    }

    /// Names a choice that points past the rows, before any thread indexes by it.
    fn check_choices(&self) -> Result<()> {
        let Some((rows, Picks::Chosen { ids, k })) = &self.compressed else {
            return Ok(());
        };
        for token in 0..ids.len() / (*k).max(1) {
            if let Some(id) = self.choice(token).iter().find(|&&id| id as usize >= rows.len()) {
                bail!("attention: token {token} chose row {id} of {}", rows.len());
            }
        }
        Ok(())
    }

    /// `q` and `out` hold the heads that `sinks` begins with.
    fn attend_heads(
        &self,
        token: usize,
        source: &Source<'_>,
        sinks: &[f32],
        q: &[f32],
        out: &mut [f32],
    ) {
        let dim = self.dim;
        let heads = q.len() / dim;
        let mut indices = Vec::new();
        let runs = self.rows_of(token, source, &mut indices);
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
    fn rows_of<'s>(
        &'s self,
        token: usize,
        source: &'s Source<'_>,
        indices: &'s mut Vec<u32>,
    ) -> Vec<Rows<'s>> {
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
        let visible = match &self.compressed {
            Some((_, Picks::Visible { ratio })) => Some((position + 1) / ratio),
            _ => None,
        };
        match (source, visible) {
            (Source::None, _) => {}
            (Source::Pages(rows), Some(visible)) => rows.plain(visible, &mut runs),
            (Source::Pages(rows), None) => rows.picks(self.choice(token), indices, &mut runs),
            (Source::First(values), visible) => {
                runs.push(Rows::new(values, visible.unwrap_or(0), dim, dim));
            }
            (Source::Chosen(distinct, values), _) => {
                let mut rest = distinct.iter().zip(0..);
                let of = |id: &u32| rest.find_map(|(have, at)| (have == id).then_some(at));
                indices.extend(self.choice(token).iter().filter_map(of));
                runs.push(Rows::new(values, distinct.len(), dim, dim).pick(indices));
            }
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
