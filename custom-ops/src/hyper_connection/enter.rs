//! A sub-layer's whole way in: one launch where a GPU has it, else the ops that it is made of.

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

use super::{hyper_collapse, hyper_expand, hyper_head_mix, hyper_mix, MixParams};
#[cfg(cuda_kernels)]
use crate::device::cuda::{Gpu, Target};
#[cfg(gpu_kernels)]
use crate::device::timed;
use crate::device::Workspace;
#[cfg(cuda_kernels)]
use crate::experts::ExpertsDown;
use crate::{matmul, rms_norm_over, Matrix};

/// What a sub-layer gave, not yet written back to the streams that it came from.
#[derive(Clone, Debug)]
pub struct Due {
    /// Its result `[tokens, hidden]`.
    pub given: Given,
    /// What [`hyper_enter`] gave with its input.
    pub mix: Tensor,
}

/// A sub-layer's result, or its last product, which whoever takes it in may compute on the way.
#[derive(Clone, Debug)]
pub enum Given {
    /// `[tokens, hidden]` f32.
    Value(Tensor),
    /// `W·x`, as [`matmul`] computes it.
    Product {
        /// `[tokens, cols]` f32.
        x: Tensor,
        /// `[hidden, cols]`.
        w: Matrix,
    },
    /// The last products of one token's experts.
    #[cfg(cuda_kernels)]
    Experts(ExpertsDown),
}

impl From<Tensor> for Given {
    fn from(value: Tensor) -> Self {
        Self::Value(value)
    }
}

impl Given {
    /// The result, computed if it was not.
    ///
    /// # Errors
    /// As [`matmul`].
    pub fn compute(&self, ws: &Workspace) -> Result<Tensor> {
        match self {
            Self::Value(value) => Ok(value.clone()),
            Self::Product { x, w } => matmul(x, w, ws),
            #[cfg(cuda_kernels)]
            Self::Experts(down) => down.compute(ws),
        }
    }

    /// Of some of the tokens: `rows` picks theirs of a tensor.
    ///
    /// # Errors
    /// Those of `rows`.
    pub fn select(&self, rows: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Self::Value(value) => Self::Value(rows(value)?),
            Self::Product { x, w } => Self::Product { x: rows(x)?, w: w.clone() },
            // There is but one token.
            #[cfg(cuda_kernels)]
            Self::Experts(down) => Self::Experts(down.clone()),
        })
    }

    #[cfg(gpu_kernels)]
    pub(super) fn value(&self) -> Result<&Tensor> {
        match self {
            Self::Value(value) => Ok(value),
            _ => bail!("hyper_enter: due is a product that nobody computed"),
        }
    }

    #[cfg(gpu_kernels)]
    fn dims(&self) -> Result<[usize; 2]> {
        match self {
            Self::Value(value) => value.dims2().map(|(tokens, hidden)| [tokens, hidden]),
            Self::Product { x, w } => Ok([x.dim(0)?, w.rows()]),
            #[cfg(cuda_kernels)]
            Self::Experts(down) => Ok([1, down.hidden()]),
        }
    }
}

/// The weights of a way in.
#[derive(Clone, Copy, Debug)]
pub struct Entrance<'a> {
    /// `fn`, `[2n + n², n · hidden]`; of the head `[n, n · hidden]`.
    pub projection: &'a Matrix,
    /// `[3]`; of the head `[1]`.
    pub scale: &'a Tensor,
    /// As a row of the projection's result.
    pub base: &'a Tensor,
    /// The sub-layer's own norm, `[hidden]`.
    pub norm: &'a Tensor,
    /// Of that norm.
    pub norm_eps: f64,
    /// Of the mix.
    pub params: MixParams,
}

