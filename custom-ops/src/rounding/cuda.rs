//! On NVIDIA GPUs; kernel.cu.

use candle_core::{bail, DType, Result};

use super::{block_of, Form, Round, FP4_BLOCK, FP8_BLOCK};
use crate::device::cuda::{Address, Kernel, Launch, Target};

/// Values of a row that the Hadamard kernel holds in shared memory.
const MAX_DIM: usize = 4096;

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    x: Address,
    rows: u32,
    dim: u32,
    channels: u32,
    block: u32,
    factor: f32,
}

pub(super) fn round(op: &Round, values: usize, x: Target) -> Result<()> {
    let Round { name, dim, form } = *op;
    let x = x.of(name, DType::F32)?;
    let rows = values / dim.max(1);
    let mut params = Params {
        x: x.address(),
        rows: rows as u32,
        dim: dim as u32,
        channels: dim as u32,
        block: 1,
        factor: (dim as f32).powf(-0.5),
    };
    let (kernel, launch) = match form {
        Form::Kv { nope } => {
            let block = block_of(nope, FP8_BLOCK);
            (params.channels, params.block) = (nope as u32, block as u32);
            // A warp for each block, and one for each 64 of the other channels.
            let warps = rows * (nope / block + (dim - nope).div_ceil(64));
            (Kernel("kv_round_trip"), Launch::new(warps.div_ceil(8), 256))
        }
        Form::HadamardFp4 => {
            if dim > MAX_DIM {
                bail!("{name}: no CUDA kernel for rows of {dim}, at most {MAX_DIM}");
            }
            params.block = dim.min(FP4_BLOCK) as u32;
            let threads = (dim / 2).clamp(32, 256) as u32;
            (Kernel("hadamard_fp4_round_trip"), Launch::new(rows, threads).shared(dim * 4))
        }
    };
    // SAFETY: `RoundingParams`; `x` has `rows` rows of `dim`, the blocks lie within them.
    unsafe { x.gpu().launch(kernel, launch, &params) }
}
