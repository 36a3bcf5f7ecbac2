//! The matrix of a mix, left to a launch that comes before it is needed.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

use super::MixParams;
#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
use crate::device::cuda::{Address, Gpu, Target};
use crate::device::Workspace;

/// A mix whose matrix is still logits.
#[derive(Clone)]
pub(crate) struct Errand {
    /// `[tokens, 24]`.
    pub(super) mix: Tensor,
    pub(super) params: MixParams,
}

/// Mirrors `MatrixErrand` of include/cuda/errand.h.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct MatrixErrand {
    pub(super) mix: Address,
    tokens: u32,
    iterations: u32,
    eps: f32,
    unused: u32,
}

impl MatrixErrand {
    /// None.
    pub(crate) const NONE: Self =
        Self { mix: Address::NULL, tokens: 0, iterations: 0, eps: 0.0, unused: 0 };

    /// Whether there is something to do.
    pub(crate) fn is_some(&self) -> bool {
        self.mix != Address::NULL
    }
}

impl Errand {
    /// As a kernel's parameter.
    ///
    /// # Errors
    /// If the mix is elsewhere.
    pub(crate) fn param(&self, gpu: &Gpu) -> Result<MatrixErrand> {
        let mix = gpu.f32("hyper_matrix", &self.mix)?.address();
        self.at(mix)
    }

    pub(super) fn at(&self, mix: Address) -> Result<MatrixErrand> {
        Ok(MatrixErrand {
            mix,
            tokens: self.mix.dim(0)? as u32,
            iterations: self.params.sinkhorn_iterations as u32,
            eps: self.params.eps,
            unused: 0,
        })
    }

    /// Runs the one that is left in `ws`, if no launch has.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn run_left(ws: &Workspace) -> Result<()> {
        match ws.take_errand() {
            Some(errand) => errand.mix.clone().inplace_op1(&errand),
            None => Ok(()),
        }
    }
}

impl InplaceOp1 for Errand {
    fn name(&self) -> &'static str {
        "hyper_matrix"
    }

    fn cpu_fwd(&self, _mix: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return super::cuda::matrix(self, Target::emulated(_mix, _layout));
        }
        candle_core::bail!("hyper_matrix: a launch on a GPU")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, mix: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        super::cuda::matrix(self, Target::cuda(mix, layout))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_parameter_struct_is_the_headers() {
        assert_eq!(size_of::<super::MatrixErrand>(), 24);
    }
}
