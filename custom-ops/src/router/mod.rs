//! Which experts a token goes to, and with what weight.

mod cpu;
#[cfg(cuda_kernels)]
pub(crate) mod cuda;
#[cfg(metal_kernels)]
mod metal;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
#[cfg(cuda_kernels)]
use crate::device::cuda::Target;
use crate::device::{host, host_mut, on_metal, timed, Workspace};

/// How the experts of a token are chosen.
#[derive(Clone, Copy, Debug)]
pub enum Choice<'a> {
    /// The `k` highest of `score + bias`: `bias` `[experts]` f32 counts for the choice only.
    TopK {
        /// Experts per token.
        k: usize,
        /// Correction of the load balance, learned without gradient.
        bias: Option<&'a Tensor>,
    },
    /// By token id: row `id` of `table` `[vocab, k]` u32 names the experts.
    Hash {
        /// Experts of every token of the vocabulary.
        table: &'a Tensor,
        /// Token ids `[tokens]` u32.
        tokens: &'a Tensor,
    },
}

impl Choice<'_> {
    /// Experts per token, if it fits `tokens` rows of logits for `experts`.
    ///
    /// # Errors
    /// If not.
    pub(crate) fn check(&self, tokens: usize, experts: usize) -> Result<usize> {
        Ok(match *self {
            Self::TopK { k, bias } => {
                if k > experts {
                    bail!("route: {k} of {experts} experts wanted");
                }
                if let Some(bias) = bias.filter(|b| b.dims() != [experts]) {
                    bail!("route: bias {:?} for {experts} experts", bias.dims());
                }
                k
            }
            Self::Hash { table, tokens: ids } => {
                if ids.dims() != [tokens] {
                    bail!("route: {:?} token ids for {tokens} rows of logits", ids.dims());
                }
                table.dims2()?.1
            }
        })
    }
}

/// `p = sqrt(softplus(logits))`; the chosen experts' weights are `p / Σ p · scale`, without bias.
///
/// Shapes: `logits` `[tokens, experts]` f32 → ids `[tokens, k]` u32, weights `[tokens, k]` f32, by
/// falling score (the table's order for [`Choice::Hash`]). Ties go to the lower expert.
/// Errors: shapes that do not fit, more experts wanted than there are, a token id outside the
/// table (names its row).
/// Source: DeepSeek V4 (`sqrtsoftplus`, `noaux_tc`, hash-routed first layers).
pub fn route(
    logits: &Tensor,
    choice: Choice<'_>,
    scale: f32,
    ws: &Workspace,
) -> Result<(Tensor, Tensor)> {
    let (tokens, experts) = logits.dims2()?;
    let k = choice.check(tokens, experts)?;
    let ids = ws.u32((tokens, k))?;
    let weights = ws.f32((tokens, k))?;
    timed(
        &ids,
        || Ok(("route".to_owned(), 0)),
        || ids.inplace_op1(&Choose { logits, choice, experts, k, weights: &weights, scale }),
    )?;
    if !on_gpu(&ids) {
        timed(
            &weights,
            || Ok(("route".to_owned(), 0)),
            || weights.inplace_op1(&Weigh { logits, ids: &ids, experts, k, scale }),
        )?;
    }
    Ok((ids, weights))
}

struct Choose<'a> {
    logits: &'a Tensor,
    choice: Choice<'a>,
    experts: usize,
    k: usize,
    /// Written too where one launch does both.
    #[cfg_attr(not(cuda_kernels), allow(dead_code))]
    weights: &'a Tensor,
    #[cfg_attr(not(cuda_kernels), allow(dead_code))]
    scale: f32,
}

/// Whether kernels run on this tensor: they choose and weigh at once.
fn on_gpu(tensor: &Tensor) -> bool {
    #[cfg(feature = "cuda-emulator")]
    if emulating() {
        return true;
    }
    tensor.device().is_cuda() || on_metal(tensor.device())
}

