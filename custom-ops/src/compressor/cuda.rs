//! On NVIDIA GPUs; kernel.cu.

use candle_core::{DType, Result};

use super::Pool;
use crate::device::cuda::{Address, Batch, Kernel, Launch, Rings, Target};

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    values: Address,
    gates: Address,
    bias: Address,
    out: Address,
    past_values: Rings,
    past_gates: Rings,
    batch: Batch,
    ratio: u32,
    overlap: u32,
    width: u32,
    dim: u32,
    per_sequence: u32,
}

pub(super) fn pool(op: &Pool, out: Target) -> Result<()> {
    let name = "pool";
    let out = out.of(name, DType::F32)?;
    let gpu = out.gpu();
    let (values, gates) = (gpu.f32(name, op.values)?, gpu.f32(name, op.gates)?);
    let bias = gpu.f32(name, op.ape)?;
    let (past_values, _values) = Rings::new(name, &gpu, op.states.iter().map(|s| &s.values))?;
    let (past_gates, _gates) = Rings::new(name, &gpu, op.states.iter().map(|s| &s.gates))?;
    let (batch, _table) = Batch::new(name, &gpu, op.batch)?;
    let ratio = op.pooling.ratio;
    let dim = if op.pooling.overlap { op.width / 2 } else { op.width };
    let params = Params {
        values: values.address(),
        gates: gates.address(),
        bias: bias.address(),
        out: out.address(),
        past_values,
        past_gates,
        batch,
        ratio: ratio as u32,
        overlap: u32::from(op.pooling.overlap),
        width: op.width as u32,
        dim: dim as u32,
        per_sequence: u32::from(op.batch.is_fixed()),
    };
    let launch = Launch::new(op.batch.window_rows(ratio), 128).grid_y(dim.div_ceil(128));
    // SAFETY: `PoolParams`; the op has checked shapes, and that the rings reach back far enough.
    unsafe { gpu.launch(Kernel("pool"), launch, &params) }
}
