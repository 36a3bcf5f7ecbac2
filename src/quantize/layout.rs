//! Which tensors a DeepSeek V4 model has: name and shape in a GGUF file, names in checkpoints.

use crate::config::{Config, LayerKind};

/// What a tensor is for; it decides the type that a recipe gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The table of token embeddings.
    Embedding,
    /// The output head.
    Output,
    /// A matrix of attention or of the shared expert.
    Dense,
    /// Gate or up projections of all routed experts.
    RoutedUp,
    /// Down projections of all routed experts.
    RoutedDown,
    /// A small matrix that discrete choices or pooling depend on: router, compressors, indexer,
    /// hyper-connections.
    Fine,
    /// A vector.
    Vector,
    /// A table of expert numbers.
    Indices,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name in a GGUF file.
    pub name: String,
    /// Its dimensions, innermost first.
    pub dims: Vec<u64>,
    /// What it is for.
    pub role: Role,
    /// Its layer, if it is in one.
    pub layer: Option<usize>,
    /// Names in checkpoints, without a leading `model.`; `{}` is an expert's number.
    pub(super) sources: Vec<String>,
}

impl Slot {
    /// Values in a row.
    pub fn cols(&self) -> usize {
        self.dims.first().map_or(1, |d| *d as usize)
    }

    /// Rows of one matrix.
    pub fn rows(&self) -> usize {
        self.dims.get(1).map_or(1, |d| *d as usize)
    }

    /// Matrices, one after the other: experts.
    pub fn slices(&self) -> usize {
        self.dims.get(2).map_or(1, |d| *d as usize)
    }
}

/// All tensors of a model, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    slots: Vec<Slot>,
}

impl Layout {
    /// The tensors that a model of this configuration has.
    pub fn of(config: &Config) -> Self {
        let mut list = List { slots: Vec::new(), layer: None };
        list.globals(config);
        for (layer, kind) in config.layers.iter().enumerate() {
            list.layer = Some(layer);
            list.attention(config, *kind);
            list.experts(config, layer);
        }
        Self { slots: list.slots }
    }

    /// The tensors.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }
}

struct List {
    slots: Vec<Slot>,
    layer: Option<usize>,
}

impl List {
    /// Adds a tensor: leaf name, dimensions innermost first, and its names in a checkpoint's layer.
    fn add(&mut self, leaf: &str, role: Role, dims: &[usize], sources: &[&str]) {
        let (name, prefix) = match self.layer {
            Some(layer) => (format!("blk.{layer}.{leaf}"), format!("layers.{layer}.")),
            None => (leaf.to_owned(), String::new()),
        };
        self.slots.push(Slot {
            name,
            dims: dims.iter().map(|d| *d as u64).collect(),
            role,
            layer: self.layer,
            sources: sources.iter().map(|source| format!("{prefix}{source}")).collect(),
        });
    }

    fn globals(&mut self, c: &Config) {
        let (hidden, streams) = (c.hidden_size, c.hyper_connection.streams);
        let wide = [hidden, c.vocab_size];
        let embed = ["embed.weight", "embed_tokens.weight"];
        self.add("token_embd.weight", Role::Embedding, &wide, &embed);
        let base = ["hc_head_base", "hc_head.hc_base"];
        self.add("output_hc_base.weight", Role::Vector, &[streams], &base);
        let mix = ["hc_head_fn", "hc_head.hc_fn"];
        self.add("output_hc_fn.weight", Role::Fine, &[hidden * streams, streams], &mix);
        let scale = ["hc_head_scale", "hc_head.hc_scale"];
        self.add("output_hc_scale.weight", Role::Vector, &[1], &scale);
        self.add("output_norm.weight", Role::Vector, &[hidden], &["norm.weight"]);
        self.add("output.weight", Role::Output, &wide, &["head.weight", "lm_head.weight"]);
    }

    /// The mixing of residual streams around a sub-layer, and its norm.
    fn mix(&mut self, c: &Config, part: &str, norm: &str) {
        let (hidden, streams) = (c.hidden_size, c.hyper_connection.streams);
        let mixed = (2 + streams) * streams;
        let of = |what: &str| [format!("hc_{part}_{what}"), format!("{part}_hc.{what}")];
        let leaf = |what: &str| format!("hc_{part}_{what}.weight");
        let mut add = |what: &str, role, dims: &[usize]| {
            let [a, b] = of(what);
            self.add(&leaf(what), role, dims, &[&a, &b]);
        };
        add("fn", Role::Fine, &[hidden * streams, mixed]);
        add("scale", Role::Vector, &[3]);
        add("base", Role::Vector, &[mixed]);
        let leaf = format!("{part}_norm.weight");
        let of = [leaf.as_str(), norm];
        self.add(&leaf, Role::Vector, &[hidden], &of);
    }

