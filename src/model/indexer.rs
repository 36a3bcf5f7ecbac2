//! The lightning indexer: cheap scores that say which compressed rows to attend to.

use candle_core::{Result, Tensor};
use candle_ds4_ops::{self as ops, RopeTable, Turn};

use super::{Compressor, Linear, Rounding, Step};
use crate::cache::{pooling, CompressorCache};
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

    /// Appends this batch's keys; returns the chosen rows `[tokens, top_k]` u32, or `None` if no
    /// token sees more rows than it may attend to.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device has no memory left.
    pub fn select(
        &self,
        xs: &Tensor,
        latent: &Tensor,
        step: Step<'_>,
        caches: Vec<&mut CompressorCache>,
    ) -> Result<Option<Tensor>> {
        let Step { batch, ws, .. } = step;
        let IndexerConfig { heads, head_dim, top_k } = self.config;
        let mut caches = caches;
        self.keys.append(xs, step, caches.iter_mut().map(|cache| &mut **cache).collect())?;
        if batch.max_visible(self.ratio) <= top_k {
            return Ok(None);
        }
        let q = self.q_b.forward(latent, ws)?.reshape((batch.tokens(), heads, head_dim))?;
        ops::rope(&q, &self.rope, batch.positions(), Turn::Forward)?;
        self.rounding.apply(&q)?;
        // The scale of the scores does not change their order.
        let head_weights = self.head_weights.forward(xs, ws)?;
        let keys: Vec<_> = caches.iter().map(|cache| &cache.rows).collect();
        ops::select_rows(&q, &head_weights, &keys, self.ratio, top_k, batch, ws).map(Some)
    }
}
