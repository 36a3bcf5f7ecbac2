//! The same work on every row of a slice.

use rayon::prelude::*;

/// Values from which on the cores share the work: below, waking them costs more.
const WORTH_SHARING: usize = 1 << 15;

/// Calls `f(index, row)` for each run of `width` values; on all cores if there are many values.
pub(crate) fn for_each_row(
    values: &mut [f32],
    width: usize,
    f: impl Fn(usize, &mut [f32]) + Sync + Send,
) {
    if width == 0 {
        return;
    }
    if values.len() < WORTH_SHARING {
        values.chunks_exact_mut(width).enumerate().for_each(|(index, row)| f(index, row));
    } else {
        values.par_chunks_exact_mut(width).enumerate().for_each(|(index, row)| f(index, row));
    }
}
