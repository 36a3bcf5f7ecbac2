//! Root-mean-square normalisation over the last axis.

mod cpu;
#[cfg(cuda_kernels)]
mod cuda;
#[cfg(metal_kernels)]
mod metal;

pub(crate) use cpu::scale;
#[cfg(cuda_kernels)]
pub(crate) use cuda::threads as cuda_threads;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
#[cfg(cuda_kernels)]
use crate::device::cuda::Target;
use crate::device::{host, host_mut, on_metal, timed, Workspace};

/// `out = weight ⊙ x / sqrt(mean(x²) + eps)`, over rows of the last axis.
///
/// Shapes: `x` `[…, n]` f32 · `weight` `[n]` f32, all ones if absent · result as `x`.
/// Errors: a weight of another length.
/// Source: RMSNorm (Zhang and Sennrich, 2019); DeepSeek V4 uses eps 1e-6, and no weight on the
/// heads of a query. Sums run in f64 on the CPU.
pub fn rms_norm(x: &Tensor, weight: Option<&Tensor>, eps: f64, ws: &Workspace) -> Result<Tensor> {
    let out = ws.f32(x.shape())?;
    run(Some(x), &out, weight, eps)?;
    Ok(out)
}

/// [`rms_norm`] of an `x` that nobody needs any more: the result takes its place, except on Metal.
///
/// Shapes, errors and source: as [`rms_norm`].
pub fn rms_norm_over(
    x: Tensor,
    weight: Option<&Tensor>,
    eps: f64,
    ws: &Workspace,
) -> Result<Tensor> {
    if on_metal(x.device()) {
        return rms_norm(&x, weight, eps, ws);
    }
    run(None, &x, weight, eps)?;
    Ok(x)
}

fn run(x: Option<&Tensor>, out: &Tensor, weight: Option<&Tensor>, eps: f64) -> Result<()> {
    let n = out.dim(candle_core::D::Minus1)?;
    if let Some(weight) = weight.filter(|weight| weight.dims() != [n]) {
        bail!("rms_norm: weight {:?} for rows of {n}", weight.dims());
    }
    let rows = out.elem_count() / n.max(1);
    timed(
        out,
        || Ok(("rms_norm".to_owned(), 0)),
        || out.inplace_op1(&RmsNorm { x, weight, eps, n, rows }),
    )
}

struct RmsNorm<'a> {
    /// `None`: what is in the output already.
    x: Option<&'a Tensor>,
    weight: Option<&'a Tensor>,
    eps: f64,
    n: usize,
    #[allow(dead_code, reason = "for launches")]
    rows: usize,
}

impl InplaceOp1 for RmsNorm<'_> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, out, layout);
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::rms_norm(self, Target::emulated(out, layout));
        }
        let out = host_mut::<f32>(self.name(), out, layout)?;
        if let Some(x) = self.x {
            out.copy_from_slice(&host::<f32>(self.name(), x)?);
        }
        let weight = self.weight.map(|w| host::<f32>(self.name(), w)).transpose()?;
        cpu::rms_norm(out, weight.as_deref(), self.eps, self.n);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::rms_norm(self, Target::cuda(out, layout))
    }
}
