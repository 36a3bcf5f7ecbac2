//! What the layers of one forward pass share.

use candle_core::{Result, Tensor};
use candle_ds4_ops::{Mlp, Ragged, Workspace};

/// One forward pass: its tokens, and where its intermediate values live.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// Token ids `[tokens]` u32, sequence after sequence.
    pub ids: &'a Tensor,
    /// Which of them belong to which sequence, and at which positions.
    pub batch: &'a Ragged,
    /// Preallocated outputs.
    pub ws: &'a Workspace,
    /// Who looks on.
    pub observer: Option<&'a dyn Observer>,
}

/// Sees what a forward pass computes with, where nobody else can: collects statistics.
pub trait Observer {
    /// The routed experts of `layer` are about to run: their inputs `xs` `[tokens, hidden]`, the
    /// experts `ids` and their `weights` `[tokens, k]`, and the clamp of the gated unit.
    ///
    /// # Errors
    /// Ends the forward pass.
    fn experts(
        &self,
        layer: usize,
        xs: &Tensor,
        routed: Mlp<'_>,
        ids: &Tensor,
        weights: &Tensor,
        clamp: f32,
    ) -> Result<()>;
}
