//! The lightning indexer: which compressed rows are worth attending to.

mod cpu;
#[cfg(cuda_kernels)]
mod cuda;
#[cfg(metal_kernels)]
mod metal;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
#[cfg(cuda_kernels)]
use crate::device::cuda::{Gpu, Target};
use crate::device::{host, host_mut, timed, Workspace};
use crate::kv::{HostRows, Rows};
use crate::ragged::{check_ratio, Ragged};
use crate::{RopeTable, Rounding, Turn};

/// Ends a list of chosen rows that is shorter than its place.
pub const NO_ROW: u32 = u32::MAX;

/// The `k` visible rows with the highest `score_w = Σ_h weight_h · relu(q_h · key_w)`, ascending by
/// row; all of them if no more than `k` are visible. Ties go to the lower row.
///
/// Shapes: `q` `[tokens, heads, dim]` f32 · `weights` `[tokens, heads]` f32 · `keys` one list of
/// rows for each sequence; at position `p` the first `⌊(p+1)/ratio⌋` are visible → `[tokens, k]`
/// u32, ended early by [`NO_ROW`].
/// Errors: shapes that do not fit; a ratio of 0; keys missing that should be visible.
/// Source: DeepSeek V3.2's and V4's sparse attention.
///
/// On NVIDIA GPUs queries and keys of 128 values are multiplied as halves, which hold what was rounded
/// to FP4 exactly; the order of a score's sum differs from the CPU's.
pub fn select_rows(
    q: &Tensor,
    weights: &Tensor,
    keys: &[&Rows],
    ratio: usize,
    k: usize,
    batch: &Ragged,
    ws: &Workspace,
) -> Result<Tensor> {
    select(q, None, weights, keys, ratio, k, batch, ws)
}

/// [`select_rows`] by raw queries: they are turned to their positions, then rounded, first.
///
/// Shapes and errors: as [`select_rows`], [`rope`](crate::rope()) and [`Rounding::apply`]. `q` may be changed.
/// Source: as [`select_rows`].
#[allow(clippy::too_many_arguments)]
pub fn select_rows_raw(
    q: &Tensor,
    rope: &RopeTable,
    rounding: Rounding,
    weights: &Tensor,
    keys: &[&Rows],
    ratio: usize,
    k: usize,
    batch: &Ragged,
    ws: &Workspace,
) -> Result<Tensor> {
    #[cfg(metal_kernels)]
    if metal::turns_itself(q, rope, rounding)? {
        return select(q, Some(rope), weights, keys, ratio, k, batch, ws);
    }
    #[cfg(cuda_kernels)]
    if Gpu::of(q.device())?.is_some() && cuda::turns_itself(q, rope, rounding)? {
        return select(q, Some(rope), weights, keys, ratio, k, batch, ws);
    }
    crate::rope(q, rope, batch.positions(), Turn::Forward)?;
    rounding.apply(q)?;
    select_rows(q, weights, keys, ratio, k, batch, ws)
}

/// By queries that a kernel turns by a table and rounds itself, if there is one.
#[allow(clippy::too_many_arguments)]
fn select(
    q: &Tensor,
    turn: Option<&RopeTable>,
    weights: &Tensor,
    keys: &[&Rows],
    ratio: usize,
    k: usize,
    batch: &Ragged,
    ws: &Workspace,
) -> Result<Tensor> {
    check_ratio("select_rows", ratio)?;
    let (tokens, heads, dim) = q.dims3()?;
    if weights.dims() != [tokens, heads] || tokens != batch.tokens() {
        bail!(
            "select_rows: q {:?}, weights {:?}, batch {}",
            q.dims(),
            weights.dims(),
            batch.tokens()
        );
    }
    if keys.len() != batch.spans().len() || keys.iter().any(|keys| keys.width() != dim) {
        bail!("select_rows: {} lists of keys do not fit heads of {dim}", keys.len());
    }
    for (span, keys) in batch.spans().iter().zip(keys) {
        if keys.len() < span.end() / ratio {
            bail!("select_rows: {} keys at position {}", keys.len(), span.end());
        }
    }
    let out = ws.u32((tokens, k))?;
    #[cfg(metal_kernels)]
    let scores = metal::room_for_scores(ratio, batch, ws)?;
    #[allow(unused_mut, reason = "scratch is for GPUs")]
    let mut op = Select {
        q,
        turn,
        weights,
        keys,
        ratio,
        k,
        batch,
        #[cfg(metal_kernels)]
        scores,
        #[cfg(cuda_kernels)]
        scratch: None,
    };
    #[cfg(cuda_kernels)]
    if Gpu::of(q.device())?.is_some() {
        op.scratch = ws.scratch(cuda::scratch_bytes(&op)?)?;
    }
    timed(
        &out,
        || Ok(("select_rows".to_owned(), keys.iter().map(|keys| keys.bytes_of(keys.len())).sum())),
        || out.inplace_op1(&op),
    )?;
    Ok(out)
}

