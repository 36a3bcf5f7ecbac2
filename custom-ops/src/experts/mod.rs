//! The mixture-of-experts feed-forward network in one op.

mod cpu;
#[cfg(cuda_kernels)]
pub(crate) mod cuda;
mod groups;
#[cfg(metal_kernels)]
mod metal;
#[cfg(cuda_kernels)]
mod one;
#[cfg(metal_kernels)]
mod routed;

#[cfg(cuda_kernels)]
pub use one::ExpertsDown;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
#[cfg(cuda_kernels)]
use crate::device::cuda::{Gpu, Target};
use crate::device::{host, host_mut, timed, Workspace};
use crate::hyper_connection::Given;
use crate::router::{route, Choice};
use crate::{matmuls, Matrix};

/// The weights of a gated feed-forward network, or of a stack of them.
///
/// `gate` and `up` are `[n, inter, hidden]`, `down` is `[n, hidden, inter]`; `down` may be in
/// another block format than the other two.
#[derive(Clone, Copy)]
pub struct Mlp<'a> {
    /// Named W1 in the paper's code.
    pub gate: &'a Matrix,
    /// Named W3 in the paper's code.
    pub up: &'a Matrix,
    /// Named W2 in the paper's code.
    pub down: &'a Matrix,
}

/// `out[t] = Σ_s F(ids[t, s], x[t], weights[t, s]) + F(shared, x[t], 1)`, where
/// `F(e, x, w) = W2[e]·(silu(g)·u·w)`, `g = min(W1[e]·x, clamp)`, `u = W3[e]·x` clamped to
/// `±clamp`, `silu(g) = g/(1 + exp(−g))`.
///
/// Shapes: `x` `[tokens, hidden]` f32 · `routed` stacks of `n` experts · `ids` `[tokens, k]` u32,
/// repeats allowed · `weights` `[tokens, k]` f32 · `shared` single matrices, of any width · `clamp`
/// positive, infinite for none · result `[tokens, hidden]`.
/// Errors: shapes that do not fit each other (names both); an id that is not below `n` (names
/// token, slot and id).
/// Source: DeepSeek V4 paper and model card: clamped SwiGLU experts, the route's weight applied
/// before the last product.
///
/// On the CPU each product follows the order of [`crate::matmul`], and the additions of a token run
/// over its slots in order with the shared expert last, so that a token's values do not depend on
/// its batch. The bytes of each chosen expert are read once a call.
///
/// On NVIDIA GPUs up to 32 tokens of the 2-bit model go through their experts as signed bytes with an
/// f32 scale for 32; all else as halves, on the matrix units. A chosen expert that is not there makes its
/// token's values NaN.
pub fn experts(
    x: &Tensor,
    routed: Mlp,
    ids: &Tensor,
    weights: &Tensor,
    shared: Option<Mlp>,
    clamp: f32,
    ws: &Workspace,
) -> Result<Tensor> {
    let (tokens, hidden) = x.dims2()?;
    check("routed", routed, routed.gate.stack(), hidden)?;
    if let Some(shared) = shared {
        check("shared", shared, 1, hidden)?;
    }
    let (ids_dims, weights_dims) = (ids.dims2()?, weights.dims2()?);
    if ids_dims.0 != tokens || ids_dims != weights_dims {
        bail!("experts: ids {ids_dims:?} and weights {weights_dims:?} for {tokens} token(s)");
    }
    if clamp.is_nan() || clamp <= 0.0 {
        bail!("experts: the clamp must be above 0, or infinite for none, got {clamp}");
    }
    #[cfg(cuda_kernels)]
    if on_gpu_at_once(x, routed, shared, ids_dims.1)? {
        let products = match shared {
            Some(shared) => matmuls(x, &[shared.gate, shared.up], ws)?,
            None => Vec::new(),
        };
        let shared = shared.map(|shared| (shared, &products[..]));
        return one::one(x, routed, one::Route::Chosen { ids, weights }, shared, clamp, ws)?
            .compute(ws);
    }
    let out = ws.f32((tokens, hidden))?;
    #[cfg(metal_kernels)]
    let scratch = metal::Scratch::new(routed, ids, shared, ws)?;
    #[allow(unused_mut, reason = "scratch is for GPUs")]
    let mut op = Experts {
        x,
        routed,
        ids,
        weights,
        shared,
        clamp,
        #[cfg(metal_kernels)]
        scratch,
        #[cfg(cuda_kernels)]
        cuda_scratch: None,
    };
    #[cfg(cuda_kernels)]
    if let Some(gpu) = Gpu::of(x.device())? {
        op.cuda_scratch = ws.scratch(cuda::scratch_bytes(&gpu, &op, tokens, ids_dims.1))?;
    }
    timed(&out, || class_of(routed, ids, shared), || out.inplace_op1(&op))?;
    Ok(out)
}