impl InplaceOp1 for Choose<'_> {
    fn name(&self) -> &'static str {
        "route"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, out, layout);
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::route(self, Target::emulated(out, layout));
        }
        let out = host_mut::<u32>(self.name(), out, layout)?;
        match self.choice {
            Choice::TopK { bias, .. } => {
                let logits = host::<f32>(self.name(), self.logits)?;
                let bias = bias.map(|b| host::<f32>(self.name(), b)).transpose()?;
                cpu::top_k(&logits, bias.as_deref(), self.experts, self.k, out);
                Ok(())
            }
            Choice::Hash { table, tokens } => {
                let tokens = host::<u32>(self.name(), tokens)?;
                let table = host::<u32>(self.name(), table)?;
                cpu::look_up(&table, &tokens, self.k, self.experts, out)
            }
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::route(self, Target::cuda(out, layout))
    }
}

struct Weigh<'a> {
    logits: &'a Tensor,
    ids: &'a Tensor,
    experts: usize,
    k: usize,
    scale: f32,
}

impl InplaceOp1 for Weigh<'_> {
    fn name(&self) -> &'static str {
        "route_weights"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let out = host_mut::<f32>(self.name(), out, layout)?;
        let logits = host::<f32>(self.name(), self.logits)?;
        let ids = host::<u32>(self.name(), self.ids)?;
        cpu::weigh(&logits, &ids, self.experts, self.k, self.scale, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_score_vector() {
        let want = [0.924_313_39, 0.513_110_6, 1.605_892_2, 0.832_554_61];
        for (logit, want) in [0.3, -1.2, 2.5, 0.0].into_iter().zip(want) {
            assert!((cpu::score(logit) - want).abs() < 1e-6);
        }
        assert_eq!(cpu::score(400.0), 20.0, "softplus is the identity far out");
        assert!(cpu::score(-300.0) >= 0.0);
    }

    #[test]
    fn bias_chooses_but_does_not_weigh() -> Result<()> {
        let ws = Workspace::new(&Device::Cpu);
        let logits = Tensor::new(&[[0.3f32, -1.2, 2.5, 0.0]], &Device::Cpu)?;
        let bias = Tensor::new(&[0f32, 2.0, -2.0, 0.0], &Device::Cpu)?;
        let choice = Choice::TopK { k: 2, bias: Some(&bias) };
        let (ids, weights) = route(&logits, choice, 1.5, &ws)?;
        assert_eq!(ids.to_vec2::<u32>()?, [[1, 0]]);
        let sum = 0.513_110_6 + 0.924_313_39;
        let weights = weights.to_vec2::<f32>()?;
        assert!((weights[0][0] - 1.5 * 0.513_110_6 / sum).abs() < 1e-6);
        assert!((weights[0][1] - 1.5 * 0.924_313_39 / sum).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn ties_go_to_the_lower_expert() -> Result<()> {
        let ws = Workspace::new(&Device::Cpu);
        let logits = Tensor::new(&[[1f32, 2.0, 2.0, 1.0, 2.0]], &Device::Cpu)?;
        let (ids, _) = route(&logits, Choice::TopK { k: 4, bias: None }, 1.0, &ws)?;
        assert_eq!(ids.to_vec2::<u32>()?, [[1, 2, 4, 0]]);
        Ok(())
    }

    #[test]
    fn hash_routing_follows_the_table_and_names_what_is_outside() -> Result<()> {
        let ws = Workspace::new(&Device::Cpu);
        let logits = Tensor::new(&[[0f32, 1.0, 2.0], [0.0, 1.0, 2.0]], &Device::Cpu)?;
        let table = Tensor::new(&[[2u32, 0], [1, 2]], &Device::Cpu)?;
        let tokens = Tensor::new(&[1u32, 0], &Device::Cpu)?;
        let choice = Choice::Hash { table: &table, tokens: &tokens };
        let (ids, _) = route(&logits, choice, 1.0, &ws)?;
        assert_eq!(ids.to_vec2::<u32>()?, [[1, 2], [2, 0]]);

        let tokens = Tensor::new(&[1u32, 2], &Device::Cpu)?;
        let choice = Choice::Hash { table: &table, tokens: &tokens };
        let error = route(&logits, choice, 1.0, &ws).unwrap_err().to_string();
        assert!(error.contains("row 1") && error.contains("token 2"), "{error}");
        Ok(())
    }
}
