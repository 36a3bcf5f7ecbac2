//! One token of the 2-bit model on a GPU, the router's choice included.

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

use super::cuda::one as cuda;
use super::Mlp;
#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
use crate::device::cuda::Target;
use crate::device::{timed, Workspace};
use crate::router::Choice;
use crate::Matrix;

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

/// What the routed experts of `x` `[1, hidden]` and the shared one, of which the products with gate and up are
/// given, `[1, shared inter]` each, leave for their last products.
pub(super) fn one(
    x: &Tensor,
    routed: Mlp,
    route: Route,
    shared: Option<(Mlp, &[Tensor])>,
    clamp: f32,
    ws: &Workspace,
) -> Result<ExpertsDown> {
    let k = route.k()?;
    let h = ws.f32((k, routed.gate.rows()))?;
    let ids = ws.u32(k)?;
    let op = GateUpOf { x, ids: &ids, routed, route, clamp };
    let what = || {
        let name = format!("experts {}, gate and up", routed.gate.format());
        let each = [routed.gate, routed.up].map(|w| w.byte_len() / w.stack().max(1));
        Ok((name, k * each.iter().sum::<usize>()))
    };
    timed(&h, what, || h.inplace_op1(&op))?;
    let shared = match shared {
        Some((mlp, [gate, up])) => Some(([gate.clone(), up.clone()], mlp.down.clone())),
        Some(_) => bail!("experts: gate and up of the shared one are two products"),
        None => None,
    };
    Ok(ExpertsDown { h, ids, shared, down: routed.down.clone(), clamp })
}

pub(super) struct GateUpOf<'a> {
    pub(super) x: &'a Tensor,
    /// The experts that the launch takes, for the next.
    pub(super) ids: &'a Tensor,
    pub(super) routed: Mlp<'a>,
    pub(super) route: Route<'a>,
    pub(super) clamp: f32,
}

impl InplaceOp1 for GateUpOf<'_> {
    fn name(&self) -> &'static str {
        "experts"
    }

    fn cpu_fwd(&self, _h: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::gate_up(self, Target::emulated(_h, _layout));
        }
        bail!("experts: one token at once is for a GPU")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, h: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::gate_up(self, Target::cuda(h, layout))
    }
}

/// The last products of one token's experts, of what gate and up gave.
#[derive(Clone, Debug)]
pub struct ExpertsDown {
    /// `[k, inter]`.
    pub(super) h: Tensor,
    /// Which experts, `[k]`.
    pub(super) ids: Tensor,
    /// Products of the shared expert's gate and up, and its last weight.
    pub(super) shared: Option<([Tensor; 2], Matrix)>,
    /// `[n, hidden, inter]`.
    pub(super) down: Matrix,
    pub(super) clamp: f32,
}

impl ExpertsDown {
    /// Their sum, `[1, hidden]`.
    pub(crate) fn compute(&self, ws: &Workspace) -> Result<Tensor> {
        let out = ws.f32((1, self.down.rows()))?;
        timed(
            &out,
            || Ok((format!("experts {}, down", self.down.format()), self.byte_len())),
            || out.inplace_op1(self),
        )?;
        Ok(out)
    }

    /// Width of the result.
    pub(crate) fn hidden(&self) -> usize {
        self.down.rows()
    }

    /// Of the weights that are read.
    pub(crate) fn byte_len(&self) -> usize {
        let routed = self.ids.elem_count() * (self.down.byte_len() / self.down.stack().max(1));
        routed + self.shared.as_ref().map_or(0, |(_, down)| down.byte_len())
    }
}

impl InplaceOp1 for ExpertsDown {
    fn name(&self) -> &'static str {
        "experts"
    }

    fn cpu_fwd(&self, _out: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::down(self, Target::emulated(_out, _layout));
        }
        bail!("experts: one token at once is for a GPU")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::down(self, Target::cuda(out, layout))
    }
}
