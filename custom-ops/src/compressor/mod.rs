//! Pooling a window of tokens into one row, with learned weights per channel.

mod cpu;
#[cfg(cuda_kernels)]
mod cuda;
#[cfg(metal_kernels)]
mod metal;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
#[cfg(cuda_kernels)]
use crate::device::cuda::Target;
use crate::device::{host, host_mut, timed, Workspace};
use crate::kv::Ring;
use crate::ragged::{check_ratio, Ragged};

/// How windows are pooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// Tokens in a window.
    pub ratio: usize,
    /// Whether a row pools the window before its own as well. The projections are then twice as
    /// wide: the first half serves the row after the token's own window, the second half its own.
    pub overlap: bool,
}

impl Pooling {
    /// Tokens before a batch that its rows can reach back to.
    pub fn reach(&self) -> usize {
        if self.overlap {
            2 * self.ratio
        } else {
            self.ratio
        }
    }

    /// Width of the projections for rows of `dim` values.
    pub fn width(&self, dim: usize) -> usize {
        if self.overlap {
            2 * dim
        } else {
            dim
        }
    }
}

/// The compressor's memory of one sequence: projections of its last tokens.
#[derive(Debug)]
pub struct PoolState {
    /// What is pooled.
    pub values: Ring,
    /// The logarithms of its weights, without the bias by place.
    pub gates: Ring,
}

/// One row for each window that ends in this batch: `e_w = Σ_j softmax_j(z_j + ape_j) · u_j`,
/// channel by channel, over the window's tokens `j` (and the tokens of the window before, see
/// [`Pooling::overlap`]; before the first window there is nothing). A [`Ragged::fixed`] batch has one row
/// for each sequence, which is zero where no window ends.
///
/// Shapes: `values` (u) and `gates` (z) `[tokens, width]` f32 · `ape` `[ratio, width]` f32, by
/// position within the window · `states` one for each sequence → `[rows, dim]`, sequence by
/// sequence, `dim` = width, or half of it with overlap. The states are read for tokens before the
/// batch and not changed.
/// Errors: shapes that do not fit; a ratio of 0; a state that remembers fewer tokens than needed.
/// Source: DeepSeek V4's compressed attention: CSA (ratio 4, overlapping), HCA (ratio 128).
pub fn pool(
    values: &Tensor,
    gates: &Tensor,
    ape: &Tensor,
    states: &[&PoolState],
    batch: &Ragged,
    pooling: Pooling,
    ws: &Workspace,
) -> Result<Tensor> {
    check_ratio("pool", pooling.ratio)?;
    let (tokens, width) = values.dims2()?;
    if gates.dims() != [tokens, width] || tokens != batch.tokens() {
        bail!(
            "pool: values {:?}, gates {:?}, a batch of {}",
            values.dims(),
            gates.dims(),
            batch.tokens()
        );
    }
    if ape.dims() != [pooling.ratio, width] {
        bail!("pool: bias {:?}, expected [{}, {width}]", ape.dims(), pooling.ratio);
    }
    if states.len() != batch.spans().len() {
        bail!("pool: {} states for {} sequences", states.len(), batch.spans().len());
    }
    if let Some(state) = states.iter().find(|s| s.values.slots() < pooling.reach()) {
        bail!("pool: a state of {} tokens, {} needed", state.values.slots(), pooling.reach());
    }
    let dim = if pooling.overlap { width / 2 } else { width };
    let rows = batch.window_rows(pooling.ratio);
    let out = ws.f32((rows, dim))?;
    if rows > 0 {
        timed(
            &out,
            || Ok(("pool".to_owned(), 0)),
            || out.inplace_op1(&Pool { values, gates, ape, states, batch, pooling, width }),
        )?;
    }
    Ok(out)
}

struct Pool<'a> {
    values: &'a Tensor,
    gates: &'a Tensor,
    ape: &'a Tensor,
    states: &'a [&'a PoolState],
    batch: &'a Ragged,
    pooling: Pooling,
    width: usize,
}

impl InplaceOp1 for Pool<'_> {
    fn name(&self) -> &'static str {
        "pool"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, out, layout);
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::pool(self, Target::emulated(out, layout));
        }
        let out = host_mut::<f32>(self.name(), out, layout)?;
        let values = host::<f32>(self.name(), self.values)?;
        let gates = host::<f32>(self.name(), self.gates)?;
        let ape = host::<f32>(self.name(), self.ape)?;
        let mut rest = out;
        let dim = if self.pooling.overlap { self.width / 2 } else { self.width };
        for (sequence, (span, state)) in self.batch.spans().iter().zip(self.states).enumerate() {
            let rows = self.batch.window_rows_of(sequence, self.pooling.ratio);
            let (own, after) = rest.split_at_mut(rows * dim);
            rest = after;
            let past_values = host::<f32>(self.name(), state.values.data())?;
            let past_gates = host::<f32>(self.name(), state.gates.data())?;
            let tokens = cpu::Tokens {
                values: &values,
                gates: &gates,
                past_values: &past_values,
                past_gates: &past_gates,
                slots: state.values.slots(),
                width: self.width,
                span: *span,
            };
            cpu::pool(&tokens, &ape, self.pooling, own).fill(0.0);
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::pool(self, Target::cuda(out, layout))
    }
}

#[cfg(test)]
mod tests;
