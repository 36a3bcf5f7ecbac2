//! The reference.

use super::Pooling;
use crate::ragged::Span;

/// The projections of one sequence's tokens: those of the batch, and those remembered.
pub(super) struct Tokens<'a> {
    pub values: &'a [f32],
    pub gates: &'a [f32],
    pub past_values: &'a [f32],
    pub past_gates: &'a [f32],
    pub slots: usize,
    pub width: usize,
    pub span: Span,
}

impl<'a> Tokens<'a> {
    /// Value and gate rows of the token at `position`.
    fn at(&self, position: usize) -> (&'a [f32], &'a [f32]) {
        let width = self.width;
        if position >= self.span.start {
            let at = (self.span.row + position - self.span.start) * width;
            (&self.values[at..at + width], &self.gates[at..at + width])
        } else {
            let at = position % self.slots * width;
            (&self.past_values[at..at + width], &self.past_gates[at..at + width])
        }
    }
}

/// Values, gates and bias of one token, cut to the half that a row pools.
type Slot<'a> = (&'a [f32], &'a [f32], &'a [f32]);

/// Pools every window that ends in the span into the front of `out`; returns what is left of it.
pub(super) fn pool<'o>(
    tokens: &Tokens<'_>,
    ape: &[f32],
    pooling: Pooling,
    mut out: &'o mut [f32],
) -> &'o mut [f32] {
    let Pooling { ratio, overlap } = pooling;
    let width = tokens.width;
    let dim = if overlap { width / 2 } else { width };
    let slot = |position: usize, half: usize| -> Slot<'_> {
        let (values, gates) = tokens.at(position);
        let bias = &ape[position % ratio * width..][..width];
        let part = half * dim..(half + 1) * dim;
        (&values[part.clone()], &gates[part.clone()], &bias[part])
    };
    let mut slots = Vec::with_capacity(pooling.reach());
    for window in tokens.span.windows(ratio) {
        slots.clear();
        if overlap && window > 0 {
            slots.extend(((window - 1) * ratio..window * ratio).map(|p| slot(p, 0)));
        }
        slots.extend((window * ratio..(window + 1) * ratio).map(|p| slot(p, usize::from(overlap))));
        let (row, rest) = out.split_at_mut(dim);
        pool_window(&slots, row);
        out = rest;
    }
    out
}

fn pool_window(slots: &[Slot<'_>], out: &mut [f32]) {
    let dim = out.len();
    let mut max = vec![f32::NEG_INFINITY; dim];
    for (_, gates, bias) in slots {
        for ((max, gate), bias) in max.iter_mut().zip(*gates).zip(*bias) {
            *max = max.max(gate + bias);
        }
    }
    let mut sum = vec![0f32; dim];
    out.fill(0.0);
    for (values, gates, bias) in slots {
        for (c, (out, sum)) in out.iter_mut().zip(&mut sum).enumerate() {
            let weight = (gates[c] + bias[c] - max[c]).exp();
            *sum += weight;
            *out += weight * values[c];
        }
    }
    for (out, sum) in out.iter_mut().zip(sum) {
        *out /= sum;
    }
}
