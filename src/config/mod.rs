//! From a file's metadata to a configuration that the rest of the program can trust.

use candle_ds4_ops::{MixParams, RopeTable, Yarn};

use crate::gguf::{self, Metadata};

/// The value of `general.architecture` that this library runs.
pub const ARCHITECTURE: &str = "deepseek4";

/// Larger than any count or width of the family by far, small enough for products not to overflow.
const MOST: usize = 1 << 24;

/// Longest sliding window: 512 times the family's. Every cache has room for it from the start, and
/// no tensor vouches for its size.
const MOST_WINDOW: usize = 1 << 16;

/// What is wrong with a model's metadata.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A key is missing or has another type.
    #[error("{0}: the file is damaged or of another model, download it again or convert it again")]
    Gguf(#[from] gguf::Error),
    /// Another model.
    #[error(
        "general.architecture is {found:?}: this program runs {ARCHITECTURE:?} only; `ds4 pull` \
         fetches a model that it runs"
    )]
    Architecture {
        /// What the file says.
        found: String,
    },
    /// A value that no model can have, or that contradicts another.
    #[error(
        "metadata key {key}: {problem}: the file is damaged or of another model, download it \
         again or convert it again"
    )]
    Value {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// What a layer sees besides its sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Nothing.
    Window,
    /// Compressed sparse attention (CSA): of the rows of `ratio` overlapping tokens each, those
    /// that the indexer selects.
    Sparse {
        /// Tokens in a window.
        ratio: usize,
    },
    /// Heavily compressed attention (HCA): all rows of `ratio` tokens each.
    Heavy {
        /// Tokens in a window.
        ratio: usize,
    },
}

impl LayerKind {
    /// The compression ratio whose rows an indexer selects from.
    pub const SPARSE_RATIO: usize = 4;

    fn of_ratio(ratio: usize) -> Self {
        match ratio {
            0 => Self::Window,
            Self::SPARSE_RATIO => Self::Sparse { ratio },
            _ => Self::Heavy { ratio },
        }
    }

    /// Tokens that one compressed row stands for.
    pub fn ratio(self) -> Option<usize> {
        match self {
            Self::Window => None,
            Self::Sparse { ratio } | Self::Heavy { ratio } => Some(ratio),
        }
    }
}

/// The lightning indexer of sparse layers.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexerConfig {
    /// Heads of a query.
    pub heads: usize,
    /// Values in a head, and in a key.
    pub head_dim: usize,
    /// Rows that a token attends to at most.
    pub top_k: usize,
}

/// The mixture of experts of every layer.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeConfig {
    /// Routed experts.
    pub experts: usize,
    /// Routed experts of a token.
    pub active: usize,
    /// Width of a routed expert.
    pub width: usize,
    /// Shared experts, kept as one of this many times the width.
    pub shared: usize,
    /// Factor of the routed experts' weights after normalisation.
    pub scale: f32,
    /// Layers, from the first, whose experts are chosen by a table of token ids.
    pub hash_layers: usize,
    /// Bound of gate and up projections, by layer; infinite for none.
    pub clamp: Vec<f32>,
}

/// Every number that shapes the model. Fields carry the names of the paper and of the published
/// configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of a residual stream.
    pub hidden_size: usize,
    /// Longest context, in tokens.
    pub context_length: usize,
    /// Query heads.
    pub heads: usize,
    /// Values in a head, and in the one row that is key and value to all heads.
    pub head_dim: usize,
    /// Channels of a head that carry the position: the last ones.
    pub rope_dim: usize,
    /// Rank of the query projection.
    pub q_lora_rank: usize,
    /// Groups of heads that the output projection treats apart.
    pub output_groups: usize,
    /// Rank of each group's output projection.
    pub o_lora_rank: usize,
    /// Tokens of the sliding window, the current one included.
    pub sliding_window: usize,
    /// One kind per layer.
    pub layers: Vec<LayerKind>,
    /// Present if any layer is sparse.
    pub indexer: Option<IndexerConfig>,
    /// The feed-forward part.
    pub moe: MoeConfig,
    /// The residual streams and their mixing.
    pub hyper_connection: MixParams,
    /// Of every RMS norm.
    pub norm_eps: f64,
    /// Base of the rotary frequencies of layers that compress nothing.
    pub rope_theta: f64,
    /// Base of the rotary frequencies of layers that compress.
    pub compress_rope_theta: f64,
    /// Context extension of layers that compress.
    pub yarn: Yarn,
    /// Whether KV rows and the indexer are rounded as they were in training (key
    /// `deepseek4.activation_rounding`, true if absent).
    pub activation_rounding: bool,
}

