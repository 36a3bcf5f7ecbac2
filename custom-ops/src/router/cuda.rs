//! On NVIDIA GPUs: choice and weights in one launch; kernel.cu.

use candle_core::{bail, DType, Result};

use super::{Choice, Choose};
use crate::device::cuda::{Address, Input, Kernel, Launch, Target};

/// Experts that a warp's lanes can tick off, and slots that they can remember.
const MAX_EXPERTS: usize = 1024;
const MAX_CHOSEN: usize = 32;

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    logits: Address,
    bias: Address,
    table: Address,
    tokens: Address,
    ids: Address,
    weights: Address,
    count: u32,
    experts: u32,
    k: u32,
    vocab: u32,
    scale: f32,
}

pub(super) fn route(op: &Choose, ids: Target) -> Result<()> {
    let (experts, k) = (op.experts, op.k);
    if experts > MAX_EXPERTS || k > MAX_CHOSEN {
        bail!(
            "route: no CUDA kernel chooses {k} of {experts} experts, at most {MAX_CHOSEN} of \
             {MAX_EXPERTS}"
        );
    }
    let ids = ids.of("route", DType::U32)?;
    let gpu = ids.gpu();
    let logits = gpu.f32("route", op.logits)?;
    let weights = gpu.f32("route", op.weights)?;
    let (bias, table, tokens) = match op.choice {
        Choice::TopK { bias, .. } => {
            (bias.map(|bias| gpu.f32("route", bias)).transpose()?, None, None)
        }
        Choice::Hash { table, tokens } => {
            (None, Some(gpu.u32("route", table)?), Some(gpu.u32("route", tokens)?))
        }
    };
    let vocab = match op.choice {
        Choice::Hash { table, .. } => table.dim(0)?,
        Choice::TopK { .. } => 0,
    };
    let address = |input: &Option<Input>| input.as_ref().map_or(Address::NULL, Input::address);
    let count = op.logits.dim(0)?;
    let params = Params {
        logits: logits.address(),
        bias: address(&bias),
        table: address(&table),
        tokens: address(&tokens),
        ids: ids.address(),
        weights: weights.address(),
        count: count as u32,
        experts: experts as u32,
        k: k as u32,
        vocab: vocab as u32,
        scale: op.scale,
    };
    // SAFETY: `RouteParams`; the op has checked the shapes, and nothing else reads the weights yet.
    unsafe { gpu.launch(Kernel("route"), Launch::new(count.div_ceil(4), 128), &params) }
}
