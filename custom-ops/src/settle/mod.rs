//! What new tokens leave in a layer's state before attention looks at it.

#[cfg(cuda_kernels)]
mod cuda;
#[cfg(metal_kernels)]
mod metal;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(cuda_kernels)]
use crate::device::cuda::{Gpu, Target};
#[cfg(gpu_kernels)]
use crate::device::timed;
use crate::device::Workspace;
use crate::kv::{append_rows, write_rings, Rows};
#[cfg(cuda_kernels)]
use crate::matmul::normed_matmuls;
use crate::{
    matmuls, pool, rms_norm, rope, Matrix, PoolState, Pooling, Ragged, RopeTable, Rounding, Turn,
};

/// What becomes of a row on its way into a cache: norm, turn to its position, rounding.
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a> {
    /// Weight of the RMS norm, `[dim]`.
    pub norm: &'a Tensor,
    /// Added to the mean square.
    pub eps: f64,
    /// Angles.
    pub rope: &'a RopeTable,
    /// Of the turned row.
    pub rounding: Rounding,
}

impl Finish<'_> {
    /// The finished rows `[rows, dim]` of raw ones, which stand at `positions`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn apply(&self, rows: &Tensor, positions: &Tensor, ws: &Workspace) -> Result<Tensor> {
        let rows = rms_norm(rows, Some(self.norm), self.eps, ws)?;
        rope(&rows, self.rope, positions, Turn::Forward)?;
        self.rounding.apply(&rows)?;
        Ok(rows)
    }
}

/// Tokens on their way into compressed rows.
#[derive(Debug)]
pub struct Compression<'a> {
    /// What is pooled, `[tokens, width]`.
    pub values: &'a Tensor,
    /// The logarithms of its weights, `[tokens, width]`.
    pub gates: &'a Tensor,
    /// Added to the gates by place in the window, `[ratio, width]`.
    pub bias: &'a Tensor,
    /// How.
    pub pooling: Pooling,
    /// What becomes of a pooled row; it stands at its window's first token.
    pub finish: Finish<'a>,
    /// What each sequence remembers of the tokens before.
    pub states: Vec<&'a PoolState>,
    /// Where each sequence's rows go.
    pub lists: Vec<&'a mut Rows>,
}

/// All of it for one layer.
#[derive(Debug)]
pub struct Settle<'a> {
    /// The queries' latent `[tokens, q_lora_rank]`, raw.
    pub latent: &'a Tensor,
    /// Its norm's weight and what is added to the mean square.
    pub latent_norm: (&'a Tensor, f64),
    /// Key and value of each token at once, `[tokens, dim]`, raw.
    pub kv: &'a Tensor,
    /// What becomes of those.
    pub finish: Finish<'a>,
    /// The layer's compressor, and its indexer's.
    pub compressions: Vec<Compression<'a>>,
}

/// The normed latent, and the finished rows of the tokens themselves. The rows of windows that end in the
/// batch are appended to their lists, and the tokens remembered for windows to come: see [`pool`],
/// [`Finish`], [`append_rows`].
///
/// # Errors
/// As those.
pub fn settle(mut settle: Settle<'_>, batch: &Ragged, ws: &Workspace) -> Result<(Tensor, Tensor)> {
    #[cfg(gpu_kernels)]
    if settles_at_once(&settle, batch)? {
        let latent = ws.f32(settle.latent.shape())?;
        let kv = at_once(&mut settle, &[], std::slice::from_ref(&latent), batch, ws)?;
        return Ok((latent, kv));
    }
    let (norm, eps) = settle.latent_norm;
    let latent = rms_norm(settle.latent, Some(norm), eps, ws)?;
    let kv = settle.finish.apply(settle.kv, batch.positions(), ws)?;
    for compression in &mut settle.compressions {
        compress(compression, batch, ws)?;
    }
    Ok((latent, kv))
}

/// [`settle`], with the products of `weights` and the normed latent in place of that.
///
/// # Errors
/// As [`settle`] and [`matmuls`].
#[allow(unused_mut, reason = "an Apple GPU is handed the lists to append to")]
pub fn settle_and_project(
    mut of: Settle<'_>,
    weights: &[&Matrix],
    batch: &Ragged,
    ws: &Workspace,
) -> Result<(Vec<Tensor>, Tensor)> {
    #[cfg(metal_kernels)]
    if crate::device::on_metal(of.kv.device()) && metal::projects_at_once(&of, weights, batch) {
        let outs = weights.iter().map(|w| ws.f32((batch.tokens(), w.rows())));
        let outs = outs.collect::<Result<Vec<_>>>()?;
        let kv = at_once(&mut of, weights, &outs, batch, ws)?;
        return Ok((outs, kv));
    }
    #[cfg(cuda_kernels)]
    if let Some(gpu) = Gpu::of(of.kv.device())? {
        if cuda::settles_at_once(&of, batch)
            && crate::matmul::cuda::norms(&gpu, weights, batch.tokens())
        {
            // The products need nothing else of what is settled, and are made meanwhile.
            let (latent, norm) = (of.latent, of.latent_norm);
            let kv = at_once(&mut of, &[], &[], batch, ws)?;
            return Ok((normed_matmuls(latent, norm, weights, ws)?, kv));
        }
    }
    let (latent, kv) = settle(of, batch, ws)?;
    Ok((matmuls(&latent, weights, ws)?, kv))
}