impl Config {
    /// Reads and checks a file's metadata.
    ///
    /// # Errors
    /// A missing key, a wrong type, another architecture, or values that do not fit together; the
    /// message names the key.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, ConfigError> {
        let raw = Raw { metadata };
        let found = metadata.str("general.architecture")?;
        if found != ARCHITECTURE {
            return Err(ConfigError::Architecture { found: found.to_owned() });
        }
        let layers = raw.layers()?;
        let sparse = layers.iter().any(|kind| matches!(kind, LayerKind::Sparse { .. }));
        let config = Self {
            vocab_size: raw.count("vocab_size")?,
            hidden_size: raw.count("embedding_length")?,
            context_length: raw.count("context_length").or_else(|error| match error {
                ConfigError::Gguf(gguf::Error::MissingKey { .. }) => Ok(1 << 20),
                other => Err(other),
            })?,
            heads: raw.count("attention.head_count")?,
            head_dim: raw.count("attention.key_length")?,
            rope_dim: raw.count("rope.dimension_count")?,
            q_lora_rank: raw.count("attention.q_lora_rank")?,
            output_groups: raw.count("attention.output_group_count")?,
            o_lora_rank: raw.count("attention.output_lora_rank")?,
            sliding_window: raw.count("attention.sliding_window")?,
            moe: raw.moe(layers.len())?,
            indexer: if sparse { Some(raw.indexer()?) } else { None },
            layers,
            hyper_connection: MixParams {
                streams: raw.count("hyper_connection.count")?,
                sinkhorn_iterations: raw.count("hyper_connection.sinkhorn_iterations")?,
                eps: raw.positive("hyper_connection.epsilon")? as f32,
                norm_eps: raw.positive("attention.layer_norm_rms_epsilon")?,
            },
            norm_eps: raw.positive("attention.layer_norm_rms_epsilon")?,
            rope_theta: raw.positive("rope.freq_base")?,
            compress_rope_theta: raw.positive("attention.compress_rope_freq_base")?,
            yarn: Yarn {
                factor: raw.positive("rope.scaling.factor")?,
                original_context: raw.count("rope.scaling.original_context_length")? as f64,
                beta_fast: raw.positive("rope.scaling.yarn_beta_fast")?,
                beta_slow: raw.positive("rope.scaling.yarn_beta_slow")?,
            },
            activation_rounding: raw.flag("activation_rounding", true)?,
        };
        config.check(&raw)?;
        Ok(config)
    }

    /// What contradicts something else.
    fn check(&self, raw: &Raw<'_>) -> Result<(), ConfigError> {
        let kv_heads = raw.count("attention.head_count_kv")?;
        if kv_heads != 1 {
            return Err(raw.wrong("attention.head_count_kv", format!("{kv_heads}, must be 1")));
        }
        if self.sliding_window > MOST_WINDOW {
            let problem = format!("{} is more than {MOST_WINDOW}", self.sliding_window);
            return Err(raw.wrong("attention.sliding_window", problem));
        }
        let value_dim = raw.count("attention.value_length")?;
        if value_dim != self.head_dim {
            let problem = format!("{value_dim}, but keys have {} values", self.head_dim);
            return Err(raw.wrong("attention.value_length", problem));
        }
        if self.rope_dim % 2 == 1 || self.rope_dim > self.head_dim {
            let problem = format!("{} of {} channels cannot turn", self.rope_dim, self.head_dim);
            return Err(raw.wrong("rope.dimension_count", problem));
        }
        if !self.heads.is_multiple_of(self.output_groups) {
            let problem = format!("{} heads in {} groups", self.heads, self.output_groups);
            return Err(raw.wrong("attention.output_group_count", problem));
        }
        if self.moe.active > self.moe.experts {
            let problem = format!("{} of {} experts", self.moe.active, self.moe.experts);
            return Err(raw.wrong("expert_used_count", problem));
        }
        if !raw.flag("expert_weights_norm", true)? {
            let problem = "false: only normalised expert weights are known".to_owned();
            return Err(raw.wrong("expert_weights_norm", problem));
        }
        if let Some(indexer) = &self.indexer {
            let key = "attention.indexer.key_length";
            if indexer.head_dim < self.rope_dim {
                let problem = format!("{} is less than rope.dimension_count", indexer.head_dim);
                return Err(raw.wrong(key, problem));
            }
            if self.activation_rounding && !indexer.head_dim.is_power_of_two() {
                let problem = format!("{} is no power of two", indexer.head_dim);
                return Err(raw.wrong(key, problem));
            }
        }
        Ok(())
    }

    /// Rotary frequencies of a layer: queries, rows and compressed rows share them.
    pub fn rope_table(&self, kind: LayerKind) -> RopeTable {
        match kind {
            LayerKind::Window => RopeTable::plain(self.rope_theta, self.rope_dim),
            LayerKind::Sparse { .. } | LayerKind::Heavy { .. } => {
                RopeTable::yarn(self.compress_rope_theta, self.rope_dim, &self.yarn)
            }
        }
    }

    /// Channels of a row that do not turn: the ones that are kept in eight bits.
    pub fn nope_dim(&self) -> usize {
        self.head_dim - self.rope_dim
    }
}

