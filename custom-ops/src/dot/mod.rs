//! Inner products and weighted sums of f32 slices: the arithmetic under every CPU op.
//!
//! One rule fixes each result to the bit: eight lanes, lane `l` takes the terms `k ≡ l (mod 8)` in
//! ascending `k`, one fused multiply-add each, the last eight padded with zeros; then
//! `s[i] = lane[i] + lane[i + 4]` and `(s[0] + s[2]) + (s[1] + s[3])`. How many products run side by
//! side changes the speed and nothing else, so a token's values do not depend on the batch it came
//! in, on the number of threads, or on the machine having AVX2.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
mod kernel;

/// The partial sums of one inner product.
pub(crate) type Lanes = [f32; 8];

/// Partial sums of nothing.
pub(crate) const ZERO: Lanes = [0.0; 8];

/// Vectors of equal length inside a slice, at a fixed distance, or picked from such by index.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
    start: usize,
    len: usize,
    count: usize,
    ids: Option<&'a [u32]>,
}

impl<'a> Rows<'a> {
    /// `count` vectors of `len` values; vector `i` starts at `data[i * stride]`.
    pub(crate) fn new(data: &'a [f32], count: usize, stride: usize, len: usize) -> Self {
        Self { data, stride, start: 0, len, count, ids: None }
    }

    /// Vector `i` is the `ids[i]`-th of these.
    pub(crate) fn pick(self, ids: &'a [u32]) -> Self {
        Self { ids: Some(ids), count: ids.len(), ..self }
    }

    /// The same vectors, cut to `len` values from `start` on.
    pub(crate) fn columns(self, start: usize, len: usize) -> Self {
        Self { start: self.start + start, len, ..self }
    }

    /// The vectors `first .. first + count` of these.
    pub(crate) fn range(self, first: usize, count: usize) -> Self {
        match self.ids {
            Some(ids) => Self { ids: Some(&ids[first..first + count]), count, ..self },
            None => Self { start: self.start + first * self.stride, count, ..self },
        }
    }

    /// How many vectors.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// How long each vector is.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Vector `i`.
    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> &'a [f32] {
        let i = match self.ids {
            Some(ids) => ids[i] as usize,
            None => i,
        };
        &self.data[self.start + i * self.stride..][..self.len]
    }
}

/// `Σ_k a[k]·b[k]` over the shorter length.
#[cfg(test)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let mut acc = [ZERO];
    accumulate(Rows::new(a, 1, n, n), Rows::new(b, 1, n, n), &mut acc);
    sum(&acc[0])
}

/// `out[x · stride + w] = Σ_k ws[w][k]·xs[x][k]` for every pair: many rows against few vectors.
///
/// Each value is that of its pair alone, bit for bit.
pub(crate) fn dot_tile(ws: Rows, xs: Rows, out: &mut [f32], stride: usize) {
    const ROWS: usize = 16;
    const VECTORS: usize = 12;
    let mut acc = [ZERO; ROWS * VECTORS];
    for first_row in (0..ws.count()).step_by(ROWS) {
        let rows = ROWS.min(ws.count() - first_row);
        let ws = ws.range(first_row, rows);
        for first in (0..xs.count()).step_by(VECTORS) {
            let vectors = VECTORS.min(xs.count() - first);
            let acc = &mut acc[..rows * vectors];
            acc.fill(ZERO);
            accumulate(ws, xs.range(first, vectors), acc);
            for (vector, acc) in acc.chunks_exact(rows).enumerate() {
                sums(acc, &mut out[(first + vector) * stride + first_row..][..rows]);
            }
        }
    }
}

/// `out[i] += Σ_r weights[r]·rows[r][i]`, one fused multiply-add a row, in turn.
///
/// Rows may be added in several calls; `out` is read and written once a call.
pub(crate) fn weighted_sum(out: &mut [f32], weights: &[f32], rows: Rows) {
    assert!(weights.len() == rows.count && out.len() == rows.len, "weighted_sum: lengths differ");
    #[cfg(target_arch = "x86_64")]
    if avx2::available() {
        return avx2::weighted_sum(out, weights, rows);
    }
    kernel::weighted_sum::<kernel::Portable>(out, weights, rows)
}

/// Adds the products of every pair to its partial sums, `acc[x · ws.count() + w]`.
///
/// The vectors may be cut into pieces and added piece by piece; each but the last must be a
/// multiple of 8 long for the sum to follow the rule.
pub(crate) fn accumulate(ws: Rows, xs: Rows, acc: &mut [Lanes]) {
    assert!(ws.len == xs.len && acc.len() == ws.count * xs.count, "accumulate: lengths differ");
    #[cfg(target_arch = "x86_64")]
    if avx2::available() {
        return avx2::accumulate(ws, xs, acc);
    }
    kernel::accumulate::<kernel::Portable>(ws, xs, acc)
}

/// The eight partial sums as one.
#[inline(always)]
pub(crate) fn sum(lanes: &Lanes) -> f32 {
    let s: [f32; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
    (s[0] + s[2]) + (s[1] + s[3])
}

/// [`sum`] of each.
pub(crate) fn sums(lanes: &[Lanes], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if avx2::available() {
        return avx2::sums(lanes, out);
    }
    for (out, lanes) in out.iter_mut().zip(lanes) {
        *out = sum(lanes);
    }
}

#[cfg(test)]
mod tests;
