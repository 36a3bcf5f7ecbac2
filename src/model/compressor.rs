//! Windows of tokens become rows that are kept for ever.

use candle_core::Tensor;
use candle_ds4_ops::{Compression, Finish, Pooling, RopeTable, Rounding};

use super::{Linear, RmsNorm};
use crate::cache::CompressorCache;
use crate::config::Config;
use crate::weights::{self, Weights};

/// Pools each window of tokens into one row, with learned weights per channel.
#[derive(Debug)]
pub struct Compressor {
    values: Linear,
    gates: Linear,
    /// Bias of the gates by place in the window ("ape").
    bias: Tensor,
    norm: RmsNorm,
    pooling: Pooling,
    rope: RopeTable,
    rounding: Rounding,
}

impl Compressor {
    /// Loads `{prefix}_kv`, `_gate`, `_ape` and `_norm`, for rows of `dim` values.
    ///
    /// # Errors
    /// A tensor that is missing or of the wrong shape or type.
    pub fn load(
        weights: &Weights,
        prefix: &str,
        dim: usize,
        pooling: Pooling,
        rope: &RopeTable,
        rounding: Rounding,
        config: &Config,
    ) -> weights::Result<Self> {
        let name = |part: &str| format!("{prefix}_{part}.weight");
        let width = pooling.width(dim);
        let hidden = config.hidden_size;
        Ok(Self {
            values: Linear::new(weights.matrix(&name("kv"), width, hidden)?),
            gates: Linear::new(weights.matrix(&name("gate"), width, hidden)?),
            bias: weights.table(&name("ape"), pooling.ratio, width)?,
            norm: RmsNorm::load(weights, &name("norm"), dim, config.norm_eps)?,
            pooling,
            rope: rope.clone(),
            rounding,
        })
    }

    /// What pools and what weighs it, as layers on the same activations.
    pub fn projections(&self) -> [&Linear; 2] {
        [&self.values, &self.gates]
    }

    /// The way of `[values, gates]` `[tokens, width]`, which [`Compressor::projections`] have made, into
    /// each sequence's cache.
    pub fn compression<'a>(
        &'a self,
        [values, gates]: &'a [Tensor; 2],
        caches: Vec<&'a mut CompressorCache>,
    ) -> Compression<'a> {
        let (states, lists) =
            caches.into_iter().map(|cache| (&cache.state, &mut cache.rows)).unzip();
        let Self { bias, pooling, rope, rounding, .. } = self;
        let (norm, eps) = (self.norm.weight(), self.norm.eps());
        let finish = Finish { norm, eps, rope, rounding: *rounding };
        Compression { values, gates, bias, pooling: *pooling, finish, states, lists }
    }
}
