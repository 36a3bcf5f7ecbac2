//! An output `[tokens, rows]` cut into strips of rows, one thread a strip.

use rayon::prelude::*;

use super::TILE_ROWS;

/// Work below which waking another thread costs more than it brings: some 35 µs of one core.
const SMALL: usize = 1 << 21;

/// What it takes to decode weights and to multiply them with some vectors, in multiply-adds.
pub(crate) fn work(weights: usize, vectors: usize) -> usize {
    // Decoding a weight takes as long as five of its products.
    weights.saturating_mul(vectors + 5)
}

/// Whether this is worth more than one thread.
pub(crate) fn parallel(work: usize) -> bool {
    work >= SMALL && rayon::current_num_threads() > 1
}

/// Calls `f(first_row, slices)` for strips that cover `out`; `slices` holds the strip's part of
/// each token. `work` is that of all strips together.
pub(crate) fn for_each_strip(
    out: &mut [f32],
    rows: usize,
    work: usize,
    f: impl Fn(usize, &mut [&mut [f32]]) + Sync,
) {
    if out.is_empty() {
        return;
    }
    let tokens = out.len() / rows;
    let width = match parallel(work) {
        // A few strips a thread, so that one that is held up does not hold up all.
        true => rows.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(TILE_ROWS),
        false => rows,
    };
    match (tokens, width < rows) {
        (1, false) => f(0, &mut [out]),
        (1, true) => {
            let strips = out.par_chunks_mut(width).enumerate();
            strips.for_each(|(i, strip)| f(i * width, &mut [strip]));
        }
        (_, false) => f(0, &mut out.chunks_exact_mut(rows).collect::<Vec<_>>()),
        (_, true) => {
            let fresh = || Vec::with_capacity(tokens);
            let mut strips: Vec<Vec<&mut [f32]>> =
                std::iter::repeat_with(fresh).take(rows.div_ceil(width)).collect();
            for token in out.chunks_exact_mut(rows) {
                for (strip, part) in strips.iter_mut().zip(token.chunks_mut(width)) {
                    strip.push(part);
                }
            }
            let strips = strips.par_iter_mut().enumerate();
            strips.for_each(|(i, strip)| f(i * width, strip));
        }
    }
}
