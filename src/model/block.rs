//! One layer: attention, then experts, each inside a hyper-connection.

use candle_core::{Result, Tensor};
use candle_ds4_ops as ops;

use super::{Attention, Experts, HyperConnection, RmsNorm, Step};
use crate::cache::LayerCache;
use crate::config::Config;
use crate::weights::{self, Weights};

/// One transformer layer.
#[derive(Debug)]
pub struct Block {
    attention_mix: HyperConnection,
    attention_norm: RmsNorm,
    attention: Attention,
    experts_mix: HyperConnection,
    experts_norm: RmsNorm,
    experts: Experts,
    span: tracing::Span,
}

impl Block {
    /// Loads layer `layer`.
    ///
    /// # Errors
    /// A tensor that is missing or of the wrong shape or type.
    pub fn load(weights: &Weights, layer: usize, config: &Config) -> weights::Result<Self> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let norm = |part: &str| {
            let name = name(&format!("{part}_norm.weight"));
            RmsNorm::load(weights, &name, config.hidden_size, config.norm_eps)
        };
        Ok(Self {
            attention_mix: HyperConnection::load(weights, &name("hc_attn"), config)?,
            attention_norm: norm("attn")?,
            attention: Attention::load(weights, layer, config)?,
            experts_mix: HyperConnection::load(weights, &name("hc_ffn"), config)?,
            experts_norm: norm("ffn")?,
            experts: Experts::load(weights, layer, config)?,
            span: tracing::debug_span!("layer", layer),
        })
    }

    /// Updates the residual streams `state` `[tokens, streams, hidden]` in place.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device has no memory left.
    pub fn forward(
        &self,
        state: &Tensor,
        step: Step<'_>,
        caches: &mut [&mut LayerCache],
    ) -> Result<()> {
        let _span = self.span.enter();
        let Step { ws, .. } = step;
        {
            let _frame = ws.frame();
            let mix = self.attention_mix.mix(state, ws)?;
            let xs = self.attention_norm.forward(&ops::hyper_collapse(state, &mix, ws)?, ws)?;
            let ys = self.attention.forward(&xs, step, caches)?;
            ops::hyper_expand(state, &ys, &mix)?;
        }
        let _frame = ws.frame();
        let mix = self.experts_mix.mix(state, ws)?;
        let xs = self.experts_norm.forward(&ops::hyper_collapse(state, &mix, ws)?, ws)?;
        let ys = self.experts.forward(&xs, step)?;
        ops::hyper_expand(state, &ys, &mix)
    }
}
