//! On NVIDIA GPUs; kernel.cu.

use candle_core::{DType, Result};

use super::RmsNorm;
use crate::device::cuda::{Address, Input, Kernel, Launch, Target};

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    x: Address,
    weight: Address,
    out: Address,
    eps: f64,
    n: u32,
}

pub(super) fn rms_norm(op: &RmsNorm, out: Target) -> Result<()> {
    let out = out.of("rms_norm", DType::F32)?;
    let gpu = out.gpu();
    let x = op.x.map(|x| gpu.f32("rms_norm", x)).transpose()?;
    let weight = op.weight.map(|weight| gpu.f32("rms_norm", weight)).transpose()?;
    let params = Params {
        x: x.as_ref().map_or(out.address(), Input::address),
        weight: weight.as_ref().map_or(Address::NULL, Input::address),
        out: out.address(),
        eps: op.eps,
        n: op.n as u32,
    };
    let launch = Launch::new(op.rows, threads(op.n)).shared(16 * 8);
    // SAFETY: `RmsNormParams`; input and output have `rows` rows of `n`, the weight `n` values.
    unsafe { gpu.launch(Kernel("rms_norm"), launch, &params) }
}

/// Whole warps with some eight values a thread, at most 16 of them.
pub(crate) fn threads(n: usize) -> u32 {
    (n / 8).next_multiple_of(32).clamp(32, 512) as u32
}
