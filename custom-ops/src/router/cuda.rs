//! On NVIDIA GPUs: choice and weights in one launch; kernel.cu.

use candle_core::{bail, DType, Result, Tensor};

use super::{Choice, Choose};
use crate::device::cuda::{Address, Gpu, Input, Kernel, Launch, Target};

/// Experts that a warp's lanes can tick off, and slots that they can remember.
const MAX_EXPERTS: usize = 1024;
const MAX_CHOSEN: usize = 32;

/// Mirrors `Routing` of include/cuda/route.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Routing {
    logits: Address,
    bias: Address,
    table: Address,
    tokens: Address,
    experts: u32,
    k: u32,
    vocab: u32,
    scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    routing: Routing,
    ids: Address,
    weights: Address,
    count: u32,
}

impl Routing {
    /// Of no token.
    pub(crate) const NONE: Self = Self {
        logits: Address::NULL,
        bias: Address::NULL,
        table: Address::NULL,
        tokens: Address::NULL,
        experts: 0,
        k: 0,
        vocab: 0,
        scale: 0.0,
    };

    /// The parameter for a choice of `k` by `logits` `[tokens, experts]`, with what keeps it alive.
    ///
    /// # Errors
    /// More experts or slots than kernels have, or an input that is elsewhere.
    pub(crate) fn new<'a>(
        gpu: &Gpu,
        logits: &'a Tensor,
        choice: Choice<'a>,
        k: usize,
        scale: f32,
    ) -> Result<(Self, Vec<Input<'a>>)> {
        let experts = logits.dim(1)?;
        if experts > MAX_EXPERTS || k > MAX_CHOSEN {
            bail!(
                "route: no CUDA kernel chooses {k} of {experts} experts, at most {MAX_CHOSEN} of \
                 {MAX_EXPERTS}"
            );
        }
        let mut held = vec![gpu.f32("route", logits)?];
        let mut hold = |input: Input<'a>| {
            let address = input.address();
            held.push(input);
            address
        };
        let (mut bias, mut table, mut tokens, mut vocab) =
            (Address::NULL, Address::NULL, Address::NULL, 0);
        match choice {
            Choice::TopK { bias: of, .. } => {
                if let Some(of) = of {
                    bias = hold(gpu.f32("route", of)?);
                }
            }
            Choice::Hash { table: rows, tokens: ids } => {
                table = hold(gpu.u32("route", rows)?);
                tokens = hold(gpu.u32("route", ids)?);
                vocab = rows.dim(0)?;
            }
        }
        let logits = held[0].address();
        let (experts, k, vocab) = (experts as u32, k as u32, vocab as u32);
        Ok((Self { logits, bias, table, tokens, experts, k, vocab, scale }, held))
    }
}

pub(super) fn route(op: &Choose, ids: Target) -> Result<()> {
    let ids = ids.of("route", DType::U32)?;
    let gpu = ids.gpu();
    let weights = gpu.f32("route", op.weights)?;
    let (routing, _held) = Routing::new(&gpu, op.logits, op.choice, op.k, op.scale)?;
    let count = op.logits.dim(0)?;
    let params =
        Params { routing, ids: ids.address(), weights: weights.address(), count: count as u32 };
    // SAFETY: `RouteParams`; the op has checked the shapes, and nothing else reads the weights yet.
    unsafe { gpu.launch(Kernel("route"), Launch::new(count.div_ceil(4), 128), &params) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_structs_are_the_headers() {
        assert_eq!((size_of::<Routing>(), size_of::<Params>()), (48, 72));
    }
}
