//! The loops, written once for any vector type of eight lanes.

use super::{Lanes, Rows, ZERO};

/// Eight f32 in a register, or in whatever the compiler makes of an array.
pub(super) trait Vector: Copy {
    fn load(values: &Lanes) -> Self;
    fn store(self, values: &mut Lanes);
    fn splat(value: f32) -> Self;
    /// `self + a·b`, rounded once.
    fn fma(self, a: Self, b: Self) -> Self;
}

/// The twin of a vector register on any machine.
#[derive(Clone, Copy)]
pub(super) struct Portable(Lanes);

impl Vector for Portable {
    #[inline(always)]
    fn load(values: &Lanes) -> Self {
        Self(*values)
    }

    #[inline(always)]
    fn store(self, values: &mut Lanes) {
        *values = self.0;
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], self.0[i])))
    }
}

/// See [`super::accumulate`]. Tiles of rows × vectors whose partial sums fit in 12 registers.
#[inline(always)]
pub(super) fn accumulate<V: Vector>(ws: Rows, xs: Rows, acc: &mut [Lanes]) {
    let mut x = 0;
    while x < xs.count {
        x += match xs.count - x {
            1 => vectors::<V, 8, 1>(ws, xs, x, acc),
            // Two pairs rather than three and a single one.
            2 | 4 => vectors::<V, 4, 2>(ws, xs, x, acc),
            _ => vectors::<V, 4, 3>(ws, xs, x, acc),
        };
    }
    if !ws.len.is_multiple_of(8) {
        tails::<V>(ws, xs, acc);
    }
}

/// All rows, `R` at a time, with `X` vectors, but for tails below eight; returns `X`.
#[inline(always)]
fn vectors<V: Vector, const R: usize, const X: usize>(
    ws: Rows,
    xs: Rows,
    first: usize,
    acc: &mut [Lanes],
) -> usize {
    let mut x: [&[Lanes]; X] = [&[]; X];
    for (j, x) in x.iter_mut().enumerate() {
        *x = xs.row(first + j).as_chunks().0;
    }
    let acc = &mut acc[first * ws.count..][..X * ws.count];
    let mut w = 0;
    while w < ws.count {
        w += match ws.count - w {
            left if left >= R => tile::<V, R, X>(ws, w, x, acc),
            4.. => tile::<V, 4, X>(ws, w, x, acc),
            _ => tile::<V, 1, X>(ws, w, x, acc),
        };
    }
    X
}

/// `R` rows with `X` vectors; returns `R`.
#[inline(always)]
fn tile<V: Vector, const R: usize, const X: usize>(
    ws: Rows,
    first: usize,
    x: [&[Lanes]; X],
    acc: &mut [Lanes],
) -> usize {
    let mut w: [&[Lanes]; R] = [&[]; R];
    let mut sums = [[V::splat(0.0); X]; R];
    for r in 0..R {
        w[r] = ws.row(first + r).as_chunks().0;
        for j in 0..X {
            sums[r][j] = V::load(&acc[j * ws.count + first + r]);
        }
    }
    let n = w.iter().chain(&x).fold(ws.len / 8, |n, v| n.min(v.len()));
    for i in 0..n {
        let mut x_i = [V::splat(0.0); X];
        for j in 0..X {
            // SAFETY: `i` is below the length of each of these slices.
            x_i[j] = V::load(unsafe { x[j].get_unchecked(i) });
        }
        for r in 0..R {
            // SAFETY: as above.
            let w_i = V::load(unsafe { w[r].get_unchecked(i) });
            for j in 0..X {
                sums[r][j] = sums[r][j].fma(w_i, x_i[j]);
            }
        }
    }
    for r in 0..R {
        for j in 0..X {
            sums[r][j].store(&mut acc[j * ws.count + first + r]);
        }
    }
    R
}

/// Adds the products of what is left after the last eight, as eights padded with zeros.
#[inline(always)]
fn tails<V: Vector>(ws: Rows, xs: Rows, acc: &mut [Lanes]) {
    let done = ws.len / 8 * 8;
    for (x, acc) in acc.chunks_exact_mut(ws.count.max(1)).enumerate() {
        let x = V::load(&padded(&xs.row(x)[done..]));
        for (w, acc) in acc.iter_mut().enumerate() {
            let w = V::load(&padded(&ws.row(w)[done..]));
            V::load(acc).fma(w, x).store(acc);
        }
    }
}

fn padded(values: &[f32]) -> Lanes {
    let mut lanes = ZERO;
    lanes[..values.len()].copy_from_slice(values);
    lanes
}

/// See [`super::weighted_sum`]. A stretch of the output stays in registers while the rows pass.
#[inline(always)]
pub(super) fn weighted_sum<V: Vector>(out: &mut [f32], weights: &[f32], rows: Rows) {
    const WIDE: usize = 8;
    let (chunks, tail) = out.as_chunks_mut::<8>();
    let done = chunks.len() * 8;
    let (wide, narrow) = chunks.as_chunks_mut::<WIDE>();
    let wide_len = wide.len() * WIDE * 8;
    for (i, out) in wide.iter_mut().enumerate() {
        stretch::<V, WIDE>(out, weights, rows.columns(i * WIDE * 8, WIDE * 8));
    }
    for (i, out) in narrow.iter_mut().enumerate() {
        stretch::<V, 1>(std::array::from_mut(out), weights, rows.columns(wide_len + i * 8, 8));
    }
    for (r, &weight) in weights.iter().enumerate() {
        for (out, &x) in tail.iter_mut().zip(&rows.row(r)[done..]) {
            *out = weight.mul_add(x, *out);
        }
    }
}

#[inline(always)]
fn stretch<V: Vector, const N: usize>(out: &mut [Lanes; N], weights: &[f32], rows: Rows) {
    let mut sums = [V::splat(0.0); N];
    for i in 0..N {
        sums[i] = V::load(&out[i]);
    }
    for (r, &weight) in weights.iter().enumerate() {
        let weight = V::splat(weight);
        if let Some(row) = rows.row(r).as_chunks::<8>().0.first_chunk::<N>() {
            for i in 0..N {
                sums[i] = sums[i].fma(weight, V::load(&row[i]));
            }
        }
    }
    for i in 0..N {
        sums[i].store(&mut out[i]);
    }
}