/// Metadata as it was written: typed look-ups under the architecture's prefix.
struct Raw<'a> {
    metadata: &'a Metadata,
}

impl Raw<'_> {
    fn wrong(&self, key: &str, problem: String) -> ConfigError {
        ConfigError::Value { key: format!("{ARCHITECTURE}.{key}"), problem }
    }

    /// A count or width: at least one.
    fn count(&self, key: &str) -> Result<usize, ConfigError> {
        let value = self.metadata.usize(&format!("{ARCHITECTURE}.{key}"))?;
        if value == 0 || value > MOST {
            return Err(self.wrong(key, format!("{value} is outside 1 to {MOST}")));
        }
        Ok(value)
    }

    fn positive(&self, key: &str) -> Result<f64, ConfigError> {
        let value = self.metadata.f64(&format!("{ARCHITECTURE}.{key}"))?;
        if value.is_finite() && value > 0.0 {
            Ok(value)
        } else {
            Err(self.wrong(key, format!("{value}, must be positive")))
        }
    }

    fn flag(&self, key: &str, absent: bool) -> Result<bool, ConfigError> {
        let key = format!("{ARCHITECTURE}.{key}");
        match self.metadata.get(&key) {
            Some(_) => Ok(self.metadata.bool(&key)?),
            None => Ok(absent),
        }
    }

    /// One kind per layer; entries past the last layer (draft heads) are ignored.
    fn layers(&self) -> Result<Vec<LayerKind>, ConfigError> {
        let key = "attention.compress_ratios";
        let layers = self.count("block_count")?;
        let ratios = self.metadata.u32s(&format!("{ARCHITECTURE}.{key}"))?;
        if ratios.len() < layers {
            let problem = format!("{} entries for {layers} layers", ratios.len());
            return Err(self.wrong(key, problem));
        }
        ratios[..layers]
            .iter()
            .map(|&ratio| match ratio as usize {
                ratio if ratio <= MOST => Ok(LayerKind::of_ratio(ratio)),
                ratio => Err(self.wrong(key, format!("{ratio} tokens in a window"))),
            })
            .collect()
    }

    fn indexer(&self) -> Result<IndexerConfig, ConfigError> {
        Ok(IndexerConfig {
            heads: self.count("attention.indexer.head_count")?,
            head_dim: self.count("attention.indexer.key_length")?,
            top_k: self.count("attention.indexer.top_k")?,
        })
    }

    fn moe(&self, layers: usize) -> Result<MoeConfig, ConfigError> {
        let key = "swiglu_clamp_exp";
        let clamp = self.metadata.f32s(&format!("{ARCHITECTURE}.{key}"))?;
        if clamp.len() < layers {
            return Err(self.wrong(key, format!("{} entries for {layers} layers", clamp.len())));
        }
        let clamp = clamp[..layers]
            .iter()
            .map(|&clamp| match clamp {
                _ if clamp.is_nan() => Err(self.wrong(key, "NaN".to_owned())),
                _ if clamp > 0.0 => Ok(clamp),
                _ => Ok(f32::INFINITY),
            })
            .collect::<Result<_, _>>()?;
        let hash_layers = self.metadata.usize(&format!("{ARCHITECTURE}.hash_layer_count"))?;
        Ok(MoeConfig {
            experts: self.count("expert_count")?,
            active: self.count("expert_used_count")?,
            width: self.count("expert_feed_forward_length")?,
            shared: self.count("expert_shared_count")?,
            scale: self.positive("expert_weights_scale")? as f32,
            hash_layers,
            clamp,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