/// [`experts`] that the router chooses: [`route`] by the logits `router · x[t]`, the weights' sum `scale`.
///
/// The last products may be left to whoever takes the result in.
///
/// Shapes: `router` `[n, hidden]`; else as [`experts`]. Errors: as [`route`] and [`experts`].
/// Source: as those.
#[allow(clippy::too_many_arguments)]
pub fn routed_experts(
    x: &Tensor,
    router: &Matrix,
    choice: Choice<'_>,
    scale: f32,
    routed: Mlp,
    shared: Option<Mlp>,
    clamp: f32,
    ws: &Workspace,
) -> Result<Given> {
    #[cfg(metal_kernels)]
    if crate::device::on_metal(x.device()) {
        let (tokens, hidden) = x.dims2()?;
        let k = choice.check(tokens, router.rows())?;
        if metal::routes_itself(tokens, k, router, routed, shared) {
            check("routed", routed, router.rows(), hidden)?;
            shared.map_or(Ok(()), |shared| check("shared", shared, 1, hidden))?;
            if clamp.is_nan() || clamp <= 0.0 {
                bail!("experts: the clamp must be above 0, or infinite for none, got {clamp}");
            }
            let mut weights = vec![router];
            weights.extend(shared.iter().flat_map(|shared| [shared.gate, shared.up]));
            let products = matmuls(x, &weights, ws)?;
            let of = routed::Routed {
                x,
                logits: &products[0],
                choice,
                k,
                scale,
                routed,
                shared: shared.map(|shared| (shared, &products[1..])),
                clamp,
                scratch: routed::Scratch::new(tokens, k, routed, shared, ws)?,
            };
            return of.run(ws).map(Given::Value);
        }
    }
    #[cfg(cuda_kernels)]
    {
        let (tokens, hidden) = x.dims2()?;
        let k = choice.check(tokens, router.rows())?;
        if on_gpu_at_once(x, routed, shared, k)? {
            check("routed", routed, router.rows(), hidden)?;
            let mut weights = vec![router];
            weights.extend(shared.iter().flat_map(|shared| [shared.gate, shared.up]));
            let products = matmuls(x, &weights, ws)?;
            let shared = shared.map(|shared| (shared, &products[1..]));
            let route = one::Route::Choose { logits: &products[0], choice, k, scale };
            return Ok(Given::Experts(one::one(x, routed, route, shared, clamp, ws)?));
        }
    }
    let logits = matmuls(x, &[router], ws)?.swap_remove(0);
    let (ids, weights) = route(&logits, choice, scale, ws)?;
    experts(x, routed, &ids, &weights, shared, clamp, ws).map(Given::Value)
}

/// Whether the kernels for one token are for this.
#[cfg(cuda_kernels)]
fn on_gpu_at_once(x: &Tensor, routed: Mlp, shared: Option<Mlp>, k: usize) -> Result<bool> {
    Ok(x.dim(0)? == 1 && Gpu::of(x.device())?.is_some() && cuda::one::fits(routed, shared, k))
}

/// Gate and up's format and down's, with the bytes of the experts that are chosen at all.
fn class_of(routed: Mlp, ids: &Tensor, shared: Option<Mlp>) -> Result<(String, usize)> {
    let mut chosen = ids.flatten_all()?.to_vec1::<u32>()?;
    chosen.sort_unstable();
    chosen.dedup();
    let bytes = |mlp: Mlp| mlp.gate.byte_len() + mlp.up.byte_len() + mlp.down.byte_len();
    let of_chosen = bytes(routed) / routed.gate.stack().max(1) * chosen.len();
    let name = format!("experts {} / {}", routed.gate.format(), routed.down.format());
    Ok((name, of_chosen + shared.map_or(0, bytes)))
}

/// Refuses weights that are not `[n, inter, hidden]`, twice, and `[n, hidden, inter]`.
fn check(what: &str, mlp: Mlp, n: usize, hidden: usize) -> Result<()> {
    let inter = mlp.gate.rows();
    let wanted = [
        ("gate", mlp.gate, [n, inter, hidden]),
        ("up", mlp.up, [n, inter, hidden]),
        ("down", mlp.down, [n, hidden, inter]),
    ];
    for (name, weight, wanted) in wanted {
        let shape = [weight.stack(), weight.rows(), weight.cols()];
        if shape != wanted {
            bail!("experts: {what} {name} is {shape:?}, not {wanted:?}");
        }
    }
    Ok(())
}

struct Experts<'a> {
    x: &'a Tensor,
    routed: Mlp<'a>,
    ids: &'a Tensor,
    weights: &'a Tensor,
    shared: Option<Mlp<'a>>,
    clamp: f32,
    #[cfg(metal_kernels)]
    scratch: metal::Scratch,
    #[cfg(cuda_kernels)]
    cuda_scratch: Option<Tensor>,
}

impl InplaceOp1 for Experts<'_> {
    fn name(&self) -> &'static str {
        "experts"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, out, layout);
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::experts(self, Target::emulated(out, layout));
        }
        let out = host_mut::<f32>(self.name(), out, layout)?;
        let x = host::<f32>(self.name(), self.x)?;
        let ids = host::<u32>(self.name(), self.ids)?;
        let weights = host::<f32>(self.name(), self.weights)?;
        let (n, k) = (self.routed.gate.stack(), self.ids.dim(1)?);
        for (pair, &id) in ids.iter().enumerate() {
            if id as usize >= n {
                let (token, slot) = (pair / k, pair % k);
                bail!("experts: token {token}, slot {slot} chose expert {id} of {n}");
            }
        }
        let route = cpu::Route { ids: &ids, weights: &weights, k, n };
        let routed = cpu::Network::new(self.name(), self.routed)?;
        let shared = self.shared.map(|mlp| cpu::Network::new(self.name(), mlp)).transpose()?;
        let hidden = self.routed.gate.cols();
        cpu::experts(&x, hidden, route, &routed, shared.as_ref(), self.clamp, out);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::experts(self, Target::cuda(out, layout))
    }
}

#[cfg(test)]
mod tests;
