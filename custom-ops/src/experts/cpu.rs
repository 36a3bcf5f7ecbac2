//! Two passes over strips of rows: gate and up, then down with the sum over experts.

use std::cell::RefCell;

use candle_core::Result;

use super::groups::Groups;
use super::Mlp;
use crate::matmul::{for_each_strip, tile, with_scratch, work, Panels, Scratch, TILE_ROWS};
use crate::matrix::HostMatrix;

/// Who computes what: expert `ids[t, s]`, weighted by `weights[t, s]`.
#[derive(Clone, Copy)]
pub(super) struct Route<'a> {
    pub(super) ids: &'a [u32],
    pub(super) weights: &'a [f32],
    /// Slots of a token.
    pub(super) k: usize,
    /// Experts in the stack.
    pub(super) n: usize,
}

/// The weights of a [`Mlp`], stacks as tall matrices.
pub(super) struct Network<'a> {
    gate: HostMatrix<'a>,
    up: HostMatrix<'a>,
    down: HostMatrix<'a>,
    inter: usize,
}

impl<'a> Network<'a> {
    pub(super) fn new(op: &'static str, mlp: Mlp<'a>) -> Result<Self> {
        let (gate, up, down) = (mlp.gate.host(op)?, mlp.up.host(op)?, mlp.down.host(op)?);
        Ok(Self { gate, up, down, inter: mlp.gate.rows() })
    }
}

/// What a call needs beside its output; kept by the calling thread.
#[derive(Default)]
struct Buffers {
    x: Vec<f32>,
    routed: Activations,
    shared: Activations,
}

/// The inner activations of each pair, in the order of its groups; once more as panels.
#[derive(Default)]
struct Activations {
    groups: Groups,
    values: Vec<f32>,
    copy: Vec<f32>,
}

/// Overwrites `out` `[tokens, hidden]`; the ids are below `route.n`.
pub(super) fn experts(
    x: &[f32],
    hidden: usize,
    route: Route,
    routed: &Network,
    shared: Option<&Network>,
    clamp: f32,
    out: &mut [f32],
) {
    thread_local! {
        static BUFFERS: RefCell<Buffers> = RefCell::default();
    }
    if out.is_empty() {
        return;
    }
    let tokens = out.len() / hidden;
    // Taken out, not borrowed: this thread may run another call while it waits for others.
    let mut buffers = BUFFERS.take();
    let Buffers { x: copy, routed: inner, shared: common } = &mut buffers;
    let xs = Panels::new(x, tokens, hidden, copy);
    inner.groups.sort(route.ids, route.k, route.n);
    let inner = inner.fill(routed, xs, Some(route.weights), clamp);
    let common = shared.map(|shared| {
        common.groups.all(tokens);
        (shared, common.fill(shared, xs, None, clamp))
    });
    let pairs = route.ids.len();
    let work = inner.work(hidden) + common.as_ref().map_or(0, |(_, inner)| inner.work(hidden));
    for_each_strip(out, hidden, work, |first, out| {
        let rows = out.first().map_or(0, |out| out.len());
        let mut done = 0;
        while done < rows {
            let n = TILE_ROWS.min(rows - done);
            with_scratch(2 * (pairs + tokens) * n, |scratch, values| {
                let (terms, values) = values.split_at_mut(pairs * n);
                let (last, product) = values.split_at_mut(tokens * n);
                let strip = Strip { hidden, first: first + done, n };
                inner.down(routed, strip, scratch, product, terms);
                if let Some((shared, common)) = &common {
                    common.down(shared, strip, scratch, product, last);
                }
                for (token, out) in out.iter_mut().enumerate() {
                    let out = &mut out[done..done + n];
                    out.fill(0.0);
                    let slots = &terms[token * route.k * n..(token + 1) * route.k * n];
                    let shared = shared.map(|_| &last[token * n..(token + 1) * n]);
                    for term in slots.chunks_exact(n).chain(shared) {
                        for (out, term) in out.iter_mut().zip(term) {
                            *out += term;
                        }
                    }
                }
            });
            done += n;
        }
    });
    BUFFERS.set(buffers);
}

/// Rows `first .. first + n` of a `down` matrix of `hidden` rows.
#[derive(Clone, Copy)]
struct Strip {
    hidden: usize,
    first: usize,
    n: usize,
}

impl Activations {
    /// `silu(min(W1·x, clamp))·clamp(W3·x)·weight` of each pair.
    fn fill(
        &mut self,
        net: &Network,
        xs: Panels,
        weights: Option<&[f32]>,
        clamp: f32,
    ) -> Inner<'_> {
        let Self { groups, values, copy } = self;
        let (pairs, inter) = (groups.pairs().len(), net.inter);
        let work = groups.iter().map(|(_, pairs)| work(2 * inter * xs.cols(), pairs.len())).sum();
        values.resize(pairs * inter, 0.0);
        for_each_strip(values, inter, work, |first, out| {
            let rows = out.first().map_or(0, |out| out.len());
            for (expert, range) in groups.iter() {
                let xs = xs.pick(&groups.tokens()[range.clone()]);
                let pairs = &groups.pairs()[range.clone()];
                let out = &mut out[range];
                for done in (0..rows).step_by(TILE_ROWS) {
                    let n = TILE_ROWS.min(rows - done);
                    let row = expert * inter + first + done;
                    with_scratch(2 * n * pairs.len(), |scratch, values| {
                        let (gate, up) = values.split_at_mut(n * pairs.len());
                        tile(net.gate, row, n, xs, scratch, gate);
                        tile(net.up, row, n, xs, scratch, up);
                        let gate_up = gate.chunks_exact(n).zip(up.chunks_exact(n));
                        for ((out, &pair), (gate, up)) in out.iter_mut().zip(pairs).zip(gate_up) {
                            let weight = weights.map_or(1.0, |weights| weights[pair as usize]);
                            let out = out[done..done + n].iter_mut();
                            for ((out, &gate), &up) in out.zip(gate).zip(up) {
                                *out = clamped_swiglu(gate, up, clamp) * weight;
                            }
                        }
                    });
                }
            }
        });
        Inner { groups, values: Panels::new(values, pairs, inter, copy) }
    }
}

/// What `down` works on.
struct Inner<'a> {
    groups: &'a Groups,
    values: Panels<'a>,
}

impl Inner<'_> {
    /// What [`Inner::down`] takes for all rows.
    fn work(&self, hidden: usize) -> usize {
        let weights = hidden * self.values.cols();
        self.groups.iter().map(|(_, pairs)| work(weights, pairs.len())).sum()
    }

    /// The products of each pair with some rows of its `down` matrix: `terms[pair, row]`.
    fn down(
        &self,
        net: &Network,
        strip: Strip,
        scratch: &mut Scratch,
        product: &mut [f32],
        terms: &mut [f32],
    ) {
        let Self { groups, values } = self;
        let n = strip.n;
        for (expert, range) in groups.iter() {
            let product = &mut product[..n * range.len()];
            let row = expert * strip.hidden + strip.first;
            let xs = values.range(range.start, range.len());
            tile(net.down, row, n, xs, scratch, product);
            for (&pair, product) in groups.pairs()[range].iter().zip(product.chunks_exact(n)) {
                terms[pair as usize * n..][..n].copy_from_slice(product);
            }
        }
    }
}

/// `silu(min(gate, clamp))·clamp(up)`. A NaN stays one.
fn clamped_swiglu(gate: f32, up: f32, clamp: f32) -> f32 {
    let gate = if gate > clamp { clamp } else { gate };
    gate / (1.0 + (-gate).exp()) * up.clamp(-clamp, clamp)
}
