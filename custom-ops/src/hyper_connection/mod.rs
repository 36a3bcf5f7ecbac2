//! Manifold-constrained hyper-connections: several residual streams, mixed by a doubly stochastic
//! matrix.
//!
//! A sub-layer reads `x = Σ pre_i · S_i` from the streams `S` and writes its result `y` back as
//! `S'_k = post_k · y + Σ_j C[j][k] · S_j`. `pre`, `post` and `C` are computed from `S` itself.

mod cpu;
#[cfg(cuda_kernels)]
mod cuda;
mod enter;
#[cfg(cuda_kernels)]
mod errand;
#[cfg(metal_kernels)]
mod metal;
#[cfg(cuda_kernels)]
mod spread;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
#[cfg(cuda_kernels)]
use crate::device::cuda::Target;
use crate::device::{host, host_mut, timed, Workspace};
pub use enter::{hyper_enter, hyper_leave, Due, Entrance, Given};
#[cfg(cuda_kernels)]
pub(crate) use errand::{Errand, MatrixErrand};
#[cfg(cuda_kernels)]
pub(crate) use spread::Spread;

/// The constants of a mix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MixParams {
    /// Residual streams.
    pub streams: usize,
    /// Rounds of Sinkhorn normalisation, the softmax counted as the first.
    pub sinkhorn_iterations: usize,
    /// Added to gates and to the sums that Sinkhorn divides by.
    pub eps: f32,
    /// Of the norm over all streams.
    pub norm_eps: f64,
}

impl MixParams {
    /// Values that one token's mix has: `pre`, `post`, then `C` row by row.
    pub fn width(&self) -> usize {
        (2 + self.streams) * self.streams
    }
}

/// `pre`, `post` and `C` of each token, `[tokens, 2n + n²]`, from the projection
/// `raw = fn · flatten(S)` of the streams.
///
/// With `m = raw / rms(flatten(S))`: `pre_i = σ(m_i · scale_0 + base_i) + eps`,
/// `post_i = 2σ(m_{n+i} · scale_1 + base_{n+i})`, `C = sinkhorn(m_{2n+nj+k} · scale_2 + base)`.
/// The first index of `C` is the source stream, the second the destination.
///
/// Shapes: `state` `[tokens, n, hidden]` · `raw` `[tokens, 2n + n²]` · `scale` `[3]` · `base`
/// `[2n + n²]`, all f32. Errors: shapes that do not fit.
/// Source: mHC (Xie et al., 2025) and DeepSeek V4's reference code.
pub fn hyper_mix(
    state: &Tensor,
    raw: &Tensor,
    scale: &Tensor,
    base: &Tensor,
    params: MixParams,
    ws: &Workspace,
) -> Result<Tensor> {
    let (tokens, streams, _) = state.dims3()?;
    let width = params.width();
    if streams != params.streams || raw.dims() != [tokens, width] {
        bail!("hyper_mix: state {:?} with projection {:?}", state.dims(), raw.dims());
    }
    if scale.dims() != [3] || base.dims() != [width] {
        bail!("hyper_mix: scale {:?}, base {:?} for {width} values", scale.dims(), base.dims());
    }
    let out = ws.f32((tokens, width))?;
    timed(
        &out,
        || Ok(("hyper_mix".to_owned(), 0)),
        || out.inplace_op1(&Mix { state, raw, scale, base, kind: Kind::Layer(params) }),
    )?;
    Ok(out)
}

/// The gates of the head, `[tokens, n]`: `pre_i = σ(m_i · scale + base_i) + eps`, with `m` as in
/// [`hyper_mix`]. There is no way back into the streams, hence no `post` and no `C`.
///
/// Shapes: `raw` `[tokens, n]` · `scale` `[1]` · `base` `[n]`. Errors: shapes that do not fit.
/// Source: DeepSeek V4's reference code.
pub fn hyper_head_mix(
    state: &Tensor,
    raw: &Tensor,
    scale: &Tensor,
    base: &Tensor,
    params: MixParams,
    ws: &Workspace,
) -> Result<Tensor> {
    let (tokens, streams, _) = state.dims3()?;
    let fits = raw.dims() == [tokens, streams] && base.dims() == [streams];
    if streams != params.streams || !fits || scale.dims() != [1] {
        bail!("hyper_head_mix: state {:?} with projection {:?}", state.dims(), raw.dims());
    }
    let out = ws.f32((tokens, streams))?;
    timed(
        &out,
        || Ok(("hyper_mix".to_owned(), 0)),
        || out.inplace_op1(&Mix { state, raw, scale, base, kind: Kind::Head(params) }),
    )?;
    Ok(out)
}