fn compress(of: &mut Compression<'_>, batch: &Ragged, ws: &Workspace) -> Result<()> {
    let ratio = of.pooling.ratio;
    let rows = pool(of.values, of.gates, of.bias, &of.states, batch, of.pooling, ws)?;
    let rows = of.finish.apply(&rows, &batch.window_starts(ratio)?, ws)?;
    let past_values = of.states.iter().map(|state| &state.values).collect();
    let past_gates = of.states.iter().map(|state| &state.gates).collect();
    write_rings(&[(past_values, of.values), (past_gates, of.gates)], batch)?;
    append_rows(of.lists.iter_mut().map(|list| &mut **list).collect(), &rows, batch, ratio)
}

/// Whether a device has a kernel that does all of it.
#[cfg(gpu_kernels)]
fn settles_at_once(settle: &Settle<'_>, batch: &Ragged) -> Result<bool> {
    #[cfg(metal_kernels)]
    if crate::device::on_metal(settle.kv.device()) {
        return Ok(metal::settles_at_once(settle, batch));
    }
    #[cfg(cuda_kernels)]
    if Gpu::of(settle.kv.device())?.is_some() {
        return Ok(cuda::settles_at_once(settle, batch));
    }
    Ok(false)
}

/// One token of each sequence, in one launch (Metal: for each sequence). To `outs` goes the latent, or its
/// products with `weights`; nothing if there are none.
#[cfg(gpu_kernels)]
fn at_once(
    settle: &mut Settle<'_>,
    weights: &[&Matrix],
    outs: &[Tensor],
    batch: &Ragged,
    ws: &Workspace,
) -> Result<Tensor> {
    let tokens = batch.tokens();
    let (_, dim) = settle.kv.dims2()?;
    if settle.latent.dim(0)? != tokens || settle.kv.dim(0)? != tokens {
        bail!("settle: {:?} and {:?} for {tokens} tokens", settle.latent.dims(), settle.kv.dims());
    }
    for of in &mut settle.compressions {
        check(of, tokens)?;
        for (list, span) in of.lists.iter_mut().zip(batch.spans()) {
            list.reserve(span.windows(of.pooling.ratio).len())?;
        }
    }
    let kv = ws.f32((tokens, dim))?;
    let op = AtOnce {
        settle,
        batch,
        #[cfg(cuda_kernels)]
        latent: outs.first(),
        #[cfg(metal_kernels)]
        weights,
        #[cfg(metal_kernels)]
        outs,
    };
    let bytes = weights.iter().map(|w| w.byte_len()).sum();
    timed(&kv, || Ok(("settle".to_owned(), bytes)), || kv.inplace_op1(&op))?;
    for of in &mut settle.compressions {
        for (list, span) in of.lists.iter_mut().zip(batch.spans()) {
            list.advance(span.windows(of.pooling.ratio).len())?;
        }
    }
    Ok(kv)
}

/// What [`pool`] and [`append_rows`] check.
#[cfg(gpu_kernels)]
fn check(of: &Compression<'_>, tokens: usize) -> Result<()> {
    let (rows, width) = of.values.dims2()?;
    let Pooling { ratio, .. } = of.pooling;
    crate::ragged::check_ratio("settle", ratio)?;
    let dim = of.finish.norm.dim(0)?;
    let fits =
        rows == tokens && of.gates.dims() == [tokens, width] && of.pooling.width(dim) == width;
    if !fits || of.bias.dims() != [ratio, width] {
        let [values, gates, bias] = [of.values, of.gates, of.bias].map(|t| t.dims().to_vec());
        bail!("settle: values {values:?}, gates {gates:?}, bias {bias:?} for {tokens} tokens, rows of {dim}");
    }
    let short = |state: &&&PoolState| state.values.slots() < of.pooling.reach();
    if of.states.len() != tokens
        || of.lists.len() != tokens
        || of.states.iter().find(short).is_some()
    {
        bail!("settle: states or lists do not fit {tokens} sequences and windows of {ratio}");
    }
    if let Some(list) = of.lists.iter().find(|list| list.width() != dim) {
        bail!("settle: rows of {dim} to a list of rows of {}", list.width());
    }
    Ok(())
}

/// Writes the finished rows; the latent and the caches too.
#[cfg_attr(not(gpu_kernels), allow(dead_code, reason = "for kernels"))]
struct AtOnce<'a, 'b> {
    settle: &'a Settle<'b>,
    batch: &'a Ragged,
    /// Of CUDA, where there are no weights: the normed latent, unless its products norm it.
    #[cfg(cuda_kernels)]
    latent: Option<&'a Tensor>,
    /// Those that the normed latent is multiplied by.
    #[cfg(metal_kernels)]
    weights: &'a [&'a Matrix],
    /// Their products, or, without weights, the latent.
    #[cfg(metal_kernels)]
    outs: &'a [Tensor],
}

impl InplaceOp1 for AtOnce<'_, '_> {
    fn name(&self) -> &'static str {
        "settle"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, _out: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, _out, _layout);
        #[cfg(feature = "cuda-emulator")]
        if crate::device::cuda::emulating() {
            return cuda::settle(self, Target::emulated(_out, _layout));
        }
        bail!("settle: one launch on a GPU, several ops on a CPU")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::settle(self, Target::cuda(out, layout))
    }
}
