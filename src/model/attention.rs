//! Attention over a sliding window and compressed rows.

use candle_core::{bail, Result, Tensor};
use candle_ds4_ops::{
    self as ops, Compressed, Compression, Finish, Given, Ragged, RopeTable, Rounding, Rows,
    Selection, Settle, Workspace,
};

use super::{Compressor, Indexer, Linear, RmsNorm, Step};
use crate::cache::{pooling, CompressorCache, LayerCache};
use crate::config::{Config, LayerKind};
use crate::weights::{self, Weights};

/// Tokens whose queries are made and attended to at a time: enough for a GPU's matrix units, and a chunk of a
/// prompt has four times as many. In the full model a token's queries take 128 KiB, and what attention
/// makes of them as much again, eight times what all else of a layer takes.
const SLICE_TOKENS: usize = 1024;

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
    /// and appends this batch's rows to the caches. The last product may be left to the streams.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device has no memory left.
    pub fn forward(
        &self,
        xs: &Tensor,
        step: Step<'_>,
        caches: &mut [&mut LayerCache],
    ) -> Result<Given> {
        let Step { batch, ws, .. } = step;
        let projected = self.project(xs, batch, ws)?;
        let weights = projected.head_weights.as_ref();
        let of_latent = self.of_latent(weights.is_some());
        if batch.tokens() <= SLICE_TOKENS {
            let matrices: Vec<_> = of_latent.iter().map(|layer| layer.weight()).collect();
            let (queries, kv) = self.settle(&projected, step, caches, |settle| {
                ops::settle_and_project(settle, &matrices, batch, ws)
            })?;
            let low = self.attend(queries, &kv, weights, batch, caches, ws)?;
            return Ok(self.output_b.of(low));
        }
        let (latent, kv) =
            self.settle(&projected, step, caches, |settle| ops::settle(settle, batch, ws))?;
        let out = ws.f32((batch.tokens(), self.output_b.weight().rows()))?;
        for slice in batch.slices(SLICE_TOKENS)?.iter() {
            let _frame = ws.frame();
            let of = |whole: &Tensor| whole.narrow(0, slice.rows.start, slice.rows.len());
            let weights = weights.map(of).transpose()?;
            // Each finds the rows of those before it in the windows, as if it had come alone.
            let caches = &caches[slice.sequences.clone()];
            let (latent, kv) = (of(&latent)?, of(&kv)?);
            let queries = Linear::forward_all(&of_latent, &latent, ws)?;
            let low = self.attend(queries, &kv, weights.as_ref(), &slice.batch, caches, ws)?;
            self.output_b.forward_into(&low, &of(&out)?, ws)?;
        }
        Ok(out.into())
    }

    /// What reads the queries' latent: the queries, and those of the indexer if rows are chosen.
    fn of_latent(&self, choosing: bool) -> Vec<&Linear> {
        let mut layers = vec![&self.q_b];
        layers.extend(self.indexer.as_ref().filter(|_| choosing).map(Indexer::q_b));
        layers
    }

    /// From the queries of [`Attention::of_latent`] and the tokens' own rows, which go to the windows, to the
    /// low-rank output; rows are chosen if there are `head_weights` to choose them by.
    fn attend(
        &self,
        mut queries: Vec<Tensor>,
        kv: &Tensor,
        head_weights: Option<&Tensor>,
        batch: &Ragged,
        caches: &[&mut LayerCache],
        ws: &Workspace,
    ) -> Result<Tensor> {
        let choosing = self.indexer.as_ref().zip(head_weights);
        let chosen = match choosing {
            Some((indexer, weights)) => {
                let keys = lists_of(caches, |cache| cache.keys.as_ref())?;
                Some(indexer.select(&queries.swap_remove(1), weights, &keys, batch, ws)?)
            }
            _ => None,
        };
        let windows: Vec<_> = caches.iter().map(|cache| &cache.window).collect();
        let rows = match self.kind.ratio() {
            Some(_) => lists_of(caches, |cache| cache.compressed.as_ref())?,
            None => Vec::new(),
        };
        let compressed = self.kind.ratio().map(|ratio| Compressed {
            rows: &rows,
            selection: match &chosen {
                Some(ids) => Selection::Chosen(ids),
                None => Selection::Visible { ratio },
            },
        });
        let attention = ops::Attention {
            q: &queries[0].reshape((batch.tokens(), self.heads, self.head_dim))?,
            kv,
            windows: &windows,
            window: self.sliding_window,
            compressed,
            sinks: &self.sinks,
            scale: (self.head_dim as f32).powf(-0.5),
            batch,
        };
        let heads = ops::turned_attention(attention, &self.rope, self.norm_eps, ws)?;
        self.output_a.forward_grouped(&heads.flatten_from(1)?, self.output_groups, ws)
    }

    /// All that reads `xs`, at once.
    fn project(&self, xs: &Tensor, batch: &Ragged, ws: &Workspace) -> Result<Projected> {
        let mut layers = vec![&self.q_a, &self.kv];
        let keys = self.indexer.as_ref().map(Indexer::keys);
        let compressors = [self.compressor.as_ref(), keys];
        layers.extend(compressors.iter().flatten().flat_map(|compressor| compressor.projections()));
        layers.extend(self.indexer.as_ref().and_then(|indexer| indexer.head_weights(batch)));
        let mut outs = Linear::forward_all(&layers, xs, ws)?.into_iter();
        let mut next = || match outs.next() {
            Some(out) => Ok(out),
            None => bail!("attention: fewer products than layers"),
        };
        Ok(Projected {
            latent: next()?,
            kv: next()?,
            pooled: compressors
                .iter()
                .flatten()
                .map(|_| Ok([next()?, next()?]))
                .collect::<Result<_>>()?,
            head_weights: outs.next(),
        })
    }

    /// What `run` makes of the queries' latent and the tokens' own rows; the caches get what is compressed.
    fn settle<R>(
        &self,
        projected: &Projected,
        step: Step<'_>,
        caches: &mut [&mut LayerCache],
        run: impl FnOnce(Settle<'_>) -> Result<R>,
    ) -> Result<R> {
        let keys = self.indexer.as_ref().map(Indexer::keys);
        let compressors = [self.compressor.as_ref(), keys].into_iter().flatten();
        let mut rows = Vec::new();
        let mut of_keys = Vec::new();
        for cache in caches.iter_mut() {
            rows.extend(cache.compressed.as_mut());
            of_keys.extend(cache.keys.as_mut());
        }
        let sequences = step.batch.spans().len();
        let compressions: Vec<Compression<'_>> = compressors
            .zip(&projected.pooled)
            .zip([rows, of_keys])
            .map(|((compressor, pooled), caches)| match caches.len() == sequences {
                true => Ok(compressor.compression(pooled, caches)),
                false => bail!("attention: a cache made for a model with other layers"),
            })
            .collect::<Result<_>>()?;
        let (norm, eps) = (self.kv_norm.weight(), self.kv_norm.eps());
        let settle = Settle {
            latent: &projected.latent,
            latent_norm: (self.q_a_norm.weight(), self.q_a_norm.eps()),
            kv: &projected.kv,
            finish: Finish { norm, eps, rope: &self.rope, rounding: self.rounding },
            compressions,
        };
        run(settle)
    }
}

/// Products of a layer's input, raw.
struct Projected {
    /// Of queries.
    latent: Tensor,
    /// Key and value at once.
    kv: Tensor,
    /// Values and gates of the compressor, then of the indexer's.
    pooled: Vec<[Tensor; 2]>,
    /// Of the indexer, if there is something to choose.
    head_weights: Option<Tensor>,
}

/// One list of rows of each sequence.
fn lists_of<'a>(
    caches: &'a [&mut LayerCache],
    pick: impl Fn(&LayerCache) -> Option<&CompressorCache>,
) -> Result<Vec<&'a Rows>> {
    match caches.iter().map(|cache| pick(cache).map(|of| &of.rows)).collect() {
        Some(lists) => Ok(lists),
        None => bail!("attention: a cache made for a model with other layers"),
    }
}
