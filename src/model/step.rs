//! What the layers of one forward pass share.

use candle_core::Tensor;
use candle_ds4_ops::{Ragged, Workspace};

/// One forward pass: its tokens, and where its intermediate values live.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// Token ids `[tokens]` u32, sequence after sequence.
    pub ids: &'a Tensor,
    /// Which of them belong to which sequence, and at which positions.
    pub batch: &'a Ragged,
    /// Preallocated outputs.
    pub ws: &'a Workspace,
}