struct Select<'a> {
    q: &'a Tensor,
    #[cfg_attr(not(gpu_kernels), allow(dead_code, reason = "for kernels"))]
    turn: Option<&'a RopeTable>,
    weights: &'a Tensor,
    keys: &'a [&'a Rows],
    ratio: usize,
    k: usize,
    batch: &'a Ragged,
    #[cfg(metal_kernels)]
    scores: Tensor,
    #[cfg(cuda_kernels)]
    scratch: Option<Tensor>,
}

impl InplaceOp1 for Select<'_> {
    fn name(&self) -> &'static str {
        "select_rows"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, out, layout);
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::select(self, Target::emulated(out, layout));
        }
        let out = host_mut::<u32>(self.name(), out, layout)?;
        let (_, heads, dim) = self.q.dims3()?;
        let q = host::<f32>(self.name(), self.q)?;
        let weights = host::<f32>(self.name(), self.weights)?;
        for (span, keys) in self.batch.spans().iter().zip(self.keys) {
            let keys = HostRows::new(self.name(), keys)?;
            let tokens = span.row..span.row + span.len;
            let search = cpu::Search {
                keys: &keys,
                heads,
                dim,
                ratio: self.ratio,
                k: self.k,
                start: span.start,
            };
            search.select(
                &q[tokens.start * heads * dim..tokens.end * heads * dim],
                &weights[tokens.start * heads..tokens.end * heads],
                &mut out[tokens.start * self.k..tokens.end * self.k],
            );
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::select(self, Target::cuda(out, layout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    const TOKENS: usize = 61;
    const HEADS: usize = 6;
    const DIM: usize = 16;
    const RATIO: usize = 4;
    const K: usize = 5;

    #[test]
    fn the_best_visible_rows_by_the_definition_whatever_the_cut() -> Result<()> {
        let device = Device::Cpu;
        let q = Tensor::randn(0f32, 1.0, (TOKENS, HEADS, DIM), &device)?;
        let weights = Tensor::randn(0f32, 1.0, (TOKENS, HEADS), &device)?;
        let keys = Tensor::randn(0f32, 1.0, (TOKENS / RATIO, DIM), &device)?;
        let mut want = Vec::new();
        let (qs, ks) = (q.reshape(((), DIM))?.to_vec2::<f32>()?, keys.to_vec2::<f32>()?);
        for (token, weights) in weights.to_vec2::<f32>()?.iter().enumerate() {
            let mut scored: Vec<(f64, u32)> = (0..(token + 1) / RATIO)
                .map(|row| {
                    let score = (0..HEADS).map(|h| {
                        let dot: f64 = qs[token * HEADS + h]
                            .iter()
                            .zip(&ks[row])
                            .map(|(&a, &b)| f64::from(a) * f64::from(b))
                            .sum();
                        f64::from(weights[h]) * dot.max(0.0)
                    });
                    (score.sum(), row as u32)
                })
                .collect();
            scored.sort_by(|a, b| b.0.total_cmp(&a.0));
            let mut rows: Vec<u32> = scored.iter().take(K).map(|s| s.1).collect();
            rows.sort_unstable();
            rows.resize(K, NO_ROW);
            want.extend(rows);
        }
        for cuts in [vec![TOKENS], vec![1; TOKENS], vec![20, 3, 38]] {
            let mut rows = Rows::new(RATIO, DIM, &device);
            let (mut got, mut start) = (Vec::new(), 0);
            for len in cuts {
                let ws = Workspace::new(&device);
                let batch = Ragged::new(&[(start, len)], &device)?;
                let windows = batch.spans()[0].windows(RATIO);
                rows.append(&keys, windows.start, windows.len())?;
                let q = q.narrow(0, start, len)?;
                let weights = weights.narrow(0, start, len)?;
                let chosen = select_rows(&q, &weights, &[&rows], RATIO, K, &batch, &ws)?;
                got.extend(chosen.flatten_all()?.to_vec1::<u32>()?);
                start += len;
            }
            assert_eq!(got, want);
        }
        Ok(())
    }

    #[test]
    fn packed_keys_give_the_choice_of_plain_ones_whatever_the_page() -> Result<()> {
        let device = Device::Cpu;
        let q = Tensor::randn(0f32, 1.0, (TOKENS, HEADS, DIM), &device)?;
        let weights = Tensor::randn(0f32, 1.0, (TOKENS, HEADS), &device)?;
        let keys = Tensor::randn(0f32, 1.0, (TOKENS / RATIO, DIM), &device)?;
        crate::hadamard_fp4_round_trip(&keys)?;
        let choose = |mut rows: Rows, start: usize| -> Result<Vec<u32>> {
            let ws = Workspace::new(&device);
            rows.append(&keys, 0, TOKENS / RATIO)?;
            let batch = Ragged::new(&[(start, TOKENS - start)], &device)?;
            let q = q.narrow(0, start, TOKENS - start)?;
            let weights = weights.narrow(0, start, TOKENS - start)?;
            select_rows(&q, &weights, &[&rows], RATIO, K, &batch, &ws)?.flatten_all()?.to_vec1()
        };
        for start in [0, 17, TOKENS - 1] {
            let plain = choose(Rows::new(RATIO, DIM, &device), start)?;
            for page_rows in [1, 4, 256] {
                let format = crate::RowFormat::Fp4 { width: DIM };
                let rows = Rows::with_format(crate::PAGE_TOKENS / page_rows, format, &device);
                assert_eq!(choose(rows, start)?, plain, "pages of {page_rows}, from {start}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_ratio_of_nothing_is_refused() -> Result<()> {
        let device = Device::Cpu;
        let ws = Workspace::new(&device);
        let q = Tensor::ones((1, 1, 2), candle_core::DType::F32, &device)?;
        let weights = Tensor::ones((1, 1), candle_core::DType::F32, &device)?;
        let rows = Rows::new(1, 2, &device);
        let batch = Ragged::new(&[(3, 1)], &device)?;
        let error = select_rows(&q, &weights, &[&rows], 0, 3, &batch, &ws).unwrap_err();
        assert!(error.to_string().starts_with("select_rows: ratio 0"), "{error}");
        Ok(())
    }

    #[test]
    fn ties_go_to_the_lower_row() -> Result<()> {
        let device = Device::Cpu;
        let ws = Workspace::new(&device);
        let q = Tensor::ones((1, 1, 2), candle_core::DType::F32, &device)?;
        let weights = Tensor::ones((1, 1), candle_core::DType::F32, &device)?;
        let keys = Tensor::new(&[[1f32, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 2.0]], &device)?;
        let mut rows = Rows::new(1, 2, &device);
        rows.append(&keys, 0, 4)?;
        let batch = Ragged::new(&[(3, 1)], &device)?;
        let chosen = select_rows(&q, &weights, &[&rows], 1, 3, &batch, &ws)?;
        assert_eq!(chosen.to_vec2::<u32>()?, [[0, 1, 3]]);
        Ok(())
    }
}