/// What a sub-layer reads: `x = Σ pre_i · S_i`.
///
/// Shapes: `state` `[tokens, n, hidden]` · `mix` `[tokens, ≥ n]`, `pre` first →
/// `[tokens, hidden]`. Errors: shapes that do not fit.
pub fn hyper_collapse(state: &Tensor, mix: &Tensor, ws: &Workspace) -> Result<Tensor> {
    let (tokens, streams, hidden) = state.dims3()?;
    let (rows, width) = mix.dims2()?;
    if rows != tokens || width < streams {
        bail!("hyper_collapse: state {:?} with mix {:?}", state.dims(), mix.dims());
    }
    let out = ws.f32((tokens, hidden))?;
    timed(
        &out,
        || Ok(("hyper_collapse".to_owned(), 0)),
        || out.inplace_op1(&Collapse { state, mix, streams, width, hidden }),
    )?;
    Ok(out)
}

/// Writes a sub-layer's result back, in place: `S_k ← post_k · y + Σ_j C[j][k] · S_j`.
///
/// Shapes: `state` `[tokens, n, hidden]` · `y` `[tokens, hidden]` · `mix` as [`hyper_mix`] gives
/// it. Errors: shapes that do not fit.
pub fn hyper_expand(state: &Tensor, y: &Tensor, mix: &Tensor) -> Result<()> {
    let (tokens, streams, hidden) = state.dims3()?;
    if y.dims() != [tokens, hidden] || mix.dims() != [tokens, (2 + streams) * streams] {
        bail!("hyper_expand: state {:?}, y {:?}, mix {:?}", state.dims(), y.dims(), mix.dims());
    }
    timed(
        state,
        || Ok(("hyper_expand".to_owned(), 0)),
        || state.inplace_op1(&Expand { y, mix, streams, hidden }),
    )
}

enum Kind {
    Layer(MixParams),
    Head(MixParams),
}

struct Mix<'a> {
    state: &'a Tensor,
    raw: &'a Tensor,
    scale: &'a Tensor,
    base: &'a Tensor,
    kind: Kind,
}

impl InplaceOp1 for Mix<'_> {
    fn name(&self) -> &'static str {
        "hyper_mix"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, out, layout);
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::mix(self, Target::emulated(out, layout));
        }
        let out = host_mut::<f32>(self.name(), out, layout)?;
        let state = host::<f32>(self.name(), self.state)?;
        let raw = host::<f32>(self.name(), self.raw)?;
        let scale = host::<f32>(self.name(), self.scale)?;
        let base = host::<f32>(self.name(), self.base)?;
        let per_token = self.state.dim(1)? * self.state.dim(2)?;
        match self.kind {
            Kind::Layer(params) => {
                cpu::mix(&state, &raw, &scale, &base, per_token, &params, out);
            }
            Kind::Head(params) => {
                cpu::head_mix(&state, &raw, &scale, &base, per_token, &params, out);
            }
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::mix(self, Target::cuda(out, layout))
    }
}

struct Collapse<'a> {
    state: &'a Tensor,
    mix: &'a Tensor,
    streams: usize,
    width: usize,
    hidden: usize,
}

impl InplaceOp1 for Collapse<'_> {
    fn name(&self) -> &'static str {
        "hyper_collapse"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, out, layout);
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::collapse(self, Target::emulated(out, layout));
        }
        let out = host_mut::<f32>(self.name(), out, layout)?;
        let state = host::<f32>(self.name(), self.state)?;
        let mix = host::<f32>(self.name(), self.mix)?;
        cpu::collapse(&state, &mix, self.streams, self.width, self.hidden, out);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::collapse(self, Target::cuda(out, layout))
    }
}

