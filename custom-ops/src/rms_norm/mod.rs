//! Root-mean-square normalisation over the last axis.

mod cpu;
#[cfg(cuda_kernels)]
mod cuda;

pub(crate) use cpu::scale;
#[cfg(cuda_kernels)]
pub(crate) use cuda::threads as cuda_threads;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
#[cfg(cuda_kernels)]
use crate::device::cuda::Target;
use crate::device::{host, host_mut, timed, Workspace};

/// `out = weight ⊙ x / sqrt(mean(x²) + eps)`, over rows of the last axis.
///
/// Shapes: `x` `[…, n]` f32 · `weight` `[n]` f32, all ones if absent · result as `x`.
/// Errors: a weight of another length.
/// Source: RMSNorm (Zhang and Sennrich, 2019); DeepSeek V4 uses eps 1e-6, and no weight on the
/// heads of a query. Sums run in f64 on the CPU.
pub fn rms_norm(x: &Tensor, weight: Option<&Tensor>, eps: f64, ws: &Workspace) -> Result<Tensor> {
    let n = x.dim(candle_core::D::Minus1)?;
    if let Some(weight) = weight {
        if weight.dims() != [n] {
            bail!("rms_norm: weight {:?} for rows of {n}", weight.dims());
        }
    }
    let out = ws.f32(x.shape())?;
    timed(
        &out,
        || Ok(("rms_norm".to_owned(), 0)),
        || out.inplace_op1(&RmsNorm { x, weight, eps, n }),
    )?;
    Ok(out)
}

struct RmsNorm<'a> {
    x: &'a Tensor,
    weight: Option<&'a Tensor>,
    eps: f64,
    n: usize,
}

impl InplaceOp1 for RmsNorm<'_> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::rms_norm(self, Target::emulated(out, layout));
        }
        let out = host_mut::<f32>(self.name(), out, layout)?;
        let x = host::<f32>(self.name(), self.x)?;
        let weight = self.weight.map(|w| host::<f32>(self.name(), w)).transpose()?;
        cpu::rms_norm(&x, weight.as_deref(), self.eps, self.n, out);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::rms_norm(self, Target::cuda(out, layout))
    }
}
