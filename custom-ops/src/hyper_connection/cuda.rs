//! On NVIDIA GPUs, with four streams; kernel*.cu.

use candle_core::{bail, DType, Result, Tensor};

use super::enter::{Due, Enter, Given};
use super::errand::Errand;
use super::spread::{Spread, ROWS, SUMS};
use super::{Collapse, Expand, Kind, Mix};
use crate::blocks::Format;
use crate::device::cuda::{Address, Gpu, Kernel, Launch, Scratch, ScratchSize, Target};
use crate::experts::cuda::one as experts;
use crate::matmul::cuda as matmul;
use crate::Matrix;

/// The channels that a cluster with a token on its way in has threads for.
const ENTER_HIDDEN: usize = 4096;
/// Tokens from which on the separate launches are faster.
const ENTER_TOKENS: usize = 64;

#[repr(C)]
#[derive(Clone, Copy)]
struct EnterParams {
    state: Address,
    y: Address,
    due: Address,
    projection: Address,
    scale: Address,
    base: Address,
    norm: Address,
    mix: Address,
    out: Address,
    tokens: u32,
    hidden: u32,
    eps: f32,
    mix_norm_eps: f32,
    norm_eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct EnteredParams {
    state: Address,
    sums: Address,
    scale: Address,
    base: Address,
    norm: Address,
    mix: Address,
    out: Address,
    hidden: u32,
    blocks: u32,
    eps: f32,
    mix_norm_eps: f32,
    norm_eps: f32,
    unused: u32,
}

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

/// Whether the kernels that do everything at once are for this.
pub(super) fn enters_at_once(gpu: &Gpu, state: &Tensor, projection: &Matrix) -> Result<bool> {
    let (tokens, streams, hidden) = state.dims3()?;
    let fits = streams == 4 && hidden.is_multiple_of(512) && hidden <= ENTER_HIDDEN;
    let clusters = gpu.capability() >= (9, 0) && (1..ENTER_TOKENS).contains(&tokens);
    Ok(fits && clusters && projection.format() == Format::F16)
}

/// If what is due is computed by a launch that spreads it over the streams, the blocks of that launch.
pub(super) fn spreading_blocks(
    gpu: &Gpu,
    state: &Tensor,
    projection: &Matrix,
    given: &Given,
) -> Result<Option<usize>> {
    let (tokens, streams, hidden) = state.dims3()?;
    if (tokens, streams, projection.rows()) != (1, 4, ROWS) {
        return Ok(None);
    }
    Ok(match given {
        Given::Value(_) => None,
        Given::Product { w, .. } if w.rows() == hidden => matmul::spreading_blocks(gpu, w),
        Given::Product { .. } => None,
        Given::Experts(_) => experts::spreading_blocks(gpu, hidden),
    })
}

/// Scratch for what such a launch leaves.
pub(super) fn sums_bytes(state: &Tensor, due: Option<&Due>, projection: &Matrix) -> Result<usize> {
    let (Some(gpu), Some(due)) = (Gpu::of(state.device())?, due) else { return Ok(0) };
    let blocks = spreading_blocks(&gpu, state, projection, &due.given)?;
    Ok(blocks.map_or(0, |blocks| ScratchSize::default().add(4 * SUMS * blocks).bytes()))
}

/// One token whose due is a product: the launch that computes it spreads it.
fn enter_spread(op: &Enter, due: &Due, blocks: usize, out: Target) -> Result<()> {
    let name = "hyper_enter";
    let (_, _, hidden) = op.state.dims3()?;
    let entrance = op.entrance;
    let out = out.of(name, DType::F32)?;
    let gpu = out.gpu();
    let [state, mix, old] = [op.state, op.mix, &due.mix].map(|tensor| gpu.f32(name, tensor));
    let (state, mix, old) = (state?, mix?, old?);
    let [scale, base, norm] =
        [entrance.scale, entrance.base, entrance.norm].map(|tensor| gpu.f32(name, tensor));
    let (scale, base, norm) = (scale?, base?, norm?);
    let sums = Scratch::new(name, &gpu, op.sums.as_ref())?.take(name, 4 * SUMS * blocks)?;
    // The streams are written through their address while their storage is only borrowed: the borrow
    // guards the host's struct.
    let spread = Spread {
        state: state.address(),
        due: old.address(),
        projection: entrance.projection.cuda(name, &gpu)?.plane[0],
        sums,
        hidden: hidden as u32,
        blocks: blocks as u32,
    };
    match &due.given {
        Given::Value(_) => bail!("hyper_enter: a value is not spread"),
        Given::Product { x, w } => matmul::spread(&gpu, gpu.f32(name, x)?.address(), w, spread)?,
        Given::Experts(down) => experts::spread(&gpu, down, spread)?,
    }
    let params = EnteredParams {
        state: state.address(),
        sums,
        scale: scale.address(),
        base: base.address(),
        norm: norm.address(),
        mix: mix.address(),
        out: out.address(),
        hidden: hidden as u32,
        blocks: blocks as u32,
        eps: entrance.params.eps,
        mix_norm_eps: entrance.params.norm_eps as f32,
        norm_eps: entrance.norm_eps as f32,
        unused: 0,
    };
    let launch = Launch::new(hidden.div_ceil(256), 512).shared(4 * SUMS);
    // SAFETY: `HyperEnteredParams`; shapes were checked by the op.
    unsafe { gpu.launch(Kernel("hyper_entered"), launch, &params) }
}

pub(super) fn enter(op: &Enter, out: Target) -> Result<()> {
    let name = "hyper_enter";
    if let Some(due) = op.due.filter(|due| !matches!(due.given, Given::Value(_))) {
        let gpu = Gpu::of(op.state.device())?;
        let of = |gpu| spreading_blocks(&gpu, op.state, op.entrance.projection, &due.given);
        if let Some(blocks) = gpu.map(of).transpose()?.flatten() {
            return enter_spread(op, due, blocks, out);
        }
    }
    let (tokens, streams, hidden) = op.state.dims3()?;
    let entrance = op.entrance;
    let out = out.of(name, DType::F32)?;
    let gpu = out.gpu();
    let [state, scale, base, norm] = [op.state, entrance.scale, entrance.base, entrance.norm]
        .map(|tensor| gpu.f32(name, tensor));
    let (state, scale, base, norm) = (state?, scale?, base?, norm?);
    let is_head = entrance.projection.rows() == streams;
    let mix = if is_head { None } else { Some(gpu.f32(name, op.mix)?) };
    let due = match op.due {
        Some(due) => Some((gpu.f32(name, due.given.value()?)?, gpu.f32(name, &due.mix)?)),
        None => None,
    };
    let params = EnterParams {
        state: state.address(),
        y: due.as_ref().map_or(Address::NULL, |(y, _)| y.address()),
        due: due.as_ref().map_or(Address::NULL, |(_, mix)| mix.address()),
        projection: entrance.projection.cuda(name, &gpu)?.plane[0],
        scale: scale.address(),
        base: base.address(),
        norm: norm.address(),
        mix: mix.as_ref().map_or(Address::NULL, |mix| mix.address()),
        out: out.address(),
        tokens: tokens as u32,
        hidden: hidden as u32,
        eps: entrance.params.eps,
        mix_norm_eps: entrance.params.norm_eps as f32,
        norm_eps: entrance.norm_eps as f32,
    };
    // Clusters of 16 are Hopper's: its groups of multiprocessors have room for them.
    let (blocks, threads) = if gpu.capability() == (9, 0) { (16, 512) } else { (8, 1024) };
    // As many clusters as run at once; each goes on to further tokens.
    let clusters = tokens.min((gpu.multiprocessors() / blocks).max(1));
    let launch = Launch::new(clusters * blocks, threads)
        .cluster(blocks as u32)
        .shared(4 * (4 * hidden / blocks + 1280));
    let kernel = Kernel(match (is_head, blocks) {
        (false, 16) => "hyper_enter_16",
        (false, _) => "hyper_enter_8",
        (true, 16) => "hyper_leave_16",
        (true, _) => "hyper_leave_8",
    });
    // SAFETY: `HyperEnterParams`; shapes were checked by the op, the format by `enters_at_once`. The streams
    // and the mix are written through addresses while their storage is only borrowed: the borrow guards
    // the host's struct.
    unsafe { gpu.launch(kernel, launch, &params) }
}

/// The matrices that no other launch has made.
pub(super) fn matrix(errand: &Errand, mix: Target) -> Result<()> {
    let mix = mix.of("hyper_matrix", DType::F32)?;
    let params = errand.at(mix.address())?;
    // SAFETY: `HyperMatrixParams` is the errand; the mix has as many tokens as it says.
    unsafe { mix.gpu().launch(Kernel("hyper_matrix"), Launch::new(1, 512), &params) }
}

fn check(streams: usize) -> Result<()> {
    if streams != 4 {
        bail!("hyper-connection: no CUDA kernel for {streams} streams, only for 4");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_struct_is_the_kernels() {
        use std::mem::{offset_of, size_of};
        assert_eq!((size_of::<EnterParams>(), offset_of!(EnterParams, tokens)), (96, 72));
        assert_eq!((size_of::<EnteredParams>(), offset_of!(EnteredParams, hidden)), (80, 56));
    }
}
