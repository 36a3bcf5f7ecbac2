//! Attention over a sliding window and compressed rows.

use candle_core::{bail, Result, Tensor};
use candle_ds4_ops::{self as ops, Compressed, RopeTable, Selection, Turn};

use super::{Compressor, Indexer, Linear, RmsNorm, Rounding, Step};
use crate::cache::{pooling, CompressorCache, LayerCache};
use crate::config::{Config, LayerKind};
use crate::weights::{self, Weights};

/// Multi-head attention with one shared row for keys and values, low-rank queries and a grouped
/// low-rank output.
#[derive(Debug)]
pub struct Attention {
    q_a: Linear,
    q_a_norm: RmsNorm,
    q_b: Linear,
    kv: Linear,
    kv_norm: RmsNorm,
    sinks: Tensor,
    output_a: Linear,
    output_b: Linear,
    compressor: Option<Compressor>,
    indexer: Option<Indexer>,
    rope: RopeTable,
    rounding: Rounding,
    kind: LayerKind,
    heads: usize,
    head_dim: usize,
    output_groups: usize,
    sliding_window: usize,
    norm_eps: f64,
}

impl Attention {
    /// Loads layer `layer`.
    ///
    /// # Errors
    /// A tensor that is missing or of the wrong shape or type.
    pub fn load(weights: &Weights, layer: usize, config: &Config) -> weights::Result<Self> {
        let kind = config.layers[layer];
        let rope = config.rope_table(kind);
        let rounding = match config.activation_rounding {
            true => Rounding::Fp8 { nope_dim: config.nope_dim() },
            false => Rounding::Off,
        };
        let Config { hidden_size: hidden, heads, head_dim, q_lora_rank, .. } = *config;
        let name = |part: &str| format!("blk.{layer}.attn_{part}.weight");
        let linear = |part: &str, rows: usize, cols: usize| {
            weights.matrix(&name(part), rows, cols).map(Linear::new)
        };
        let norm =
            |part: &str, len: usize| RmsNorm::load(weights, &name(part), len, config.norm_eps);
        let groups = config.output_groups;
        let latent = groups * config.o_lora_rank;
        let compressor = match pooling(kind) {
            Some(pooling) => {
                let prefix = format!("blk.{layer}.attn_compressor");
                let compressor =
                    Compressor::load(weights, &prefix, head_dim, pooling, &rope, rounding, config)?;
                Some(compressor)
            }
            None => None,
        };
        Ok(Self {
            q_a: linear("q_a", q_lora_rank, hidden)?,
            q_a_norm: norm("q_a_norm", q_lora_rank)?,
            q_b: linear("q_b", heads * head_dim, q_lora_rank)?,
            kv: linear("kv", head_dim, hidden)?,
            kv_norm: norm("kv_a_norm", head_dim)?,
            sinks: weights.vector(&name("sinks"), heads)?,
            output_a: linear("output_a", latent, heads * head_dim / groups)?,
            output_b: linear("output_b", hidden, latent)?,
            compressor,
            indexer: Indexer::load(weights, layer, kind, &rope, config)?,
            rope,
            rounding,
            kind,
            heads,
            head_dim,
            output_groups: groups,
            sliding_window: config.sliding_window,
            norm_eps: config.norm_eps,
        })
    }

    /// Attends `xs` `[tokens, hidden]` over each sequence's window and selected compressed rows,
    /// and appends this batch's rows to the caches.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device has no memory left.
    pub fn forward(
        &self,
        xs: &Tensor,
        step: Step<'_>,
        caches: &mut [&mut LayerCache],
    ) -> Result<Tensor> {
        let Step { batch, ws, .. } = step;
        let [latent, kv] = Linear::forward_all([&self.q_a, &self.kv], xs, ws)?;
        let latent = self.q_a_norm.forward(&latent, ws)?;
        let q = self.queries(&latent, step)?;
        let kv = self.rows(&kv, step)?;

        let chosen = match (&self.compressor, &self.indexer) {
            (Some(compressor), indexer) => {
                compressor.append(xs, step, compressed(caches)?)?;
                match indexer {
                    Some(indexer) => indexer.select(xs, &latent, step, keys(caches)?)?,
                    None => None,
                }
            }
            (None, _) => None,
        };
        let windows: Vec<_> = caches.iter().map(|cache| &cache.window).collect();
        let rows: Vec<_> =
            caches.iter().filter_map(|c| c.compressed.as_ref()).map(|c| &c.rows).collect();
        let compressed = self.kind.ratio().map(|ratio| Compressed {
            rows: &rows,
            selection: match &chosen {
                Some(ids) => Selection::Chosen(ids),
                None => Selection::Visible { ratio },
            },
        });
        let scale = (self.head_dim as f32).powf(-0.5);
        let heads = ops::sink_attention(
            &q,
            &kv,
            &windows,
            self.sliding_window,
            compressed,
            &self.sinks,
            scale,
            batch,
            ws,
        )?;
        ops::write_rings(&[(windows, &kv)], batch)?;
        // Values were rotated with their keys; the query's angle is taken back from their sum.
        ops::rope(&heads, &self.rope, batch.positions(), Turn::Inverse)?;
        let low = self.output_a.forward_grouped(&heads.flatten_from(1)?, self.output_groups, ws)?;
        self.output_b.forward(&low, ws)
    }

    /// `[tokens, heads, head_dim]`, each head of length one before it turns.
    fn queries(&self, latent: &Tensor, step: Step<'_>) -> Result<Tensor> {
        let Step { batch, ws, .. } = step;
        let shape = (batch.tokens(), self.heads, self.head_dim);
        let q = self.q_b.forward(latent, ws)?.reshape(shape)?;
        let q = ops::rms_norm(&q, None, self.norm_eps, ws)?;
        ops::rope(&q, &self.rope, batch.positions(), Turn::Forward)?;
        Ok(q)
    }

    /// `[tokens, head_dim]`: key and value of each token at once.
    fn rows(&self, kv: &Tensor, step: Step<'_>) -> Result<Tensor> {
        let Step { batch, ws, .. } = step;
        let kv = self.kv_norm.forward(kv, ws)?;
        ops::rope(&kv, &self.rope, batch.positions(), Turn::Forward)?;
        self.rounding.apply(&kv)?;
        Ok(kv)
    }
}

fn compressed<'a>(caches: &'a mut [&mut LayerCache]) -> Result<Vec<&'a mut CompressorCache>> {
    all_of(caches.iter_mut().map(|cache| cache.compressed.as_mut()))
}

fn keys<'a>(caches: &'a mut [&mut LayerCache]) -> Result<Vec<&'a mut CompressorCache>> {
    all_of(caches.iter_mut().map(|cache| cache.keys.as_mut()))
}

fn all_of<'a>(
    caches: impl Iterator<Item = Option<&'a mut CompressorCache>>,
) -> Result<Vec<&'a mut CompressorCache>> {
    match caches.collect() {
        Some(caches) => Ok(caches),
        None => bail!("attention: a cache made for a model with other layers"),
    }
}