/// What a sub-layer reads, and the mix to write its result back with.
///
/// First what is `due` is written back to the streams `state`, in place ([`hyper_expand`]); then
/// `mix` as [`hyper_mix`] of `projection · flatten(state)`, and `norm ⊙ x / rms(x)` of
/// `x = Σ pre_i · S_i`.
///
/// Shapes: `state` `[tokens, n, hidden]` f32 → `[tokens, hidden]`, `[tokens, 2n + n²]`. Errors: shapes
/// that do not fit.
/// Source: as [`hyper_mix`].
///
/// A value that is due may come from a frame of `ws` that has ended, if nothing was taken since: see
/// [`Workspace`]. The `x` of a product must not.
pub fn hyper_enter(
    state: &Tensor,
    due: Option<&Due>,
    entrance: Entrance<'_>,
    ws: &Workspace,
) -> Result<(Tensor, Tensor)> {
    let Entrance { projection, scale, base, norm, norm_eps, params } = entrance;
    #[cfg(gpu_kernels)]
    if let Some(entered) = at_once(state, due, entrance, params.width(), ws)? {
        return Ok(entered);
    }
    write_back(state, due, ws)?;
    let raw = matmul(&state.flatten_from(1)?, projection, ws)?;
    let mix = hyper_mix(state, &raw, scale, base, params, ws)?;
    let xs = rms_norm_over(hyper_collapse(state, &mix, ws)?, Some(norm), norm_eps, ws)?;
    Ok((xs, mix))
}

/// The same for the head, from which nothing flows back.
///
/// # Errors
/// As [`hyper_enter`].
pub fn hyper_leave(
    state: &Tensor,
    due: Option<&Due>,
    entrance: Entrance<'_>,
    ws: &Workspace,
) -> Result<Tensor> {
    let Entrance { projection, scale, base, norm, norm_eps, params } = entrance;
    #[cfg(gpu_kernels)]
    if let Some((xs, _)) = at_once(state, due, entrance, params.streams, ws)? {
        return Ok(xs);
    }
    write_back(state, due, ws)?;
    let raw = matmul(&state.flatten_from(1)?, projection, ws)?;
    let mix = hyper_head_mix(state, &raw, scale, base, params, ws)?;
    rms_norm_over(hyper_collapse(state, &mix, ws)?, Some(norm), norm_eps, ws)
}

fn write_back(state: &Tensor, due: Option<&Due>, ws: &Workspace) -> Result<()> {
    due.map_or(Ok(()), |due| hyper_expand(state, &due.given.compute(ws)?, &due.mix))
}

/// Whether a device has kernels that do all of it.
#[cfg(gpu_kernels)]
fn enters_at_once(state: &Tensor, projection: &Matrix) -> Result<bool> {
    #[cfg(metal_kernels)]
    if crate::device::on_metal(state.device()) {
        return super::metal::enters_at_once(state, projection);
    }
    #[cfg(cuda_kernels)]
    if let Some(gpu) = Gpu::of(state.device())? {
        return super::cuda::enters_at_once(&gpu, state, projection);
    }
    Ok(false)
}

/// Whether they also compute what is due.
#[cfg(gpu_kernels)]
fn multiplies_at_once(state: &Tensor, projection: &Matrix, given: &Given) -> Result<bool> {
    #[cfg(metal_kernels)]
    if crate::device::on_metal(state.device()) {
        return Ok(match given {
            Given::Product { w, .. } => super::metal::multiplies_at_once(w),
            _ => false,
        });
    }
    #[cfg(cuda_kernels)]
    if let Some(gpu) = Gpu::of(state.device())? {
        return Ok(super::cuda::spreading_blocks(&gpu, state, projection, given)?.is_some());
    }
    let _ = (state, projection, given);
    Ok(false)
}

