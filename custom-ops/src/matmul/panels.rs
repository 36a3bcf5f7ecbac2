//! Activations laid out for the tiles: columns that are used together lie together.

use rayon::prelude::*;

use crate::dot::Rows;

/// Columns that are multiplied together: the decoded rows of a tile then fill half of a
/// first-level cache.
pub(crate) const COLUMNS: usize = 256;

/// Values that are copied by more than one thread.
const LARGE: usize = 1 << 20;

/// Vectors of which [`COLUMNS`] columns lie together, panel after panel.
///
/// In rows of a power of two, as activations are, the same columns of many vectors would fall on
/// few lines of a cache. A single vector needs no copy.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    data: &'a [f32],
    /// Vectors in a panel.
    count: usize,
    /// The first column of this part, and how many it has.
    start: usize,
    cols: usize,
    picked: Picked<'a>,
}

#[derive(Clone, Copy)]
enum Picked<'a> {
    Range(usize, usize),
    Ids(&'a [u32]),
}

impl<'a> Panels<'a> {
    /// Lays out vectors of some parts of `cols` columns each, `x` `[count, parts · cols]`, in
    /// `copy`; gives the first part.
    pub(crate) fn new(x: &'a [f32], count: usize, cols: usize, copy: &'a mut Vec<f32>) -> Self {
        let data = if count <= 1 || cols == 0 {
            x
        } else {
            if copy.len() < x.len() {
                copy.resize(x.len(), 0.0);
            }
            let copy = &mut copy[..x.len()];
            let width = x.len() / count;
            for (i, part) in copy.chunks_mut(cols * count).enumerate() {
                let lay = |(j, panel): (usize, &mut [f32])| {
                    let start = i * cols + j * COLUMNS;
                    let n = panel.len() / count;
                    for (panel, x) in panel.chunks_exact_mut(n).zip(x.chunks_exact(width)) {
                        panel.copy_from_slice(&x[start..start + n]);
                    }
                };
                if part.len() >= LARGE {
                    part.par_chunks_mut(COLUMNS * count).enumerate().for_each(lay);
                } else {
                    part.chunks_mut(COLUMNS * count).enumerate().for_each(lay);
                }
            }
            copy
        };
        Self { data, count, start: 0, cols, picked: Picked::Range(0, count) }
    }

    /// The same vectors of another part.
    pub(crate) fn part(self, part: usize) -> Self {
        Self { start: part * self.cols, ..self }
    }

    /// Vector `i` is the `ids[i]`-th of all.
    pub(crate) fn pick(self, ids: &'a [u32]) -> Self {
        Self { picked: Picked::Ids(ids), ..self }
    }

    /// The vectors `first .. first + count` of these.
    pub(crate) fn range(self, first: usize, count: usize) -> Self {
        let picked = match self.picked {
            Picked::Range(start, _) => Picked::Range(start + first, count),
            Picked::Ids(ids) => Picked::Ids(&ids[first..first + count]),
        };
        Self { picked, ..self }
    }

    /// Columns of a vector.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The first column of each panel, and the panel.
    pub(crate) fn iter(self) -> impl Iterator<Item = (usize, Rows<'a>)> {
        (0..self.cols).step_by(COLUMNS).map(move |start| {
            let n = COLUMNS.min(self.cols - start);
            let panel = &self.data[(self.start + start) * self.count..][..n * self.count];
            let panel = Rows::new(panel, self.count, n, n);
            match self.picked {
                Picked::Range(first, count) => (start, panel.range(first, count)),
                Picked::Ids(ids) => (start, panel.pick(ids)),
            }
        })
    }
}
