//! A batch and the KV state of its sequences as kernel parameters; include/cuda/batch.h has the words.

use candle_core::{bail, Result};

use super::{Address, Gpu, Input};
use crate::kv::Ring;
use crate::ragged::Ragged;

/// Sequences of a batch at most.
pub(crate) const MAX_SEQUENCES: usize = 32;

/// Mirrors `Batch` of batch.h.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Batch {
    positions: Address,
    sequence: Address,
    spans: Address,
    tokens: u32,
    sequences: u32,
}

impl Batch {
    /// The parameter for `batch`, with what keeps its tables alive.
    ///
    /// # Errors
    /// If there are more sequences than a kernel's parameters hold, or the tables are elsewhere.
    pub(crate) fn new<'a>(
        op: &'static str,
        gpu: &Gpu,
        batch: &'a Ragged,
    ) -> Result<(Self, Input<'a>)> {
        let (tokens, sequences) = (batch.tokens(), batch.spans().len());
        check_sequences(op, sequences)?;
        let table = gpu.u32(op, batch.table())?;
        let [sequence, spans] = batch.table_parts().map(|at| table.address().offset(4 * at));
        let (tokens, sequences) = (tokens as u32, sequences as u32);
        Ok((Self { positions: table.address(), sequence, spans, tokens, sequences }, table))
    }
}

/// Mirrors `Rings` of batch.h.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Rings {
    data: [Address; MAX_SEQUENCES],
    slots: u32,
    width: u32,
}

impl Rings {
    /// Of no sequence.
    pub(crate) const NONE: Self = Self { data: [Address::NULL; MAX_SEQUENCES], slots: 1, width: 0 };

    /// The rings of a batch's sequences, all of one shape, with what keeps them alive.
    ///
    /// # Errors
    /// If they differ in shape, there are too many, or one is on another device.
    pub(crate) fn new<'a>(
        op: &'static str,
        gpu: &Gpu,
        rings: impl IntoIterator<Item = &'a Ring>,
    ) -> Result<(Self, Vec<Input<'a>>)> {
        let mut held = Vec::new();
        let mut shape = None;
        for ring in rings {
            let dims = ring.data().dims2()?;
            if *shape.get_or_insert(dims) != dims {
                bail!("{op}: rings of {shape:?} and {dims:?} in one batch");
            }
            held.push(gpu.f32(op, ring.data())?);
        }
        check_sequences(op, held.len())?;
        let mut data = [Address::NULL; MAX_SEQUENCES];
        for (data, ring) in data.iter_mut().zip(&held) {
            *data = ring.address();
        }
        let (slots, width) = shape.unwrap_or_default();
        Ok((Self { data, slots: slots as u32, width: width as u32 }, held))
    }
}

fn check_sequences(op: &'static str, sequences: usize) -> Result<()> {
    if sequences > MAX_SEQUENCES {
        bail!("{op}: {sequences} sequences in a batch, at most {MAX_SEQUENCES} on a GPU");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_structs_are_the_headers() {
        use std::mem::{offset_of, size_of};
        assert_eq!((size_of::<Batch>(), offset_of!(Batch, tokens)), (32, 24));
        assert_eq!((size_of::<Rings>(), offset_of!(Rings, slots)), (264, 256));
    }
}