/// As few launches as a GPU has kernels for: input and mix (of the head: nothing).
#[cfg(gpu_kernels)]
fn at_once(
    state: &Tensor,
    due: Option<&Due>,
    entrance: Entrance<'_>,
    width: usize,
    ws: &Workspace,
) -> Result<Option<(Tensor, Tensor)>> {
    let (tokens, streams, hidden) = state.dims3()?;
    if !enters_at_once(state, entrance.projection)? {
        return Ok(None);
    }
    let Entrance { projection, scale, base, norm, params, .. } = entrance;
    let due = match due {
        Some(Due { given, mix }) if !multiplies_at_once(state, projection, given)? => {
            Some(Due { given: given.compute(ws)?.into(), mix: mix.clone() })
        }
        _ => due.cloned(),
    };
    let due = due.as_ref();
    let shape = [projection.rows(), projection.cols()];
    let scales = if width == streams { 1 } else { 3 };
    if streams != params.streams || shape != [width, streams * hidden] {
        bail!("hyper_enter: state {:?} with projection {shape:?}", state.dims());
    }
    if scale.dims() != [scales] || base.dims() != [width] || norm.dims() != [hidden] {
        let [scale, base, norm] = [scale, base, norm].map(|t| t.dims().to_vec());
        bail!("hyper_enter: scale {scale:?}, base {base:?}, norm {norm:?} for {width} values");
    }
    if let Some(due) = due {
        let given = due.given.dims()?;
        if given != [tokens, hidden] || due.mix.dims() != [tokens, params.width()] {
            bail!("hyper_enter: due {given:?} with mix {:?}", due.mix.dims());
        }
        if let Given::Product { x, w } = &due.given {
            if x.dims() != [tokens, w.cols()] {
                let w = [w.rows(), w.cols()];
                bail!("hyper_enter: due a product of {:?} with a weight {w:?}", x.dims());
            }
        }
    }
    #[cfg(cuda_kernels)]
    match due {
        Some(_) => super::Errand::run_left(ws)?,
        // Of a pass that has failed.
        None => drop(ws.take_errand()),
    }
    let xs = ws.f32((tokens, hidden))?;
    let mix = ws.f32((tokens, if width == streams { 0 } else { width }))?;
    let enter = Enter {
        state,
        due,
        entrance,
        mix: &mix,
        #[cfg(metal_kernels)]
        partial: ws.f32(super::metal::partial_values(state)?)?,
        #[cfg(cuda_kernels)]
        sums: ws.scratch(super::cuda::sums_bytes(state, due, projection)?)?,
    };
    let (name, product) = match due.map(|due| &due.given) {
        Some(Given::Product { w, .. }) => ("hyper_enter, product", w.byte_len()),
        #[cfg(cuda_kernels)]
        Some(Given::Experts(down)) => ("hyper_enter, experts down", down.byte_len()),
        _ => ("hyper_enter", 0),
    };
    timed(
        &xs,
        || Ok((name.to_owned(), projection.byte_len() + product)),
        || xs.inplace_op1(&enter),
    )?;
    #[cfg(cuda_kernels)]
    if width != streams && !crate::device::on_metal(state.device()) {
        ws.leave_errand(super::Errand { mix: mix.clone(), params });
    }
    Ok(Some((xs, mix)))
}

/// Writes the input; the mix and the streams too.
#[cfg_attr(not(gpu_kernels), allow(dead_code, reason = "for kernels"))]
pub(super) struct Enter<'a> {
    pub(super) state: &'a Tensor,
    pub(super) due: Option<&'a Due>,
    pub(super) entrance: Entrance<'a>,
    pub(super) mix: &'a Tensor,
    /// What blocks of channels leave for the second launch.
    #[cfg(metal_kernels)]
    pub(super) partial: Tensor,
    /// The same of the launch that spreads a product.
    #[cfg(cuda_kernels)]
    pub(super) sums: Option<Tensor>,
}

impl InplaceOp1 for Enter<'_> {
    fn name(&self) -> &'static str {
        "hyper_enter"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, _out: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, _out, _layout);
        #[cfg(feature = "cuda-emulator")]
        if crate::device::cuda::emulating() {
            return super::cuda::enter(self, Target::emulated(_out, _layout));
        }
        bail!("hyper_enter: one launch on a GPU, several ops on a CPU")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        super::cuda::enter(self, Target::cuda(out, layout))
    }
}