    fn attention(&mut self, c: &Config, kind: LayerKind) {
        let (hidden, rank, groups) = (c.hidden_size, c.q_lora_rank, c.output_groups);
        let wide = c.heads * c.head_dim;
        self.mix(c, "attn", "input_layernorm.weight");
        let mut add = |leaf: &str, role, dims: &[usize], sources: [&str; 2]| {
            let [a, b] = [format!("attn.{}", sources[0]), format!("self_attn.{}", sources[1])];
            self.add(leaf, role, dims, &[&a, &b]);
        };
        let q_a = ["wq_a.weight", "q_a_proj.weight"];
        add("attn_q_a.weight", Role::Dense, &[hidden, rank], q_a);
        let q_a_norm = ["q_norm.weight", "q_a_norm.weight"];
        add("attn_q_a_norm.weight", Role::Vector, &[rank], q_a_norm);
        let q_b = ["wq_b.weight", "q_b_proj.weight"];
        add("attn_q_b.weight", Role::Dense, &[rank, wide], q_b);
        add("attn_kv.weight", Role::Dense, &[hidden, c.head_dim], ["wkv.weight", "kv_proj.weight"]);
        let kv_norm = ["kv_norm.weight", "kv_norm.weight"];
        add("attn_kv_a_norm.weight", Role::Vector, &[c.head_dim], kv_norm);
        add("attn_sinks.weight", Role::Vector, &[c.heads], ["attn_sink", "sinks"]);
        let low = groups * c.o_lora_rank;
        let o_a = ["wo_a.weight", "o_a_proj.weight"];
        add("attn_output_a.weight", Role::Dense, &[wide / groups, low], o_a);
        let o_b = ["wo_b.weight", "o_b_proj.weight"];
        add("attn_output_b.weight", Role::Dense, &[low, hidden], o_b);

        if let Some(ratio) = kind.ratio() {
            let sparse = matches!(kind, LayerKind::Sparse { .. });
            // Overlapping windows need each projection twice.
            let twice = if sparse { 2 } else { 1 };
            let names = ["attn_compressor", "compressor.", "compressor."];
            compressor(&mut add, names, hidden, c.head_dim, twice, ratio);
            if let (true, Some(indexer)) = (sparse, &c.indexer) {
                let queries = indexer.heads * indexer.head_dim;
                let q_b = ["indexer.wq_b.weight", "compressor.indexer.q_b_proj.weight"];
                add("indexer.attn_q_b.weight", Role::Fine, &[rank, queries], q_b);
                let proj = [
                    "indexer.weights_proj.weight",
                    "compressor.indexer.scorer.weights_proj.weight",
                ];
                add("indexer.proj.weight", Role::Fine, &[hidden, indexer.heads], proj);
                let names = ["indexer_compressor", "indexer.compressor.", "compressor.indexer."];
                compressor(&mut add, names, hidden, indexer.head_dim, twice, ratio);
            }
        }
        // `transformers` saves this norm under the name that it gives the compressors' own.
        if let (Some(layer), Some(slot)) = (
            self.layer,
            self.slots.iter_mut().rev().find(|s| s.name.ends_with(".attn_kv_a_norm.weight")),
        ) {
            slot.sources.push(format!("layers.{layer}.attn.norm.weight"));
        }
    }

    fn experts(&mut self, c: &Config, layer: usize) {
        let (hidden, moe) = (c.hidden_size, &c.moe);
        self.mix(c, "ffn", "post_attention_layernorm.weight");
        let router = ["ffn.gate.weight", "mlp.gate.weight"];
        self.add("ffn_gate_inp.weight", Role::Fine, &[hidden, moe.experts], &router);
        let parts = [
            ("gate", "w1", Role::RoutedUp),
            ("up", "w3", Role::RoutedUp),
            ("down", "w2", Role::RoutedDown),
        ];
        for (part, short, role) in parts {
            let (rows, cols) = match role {
                Role::RoutedDown => (hidden, moe.width),
                _ => (moe.width, hidden),
            };
            let short = format!("ffn.experts.{{}}.{short}.weight");
            let long = format!("mlp.experts.{{}}.{part}_proj.weight");
            // All experts in one tensor, gate rows before up rows.
            let stacked = match role {
                Role::RoutedDown => "mlp.experts.down_proj",
                _ => "mlp.experts.gate_up_proj",
            };
            let leaf = format!("ffn_{part}_exps.weight");
            self.add(&leaf, role, &[cols, rows, moe.experts], &[&short, &long, stacked]);
        }
        for (part, short, role) in parts {
            let wide = moe.width * moe.shared;
            let (rows, cols) = match role {
                Role::RoutedDown => (hidden, wide),
                _ => (wide, hidden),
            };
            let short = format!("ffn.shared_experts.{short}.weight");
            let long = format!("mlp.shared_experts.{part}_proj.weight");
            let leaf = format!("ffn_{part}_shexp.weight");
            self.add(&leaf, Role::Dense, &[cols, rows], &[&short, &long]);
        }
        if layer < moe.hash_layers {
            let table = ["ffn.gate.tid2eid", "mlp.gate.tid2eid"];
            let dims = [moe.active, c.vocab_size];
            self.add("ffn_gate_tid2eid.weight", Role::Indices, &dims, &table);
        } else {
            let bias = ["ffn.gate.bias", "mlp.gate.e_score_correction_bias"];
            self.add("exp_probs_b.bias", Role::Vector, &[moe.experts], &bias);
        }
    }
}

/// A compressor's tensors. `names`: in a GGUF file, in the original, in `transformers`.
fn compressor(
    add: &mut impl FnMut(&str, Role, &[usize], [&str; 2]),
    [leaf, original, other]: [&str; 3],
    hidden: usize,
    dim: usize,
    twice: usize,
    ratio: usize,
) {
    let wide = twice * dim;
    let parts: [(&str, &str, &str, Role, &[usize]); 4] = [
        ("ape", "ape", "position_bias", Role::Fine, &[wide, ratio]),
        ("kv", "wkv.weight", "kv_proj.weight", Role::Fine, &[hidden, wide]),
        ("gate", "wgate.weight", "gate_proj.weight", Role::Fine, &[hidden, wide]),
        ("norm", "norm.weight", "kv_norm.weight", Role::Vector, &[dim]),
    ];
    for (part, a, b, role, dims) in parts {
        let sources = [format!("{original}{a}"), format!("{other}{b}")];
        add(&format!("{leaf}_{part}.weight"), role, dims, [&sources[0], &sources[1]]);
    }
}
