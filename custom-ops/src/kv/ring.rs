//! The last rows of a sequence.

use candle_core::{DType, Device, Result, Tensor};

use super::Copy;
use crate::ragged::Span;

/// A ring of f32 rows: the row of position `p` is in slot `p mod slots`.
#[derive(Debug)]
pub struct Ring {
    data: Tensor,
    slots: usize,
}

impl Ring {
    /// A ring of `slots` rows of `width` values.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn new(slots: usize, width: usize, device: &Device) -> Result<Self> {
        Ok(Self { data: Tensor::zeros((slots, width), DType::F32, device)?, slots })
    }

    /// The rows, `[slots, width]`.
    pub fn data(&self) -> &Tensor {
        &self.data
    }

    /// How many positions it remembers.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.elem_count() * 4
    }

    /// A copy that shares nothing.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(Self { data: self.data.copy()?, slots: self.slots })
    }

    /// Writes the rows of `span` out of a batch's rows `[tokens, width]`; of a span longer than
    /// the ring, the last ones.
    ///
    /// # Errors
    /// If widths differ.
    pub fn write(&self, batch: &Tensor, span: &Span) -> Result<()> {
        let mut position = span.start + span.len.saturating_sub(self.slots);
        while position < span.end() {
            let slot = position % self.slots;
            let run = (self.slots - slot).min(span.end() - position);
            let source = batch.narrow(0, span.row + (position - span.start), run)?;
            self.data.narrow(0, slot, run)?.inplace_op1(&Copy { source: &source })?;
            position += run;
        }
        Ok(())
    }
}
