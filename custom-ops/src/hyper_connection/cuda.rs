//! On NVIDIA GPUs, with four streams; kernel.cu.

use candle_core::{bail, DType, Result};

use super::{Collapse, Expand, Kind, Mix};
use crate::device::cuda::{Address, Kernel, Launch, Target};

#[repr(C)]
#[derive(Clone, Copy)]
struct MixKernelParams {
    state: Address,
    raw: Address,
    scale: Address,
    base: Address,
    out: Address,
    norm_eps: f64,
    per_token: u32,
    iterations: u32,
    eps: f32,
    is_head: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    state: Address,
    mix: Address,
    y: Address,
    out: Address,
    hidden: u32,
    width: u32,
}

pub(super) fn mix(op: &Mix, out: Target) -> Result<()> {
    let (tokens, streams, hidden) = op.state.dims3()?;
    check(streams)?;
    let (Kind::Layer(params) | Kind::Head(params)) = op.kind;
    let out = out.of("hyper_mix", DType::F32)?;
    let gpu = out.gpu();
    let [state, raw] = [op.state, op.raw].map(|tensor| gpu.f32("hyper_mix", tensor));
    let [scale, base] = [op.scale, op.base].map(|tensor| gpu.f32("hyper_mix", tensor));
    let (state, raw, scale, base) = (state?, raw?, scale?, base?);
    let params = MixKernelParams {
        state: state.address(),
        raw: raw.address(),
        scale: scale.address(),
        base: base.address(),
        out: out.address(),
        norm_eps: params.norm_eps,
        per_token: (streams * hidden) as u32,
        iterations: params.sinkhorn_iterations as u32,
        eps: params.eps,
        is_head: u32::from(matches!(op.kind, Kind::Head(_))),
    };
    let threads = crate::rms_norm::cuda_threads(streams * hidden);
    // SAFETY: `HyperMixParams`; the op has checked the shapes.
    unsafe { gpu.launch(Kernel("hyper_mix"), Launch::new(tokens, threads).shared(16 * 8), &params) }
}

pub(super) fn collapse(op: &Collapse, out: Target) -> Result<()> {
    check(op.streams)?;
    let out = out.of("hyper_collapse", DType::F32)?;
    let gpu = out.gpu();
    let state = gpu.f32("hyper_collapse", op.state)?;
    let mix = gpu.f32("hyper_collapse", op.mix)?;
    let params = Params {
        state: state.address(),
        mix: mix.address(),
        y: Address::NULL,
        out: out.address(),
        hidden: op.hidden as u32,
        width: op.width as u32,
    };
    let launch = Launch::new(op.state.dim(0)?, 256).grid_y(op.hidden.div_ceil(256));
    // SAFETY: `HyperParams`; the op has checked the shapes.
    unsafe { gpu.launch(Kernel("hyper_collapse"), launch, &params) }
}

pub(super) fn expand(op: &Expand, state: Target) -> Result<()> {
    check(op.streams)?;
    let state = state.of("hyper_expand", DType::F32)?;
    let gpu = state.gpu();
    let y = gpu.f32("hyper_expand", op.y)?;
    let mix = gpu.f32("hyper_expand", op.mix)?;
    let params = Params {
        state: state.address(),
        mix: mix.address(),
        y: y.address(),
        out: Address::NULL,
        hidden: op.hidden as u32,
        width: ((2 + op.streams) * op.streams) as u32,
    };
    let launch = Launch::new(op.y.dim(0)?, 256).grid_y(op.hidden.div_ceil(256));
    // SAFETY: `HyperParams`; the op has checked the shapes.
    unsafe { gpu.launch(Kernel("hyper_expand"), launch, &params) }
}

fn check(streams: usize) -> Result<()> {
    if streams != 4 {
        bail!("hyper-connection: no CUDA kernel for {streams} streams, only for 4");
    }
    Ok(())
}
