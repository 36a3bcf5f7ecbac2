//! Strips of rows in parallel; few rows and many tokens: blocks of tokens in parallel.

use std::cell::Cell;

use rayon::prelude::*;

use super::panels::Panels;
use super::strips::{for_each_strip, parallel, work};
use super::tile::{tile, with_scratch, TILE_ROWS, VECTORS};
use crate::matrix::HostMatrix;

/// Activations that are laid out at a time: what a core's share of the caches holds.
const BLOCK_VALUES: usize = 1 << 20;

/// Of the weight; the activations are `groups · cols` wide.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) groups: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// Overwrites `out` `[tokens, rows]`.
pub(super) fn matmul(x: &[f32], w: HostMatrix, shape: Shape, out: &mut [f32]) {
    let Shape { groups, rows, cols } = shape;
    if out.is_empty() {
        return;
    }
    let (tokens, width) = (out.len() / rows, groups * cols);
    let threads = rayon::current_num_threads();
    let few_rows = rows < 4 * TILE_ROWS * threads && tokens >= 8 * threads;
    let by_tokens = few_rows && parallel(work(rows * cols, tokens));
    let largest = (BLOCK_VALUES / width.max(1)).clamp(12, VECTORS);
    let parts = if by_tokens { threads } else { 1 };
    let block = tokens.div_ceil(tokens.div_ceil(largest).next_multiple_of(parts));
    let block = block.next_multiple_of(3);
    let run = |(i, out): (usize, &mut [f32])| {
        let n = out.len() / rows;
        let x = &x[i * block * width..][..n * width];
        let mut copy = COPY.take();
        let xs = Panels::new(x, n, cols, &mut copy);
        if by_tokens {
            let mut out: Vec<&mut [f32]> = out.chunks_exact_mut(rows).collect();
            strip(xs, w, shape, 0, &mut out);
        } else {
            for_each_strip(out, rows, work(rows * cols, n), |first, out| {
                strip(xs, w, shape, first, out)
            });
        }
        COPY.set(copy);
    };
    if by_tokens {
        out.par_chunks_mut(block * rows).enumerate().for_each(run);
    } else {
        out.chunks_mut(block * rows).enumerate().for_each(run);
    }
}

thread_local! {
    /// The activations of a block of tokens as panels; taken out while in use, for a thread may
    /// start on another product while it waits for its strips.
    static COPY: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Rows from `first` on, as many as each token's slice of `out` is long.
fn strip(xs: Panels, w: HostMatrix, shape: Shape, first: usize, out: &mut [&mut [f32]]) {
    let rank = shape.rows / shape.groups;
    let rows = out.first().map_or(0, |out| out.len());
    with_scratch(out.len() * TILE_ROWS, |scratch, values| {
        let mut done = 0;
        while done < rows {
            // A tile stays within one group.
            let row = first + done;
            let group = row / rank;
            let n = TILE_ROWS.min(rows - done).min((group + 1) * rank - row);
            let values = &mut values[..out.len() * n];
            tile(w, row, n, xs.part(group), scratch, values);
            for (out, values) in out.iter_mut().zip(values.chunks_exact(n)) {
                out[done..done + n].copy_from_slice(values);
            }
            done += n;
        }
    })
}
