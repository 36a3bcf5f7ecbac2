//! A few rows of a weight against all vectors: decoded once, into a scratch that stays in cache.

use std::cell::RefCell;

use super::panels::{Panels, COLUMNS};
use crate::dot::{self, Lanes, Rows};
use crate::matrix::HostMatrix;

/// Rows that are decoded together.
pub(crate) const TILE_ROWS: usize = 16;

/// Vectors whose partial sums are kept together; more than these decode the rows again.
pub(crate) const VECTORS: usize = 192;

/// A thread's working memory; it grows to what the largest call needs and stays.
pub(crate) struct Scratch {
    weights: [f32; TILE_ROWS * COLUMNS],
    sums: Vec<Lanes>,
}

/// Lends this thread's scratch, and `len` values of undefined content for results.
///
/// `f` must not ask for it again, nor hand work to other threads.
pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut Scratch, &mut [f32]) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<(Box<Scratch>, Vec<f32>)> = RefCell::new((
            Box::new(Scratch { weights: [0.0; TILE_ROWS * COLUMNS], sums: Vec::new() }),
            Vec::new(),
        ));
    }
    SCRATCH.with_borrow_mut(|(scratch, values)| {
        if values.len() < len {
            values.resize(len, 0.0);
        }
        f(scratch, &mut values[..len])
    })
}

/// `out[x · rows + r] = W[first + r]·xs[x]` for up to [`TILE_ROWS`] rows and any number of vectors.
pub(crate) fn tile(
    w: HostMatrix,
    first: usize,
    rows: usize,
    xs: Panels,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    for (block, out) in out.chunks_mut(VECTORS * rows).enumerate() {
        let vectors = out.len() / rows;
        scratch.sums.clear();
        scratch.sums.resize(rows * vectors, dot::ZERO);
        for (start, xs) in xs.range(block * VECTORS, vectors).iter() {
            let n = xs.len();
            for (r, row) in scratch.weights.chunks_exact_mut(COLUMNS).take(rows).enumerate() {
                w.decode(first + r, start, &mut row[..n]);
            }
            let ws = Rows::new(&scratch.weights, rows, COLUMNS, n);
            dot::accumulate(ws, xs, &mut scratch.sums);
        }
        dot::sums(&scratch.sums, out);
    }
}
