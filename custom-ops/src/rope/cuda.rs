//! On NVIDIA GPUs; kernel.cu.

use candle_core::{bail, DType, Result};

use super::{Rope, RopeNormed, RopeTable, Turn};
use crate::device::cuda::{Address, Kernel, Launch, Target};

/// As in kernel.cu.
const MAX_FREQUENCIES: usize = 64;
/// Heads of a block.
const HEADS: usize = 8;

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    x: Address,
    positions: Address,
    heads: u32,
    dim: u32,
    count: u32,
    sign: f32,
    frequencies: [f32; MAX_FREQUENCIES],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct NormedParams {
    x: Address,
    positions: Address,
    eps: f64,
    heads: u32,
    dim: u32,
    count: u32,
    unused: u32,
    frequencies: [f32; MAX_FREQUENCIES],
}

/// A table's frequencies, and how many.
fn frequencies(table: &RopeTable) -> Result<([f32; MAX_FREQUENCIES], usize)> {
    let count = table.frequencies().len();
    if count > MAX_FREQUENCIES {
        let most = 2 * MAX_FREQUENCIES;
        bail!("rope: no CUDA kernel turns {} channels, at most {most}", table.channels());
    }
    let mut frequencies = [0.0; MAX_FREQUENCIES];
    frequencies[..count].copy_from_slice(table.frequencies());
    Ok((frequencies, count))
}

/// A block for some heads of each token, and room for their angles.
fn launch(tokens: usize, heads: usize) -> Launch {
    Launch::new(tokens, 256).grid_y(heads.div_ceil(HEADS)).shared(2 * MAX_FREQUENCIES * 4)
}

pub(super) fn rope(op: &Rope, x: Target) -> Result<()> {
    let (frequencies, count) = frequencies(op.table)?;
    let x = x.of("rope", DType::F32)?;
    let gpu = x.gpu();
    let positions = gpu.u32("rope", op.positions)?;
    let heads = op.per_token / op.dim;
    let params = Params {
        x: x.address(),
        positions: positions.address(),
        heads: heads as u32,
        dim: op.dim as u32,
        count: count as u32,
        sign: if op.turn == Turn::Inverse { -1.0 } else { 1.0 },
        frequencies,
    };
    let launch = launch(op.positions.elem_count(), heads);
    // SAFETY: `RopeParams`; `x` has `tokens` rows of `heads` heads, which have the channels.
    unsafe { gpu.launch(Kernel("rope"), launch, &params) }
}

pub(super) fn rope_normed(op: &RopeNormed, x: Target) -> Result<()> {
    let (frequencies, count) = frequencies(op.table)?;
    let x = x.of("rope", DType::F32)?;
    let gpu = x.gpu();
    let positions = gpu.u32("rope", op.positions)?;
    let heads = op.per_token / op.dim;
    let params = NormedParams {
        x: x.address(),
        positions: positions.address(),
        eps: op.eps,
        heads: heads as u32,
        dim: op.dim as u32,
        count: count as u32,
        unused: 0,
        frequencies,
    };
    let launch = launch(op.positions.elem_count(), heads);
    // SAFETY: `RopeNormedParams`, as above.
    unsafe { gpu.launch(Kernel("rope_normed"), launch, &params) }
}