struct Expand<'a> {
    y: &'a Tensor,
    mix: &'a Tensor,
    streams: usize,
    hidden: usize,
}

impl InplaceOp1 for Expand<'_> {
    fn name(&self) -> &'static str {
        "hyper_expand"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, state: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, state, layout);
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::expand(self, Target::emulated(state, layout));
        }
        let state = host_mut::<f32>(self.name(), state, layout)?;
        let y = host::<f32>(self.name(), self.y)?;
        let mix = host::<f32>(self.name(), self.mix)?;
        cpu::expand(state, &y, &mix, self.streams, self.hidden);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, state: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::expand(self, Target::cuda(state, layout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn family() -> MixParams {
        MixParams { streams: 4, sinkhorn_iterations: 20, eps: 1e-6, norm_eps: 0.0 }
    }

    /// A mix whose norm is one, so that `raw` is `m`.
    fn mix_of(m: &[f32], scale: [f32; 3], base: &[f32]) -> Result<Vec<f32>> {
        let device = Device::Cpu;
        let ws = Workspace::new(&device);
        let state = Tensor::ones((1, 4, 8), candle_core::DType::F32, &device)?;
        let raw = Tensor::from_slice(m, (1, m.len()), &device)?;
        let scale = Tensor::new(&scale, &device)?;
        let base = Tensor::new(base, &device)?;
        hyper_mix(&state, &raw, &scale, &base, family(), &ws)?.flatten_all()?.to_vec1()
    }

    #[test]
    fn the_mixing_vector() -> Result<()> {
        let m: Vec<f32> = (0..24).map(|i| 0.1 * i as f32 - 1.0).collect();
        let base: Vec<f32> = (0..24).map(|i| 0.05 * ((7 * i) % 5) as f32 - 0.1).collect();
        let got = mix_of(&m, [0.5, 1.5, 0.8], &base)?;
        let want = [
            0.354_344_7,
            0.389_361_8,
            0.425_558_5,
            0.401_313_3, // pre
            0.598_865_7,
            0.598_865_7,
            0.708_687_4,
            0.826_764_8, // post
            0.245_728_4,
            0.261_824_2,
            0.230_622_1,
            0.261_824_2, // C, by source stream
            0.277_92,
            0.230_622_2,
            0.260_834_7,
            0.230_622_1,
            0.245_728_4,
            0.261_824_2,
            0.230_622_1,
            0.261_824_2,
            0.230_622_2,
            0.245_728_4,
            0.277_92,
            0.245_728_4,
        ];
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((got - want).abs() < 3e-7, "value {i}: {got} is not {want}");
        }
        Ok(())
    }

    #[test]
    fn c_is_doubly_stochastic_whatever_the_input() -> Result<()> {
        let m = Tensor::randn(0f32, 1.5, 24, &Device::Cpu)?.to_vec1::<f32>()?;
        let got = mix_of(&m, [1.0; 3], &[0.0; 24])?;
        let c = &got[8..];
        for i in 0..4 {
            let row: f32 = c[4 * i..4 * i + 4].iter().sum();
            let column: f32 = c[i..].iter().step_by(4).sum();
            assert!((column - 1.0).abs() < 1e-4 && (row - 1.0).abs() < 0.05, "{row} {column}");
        }
        Ok(())
    }

    #[test]
    fn the_first_index_of_c_is_the_source_stream() -> Result<()> {
        let device = Device::Cpu;
        let state = Tensor::new(&[[[1f32], [10.0], [100.0], [1000.0]]], &device)?;
        let y = Tensor::new(&[[7f32]], &device)?;
        let mut mix = [0f32; 24];
        mix[4..8].copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        mix[8 + 4 * 3] = 0.5; // C[3][0]: stream 3 flows into stream 0
        mix[8 + 2] = 0.25; // C[0][2]: stream 0 flows into stream 2
        let mix = Tensor::from_slice(&mix, (1, 24), &device)?;
        hyper_expand(&state, &y, &mix)?;
        assert_eq!(state.flatten_all()?.to_vec1::<f32>()?, [507.0, 14.0, 21.25, 28.0]);
        Ok(())
    }
}
