//! On NVIDIA GPUs; kernel.cu.

use candle_core::{DType, Result};

use super::Likeliest;
use crate::device::cuda::{Address, Kernel, Launch, Target};

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    scores: Address,
    out: Address,
    count: u32,
    skip: u32,
}

pub(super) fn likeliest(op: &Likeliest, out: Target) -> Result<()> {
    let name = "likeliest";
    let (rows, count) = op.scores.dims2()?;
    let out = out.of(name, DType::U32)?;
    let gpu = out.gpu();
    let scores = gpu.f32(name, op.scores)?;
    let params = Params {
        scores: scores.address(),
        out: out.address(),
        count: count as u32,
        skip: op.skip.unwrap_or(u32::MAX),
    };
    // SAFETY: `LikeliestParams`; the output has an index for each row.
    unsafe {
        gpu.launch(Kernel("likeliest"), Launch::new(rows, 1024).shared(32 * 8 + 32 * 4), &params)
    }
}
