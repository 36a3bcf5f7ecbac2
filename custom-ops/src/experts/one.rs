//! One token of the 2-bit model on a GPU, the router's choice included.

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

use super::cuda::one as cuda;
use super::{class_of, Mlp};
#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
use crate::device::cuda::Target;
use crate::device::{timed, Workspace};
use crate::router::Choice;

/// Which experts one token goes to.
#[derive(Clone, Copy)]
pub(super) enum Route<'a> {
    /// Named, `[1, k]` each.
    Chosen { ids: &'a Tensor, weights: &'a Tensor },
    /// To be chosen by logits `[1, experts]`.
    Choose { logits: &'a Tensor, choice: Choice<'a>, k: usize, scale: f32 },
}

impl Route<'_> {
    pub(super) fn k(&self) -> Result<usize> {
        match self {
            Self::Chosen { ids, .. } => ids.dim(1),
            Self::Choose { k, .. } => Ok(*k),
        }
    }
}

/// The routed experts of `x` `[1, hidden]` and the shared one, of which the products with gate and up are
/// given, `[1, shared inter]` each.
pub(super) fn one(
    x: &Tensor,
    routed: Mlp,
    route: Route,
    shared: Option<(Mlp, &[Tensor])>,
    clamp: f32,
    ws: &Workspace,
) -> Result<Tensor> {
    let (_, hidden) = x.dims2()?;
    let out = ws.f32((1, hidden))?;
    let h = ws.f32((route.k()?, routed.gate.rows()))?;
    let ids = ws.u32(route.k()?)?;
    let op = One { x, h: &h, ids: &ids, routed, route, shared, clamp };
    let what = || match route {
        Route::Chosen { ids, .. } => class_of(routed, ids, shared.map(|(mlp, _)| mlp)),
        Route::Choose { k, .. } => {
            let each =
                [routed.gate, routed.up, routed.down].map(|w| w.byte_len() / w.stack().max(1));
            let name = format!("experts {} / {}", routed.gate.format(), routed.down.format());
            let down = shared.map_or(0, |(mlp, _)| mlp.down.byte_len());
            Ok((name, k * each.iter().sum::<usize>() + down))
        }
    };
    timed(&out, what, || out.inplace_op1(&op))?;
    Ok(out)
}

pub(super) struct One<'a> {
    pub(super) x: &'a Tensor,
    pub(super) h: &'a Tensor,
    /// The experts that the first launch took, for the second.
    pub(super) ids: &'a Tensor,
    pub(super) routed: Mlp<'a>,
    pub(super) route: Route<'a>,
    pub(super) shared: Option<(Mlp<'a>, &'a [Tensor])>,
    pub(super) clamp: f32,
}

impl InplaceOp1 for One<'_> {
    fn name(&self) -> &'static str {
        "experts"
    }

    fn cpu_fwd(&self, _out: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::one(self, Target::emulated(_out, _layout));
        }
        bail!("experts: one token at once is for a GPU")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::one(self, Target::cuda(out, layout))
    }
}
