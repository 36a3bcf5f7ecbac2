//! Few tokens on an Apple GPU, the router's choice included.

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

use super::Mlp;
use crate::device::{timed, Workspace};
use crate::router::Choice;

/// Tokens `x` `[tokens, hidden]` whose experts are still to be chosen.
pub(super) struct Routed<'a> {
    pub(super) x: &'a Tensor,
    /// The router's, `[tokens, experts]`.
    pub(super) logits: &'a Tensor,
    pub(super) choice: Choice<'a>,
    /// Experts per token.
    pub(super) k: usize,
    /// What the weights of a token's experts add up to.
    pub(super) scale: f32,
    pub(super) routed: Mlp<'a>,
    /// With the products with gate and up, `[tokens, shared inter]` each.
    pub(super) shared: Option<(Mlp<'a>, &'a [Tensor])>,
    pub(super) clamp: f32,
    pub(super) scratch: Scratch,
}

/// What the first launch leaves for the second.
pub(super) struct Scratch {
    /// `[tokens, k]`.
    pub(super) ids: Tensor,
    /// `[tokens, k, inter]`.
    pub(super) inner: Tensor,
    /// `[tokens, shared inter]`.
    pub(super) common: Tensor,
}

impl Scratch {
    pub(super) fn new(
        tokens: usize,
        k: usize,
        routed: Mlp,
        shared: Option<Mlp>,
        ws: &Workspace,
    ) -> Result<Self> {
        let common = shared.map_or(0, |mlp| mlp.gate.rows());
        Ok(Self {
            ids: ws.u32((tokens, k))?,
            inner: ws.f32((tokens, k, routed.gate.rows()))?,
            common: ws.f32((tokens, common))?,
        })
    }
}

impl Routed<'_> {
    /// Runs the launches.
    pub(super) fn run(&self, ws: &Workspace) -> Result<Tensor> {
        let (tokens, hidden) = self.x.dims2()?;
        let out = ws.f32((tokens, hidden))?;
        let what = || {
            let each = [self.routed.gate, self.routed.up, self.routed.down]
                .map(|w| w.byte_len() / w.stack().max(1));
            let (gate, down) = (self.routed.gate.format(), self.routed.down.format());
            let shared = self.shared.map_or(0, |(mlp, _)| mlp.down.byte_len());
            let bytes = tokens * self.k * each.iter().sum::<usize>() + shared;
            Ok((format!("experts {gate} / {down}"), bytes))
        };
        timed(&out, what, || out.inplace_op1(self))?;
        Ok(out)
    }
}

impl InplaceOp1 for Routed<'_> {
    fn name(&self) -> &'static str {
        "experts"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, _out: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, _out, _layout);
        bail!("experts: few tokens with their choice are for an Apple GPU")
    }
}
