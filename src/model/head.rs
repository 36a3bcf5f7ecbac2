//! From residual streams to logits.

use candle_core::{Result, Tensor};
use candle_ds4_ops::Workspace;

use super::{HyperHead, Linear, RmsNorm, Streams};
use crate::config::Config;
use crate::weights::{self, Weights};

/// Collapses the streams, normalises and scores every token of the vocabulary.
#[derive(Debug)]
pub struct Head {
    streams: HyperHead,
    norm: RmsNorm,
    output: Linear,
}

impl Head {
    /// Loads `output_hc_*`, `output_norm` and `output`.
    ///
    /// # Errors
    /// A tensor that is missing or of the wrong shape or type.
    pub fn load(weights: &Weights, config: &Config) -> weights::Result<Self> {
        let hidden = config.hidden_size;
        Ok(Self {
            streams: HyperHead::load(weights, "output_hc", config)?,
            norm: RmsNorm::load(weights, "output_norm.weight", hidden, config.norm_eps)?,
            output: Linear::new(weights.matrix("output.weight", config.vocab_size, hidden)?),
        })
    }

    /// `[tokens, vocab]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, streams: &Streams, ws: &Workspace) -> Result<Tensor> {
        self.output.forward(&self.streams.leave(streams, &self.norm, ws)?, ws)
    }
}
