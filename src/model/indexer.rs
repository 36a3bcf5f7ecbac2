//! The lightning indexer: cheap scores that say which compressed rows to attend to.

use candle_core::{Result, Tensor};
use candle_ds4_ops::{self as ops, Ragged, RopeTable, Rounding, Rows, Workspace};

use super::{Compressor, Linear};
use crate::cache::pooling;
use crate::config::{Config, IndexerConfig, LayerKind};
use crate::weights::{self, Weights};

/// Scores each visible row with a few small heads and keeps the best.
#[derive(Debug)]
pub struct Indexer {
    keys: Compressor,
    q_b: Linear,
    head_weights: Linear,
    rope: RopeTable,
    rounding: Rounding,
    config: IndexerConfig,
    ratio: usize,
}

impl Indexer {
    /// Loads layer `layer`'s indexer; `None` if layers of this kind have none.
    ///
    /// # Errors
    /// A tensor that is missing or of the wrong shape or type.
    pub fn load(
        weights: &Weights,
        layer: usize,
        kind: LayerKind,
        rope: &RopeTable,
        config: &Config,
    ) -> weights::Result<Option<Self>> {
        let (LayerKind::Sparse { ratio }, Some(indexer), Some(pooling)) =
            (kind, &config.indexer, pooling(kind))
        else {
            return Ok(None);
        };
        let rounding = match config.activation_rounding {
            true => Rounding::HadamardFp4,
            false => Rounding::Off,
        };
        let IndexerConfig { heads, head_dim, .. } = *indexer;
        let name = |part: &str| format!("blk.{layer}.indexer.{part}.weight");
        let prefix = format!("blk.{layer}.indexer_compressor");
        let keys = Compressor::load(weights, &prefix, head_dim, pooling, rope, rounding, config)?;
        let q_b = weights.matrix(&name("attn_q_b"), heads * head_dim, config.q_lora_rank)?;
        let head_weights = weights.matrix(&name("proj"), heads, config.hidden_size)?;
        Ok(Some(Self {
            keys,
            q_b: Linear::new(q_b),
            head_weights: Linear::new(head_weights),
            rope: rope.clone(),
            rounding,
            config: indexer.clone(),
            ratio,
        }))
    }

    /// What makes the keys of rows to come.
    pub fn keys(&self) -> &Compressor {
        &self.keys
    }

    /// The layer that makes the weights of the heads; `None` if no token of the batch sees more rows than
    /// it may attend to, so that nothing needs to be chosen.
    pub fn head_weights(&self, batch: &Ragged) -> Option<&Linear> {
        (batch.max_visible(self.ratio) > self.config.top_k).then_some(&self.head_weights)
    }

    /// The layer that makes the queries, on the same latent as attention's own.
    pub fn q_b(&self) -> &Linear {
        &self.q_b
    }

    /// The chosen rows `[tokens, top_k]` u32: by raw `queries` `[tokens, heads · head_dim]`, which may be
    /// changed, and `head_weights` `[tokens, heads]`, among each sequence's `keys`.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device has no memory left.
    pub fn select(
        &self,
        queries: &Tensor,
        head_weights: &Tensor,
        keys: &[&Rows],
        batch: &Ragged,
        ws: &Workspace,
    ) -> Result<Tensor> {
        let IndexerConfig { heads, head_dim, top_k } = self.config;
        let q = queries.reshape((batch.tokens(), heads, head_dim))?;
        let Self { rope, rounding, ratio, .. } = self;
        // The scale of the scores does not change their order.
        ops::select_rows_raw(&q, rope, *rounding, head_weights, keys, *ratio, top_k, batch, ws)
    }
}
