//! One layer: attention, then experts, each inside a hyper-connection.

use candle_core::Result;

use super::{Attention, Experts, HyperConnection, RmsNorm, Step, Streams};
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

    /// Leads the residual streams through both sub-layers; what the second one gives is due when the
    /// frame of `ws` ends, and must be taken in before anything else is taken from `ws`.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device has no memory left.
    pub fn forward(
        &self,
        streams: &mut Streams,
        step: Step<'_>,
        caches: &mut [&mut LayerCache],
    ) -> Result<()> {
        let _span = self.span.enter();
        let Step { ws, .. } = step;
        let _frame = ws.frame();
        let xs = self.attention_mix.enter(streams, &self.attention_norm, ws)?;
        streams.give(self.attention.forward(&xs, step, caches)?)?;
        let xs = self.experts_mix.enter(streams, &self.experts_norm, ws)?;
        streams.give(self.experts.forward(&xs, step)?)
    }
}
