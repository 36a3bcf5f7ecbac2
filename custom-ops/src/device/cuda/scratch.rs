//! Memory for what an op keeps between its own launches.

use candle_core::{bail, DType, Result, Tensor};

use super::{Address, Gpu, Input};

/// Every piece begins at a multiple of this.
const ALIGN: usize = 256;

/// Adds up what pieces will take.
#[derive(Clone, Copy, Default)]
pub(crate) struct ScratchSize(usize);

impl ScratchSize {
    /// One piece more.
    pub(crate) fn add(mut self, bytes: usize) -> Self {
        self.0 = self.0.saturating_add(bytes.next_multiple_of(ALIGN));
        self
    }

    /// Bytes of a tensor that holds all pieces, wherever it begins; 0 of none.
    pub(crate) fn bytes(self) -> usize {
        match self.0 {
            0 => 0,
            bytes => bytes.saturating_add(ALIGN),
        }
    }
}

/// Hands out the pieces, in order.
pub(crate) struct Scratch<'a> {
    at: u64,
    end: u64,
    _input: Option<Input<'a>>,
}

impl<'a> Scratch<'a> {
    /// Of a tensor of bytes, or of nothing.
    ///
    /// # Errors
    /// If it is on another device.
    pub(crate) fn new(op: &'static str, gpu: &Gpu, tensor: Option<&'a Tensor>) -> Result<Self> {
        let Some(tensor) = tensor else { return Ok(Self { at: 0, end: 0, _input: None }) };
        let input = gpu.input(op, tensor, DType::U8)?;
        let Address(begin) = input.address();
        let end = begin + tensor.elem_count() as u64;
        Ok(Self { at: begin.next_multiple_of(ALIGN as u64), end, _input: Some(input) })
    }

    /// A piece.
    ///
    /// # Errors
    /// If there is not so much left: the op asked for less than it takes.
    pub(crate) fn take(&mut self, op: &'static str, bytes: usize) -> Result<Address> {
        let at = self.at;
        let bytes = bytes as u64;
        if at + bytes > self.end {
            bail!("{op}: {bytes} bytes of scratch wanted, {} left", self.end.saturating_sub(at));
        }
        self.at = (at + bytes).next_multiple_of(ALIGN as u64);
        Ok(Address(at))
    }
}
