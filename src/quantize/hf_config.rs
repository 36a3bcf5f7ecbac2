//! A checkpoint's `config.json` as GGUF metadata.

#![forbid(unsafe_code)]

use std::path::Path;

use serde_json::Value as Json;

use super::error::{QuantizeError, Result};
use crate::config::{LayerKind, ARCHITECTURE};
use crate::gguf::Metadata;

/// The metadata of a model, without its vocabulary.
pub(super) fn metadata(path: &Path, config: &Json) -> Result<Metadata> {
    let read = Read { path, config };
    if read.find(&["model_type"]).and_then(Json::as_str) != Some("deepseek_v4") {
        return Err(read.wrong("model_type", "must be \"deepseek_v4\""));
    }
    match read.find(&["scoring_func"]) {
        None => {}
        Some(found) if found == "sqrtsoftplus" => {}
        Some(found) => {
            return Err(read.wrong("scoring_func", &format!("{found} is not known")));
        }
    }
    let layers = read.count(&[&["num_hidden_layers"]])?;
    let mut out = Metadata::new();
    out.insert("general.architecture", ARCHITECTURE)?;
    let name = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy());
    out.insert("general.name", name.as_deref().unwrap_or("DeepSeek V4"))?;
    out.insert("general.alignment", 32u32)?;
    let mut put =
        |key: &str, value: crate::gguf::Value| out.insert(format!("{ARCHITECTURE}.{key}"), value);

    let counts: [(&str, &[&[&str]]); 21] = [
        ("block_count", &[&["num_hidden_layers"]]),
        ("context_length", &[&["max_position_embeddings"]]),
        ("embedding_length", &[&["hidden_size"]]),
        ("vocab_size", &[&["vocab_size"]]),
        ("attention.head_count", &[&["num_attention_heads"]]),
        ("attention.head_count_kv", &[&["num_key_value_heads"]]),
        ("attention.key_length", &[&["head_dim"]]),
        ("attention.value_length", &[&["head_dim"]]),
        ("attention.q_lora_rank", &[&["q_lora_rank"]]),
        ("attention.output_lora_rank", &[&["o_lora_rank"]]),
        ("attention.output_group_count", &[&["o_groups"]]),
        ("attention.sliding_window", &[&["sliding_window"]]),
        ("attention.indexer.head_count", &[&["index_n_heads"]]),
        ("attention.indexer.key_length", &[&["index_head_dim"]]),
        ("attention.indexer.top_k", &[&["index_topk"]]),
        ("expert_count", &[&["n_routed_experts"]]),
        ("expert_used_count", &[&["num_experts_per_tok"]]),
        ("expert_feed_forward_length", &[&["moe_intermediate_size"]]),
        ("expert_shared_count", &[&["n_shared_experts"]]),
        ("hyper_connection.count", &[&["hc_mult"]]),
        ("hyper_connection.sinkhorn_iterations", &[&["hc_sinkhorn_iters"]]),
    ];
    for (key, names) in counts {
        put(key, read.count(names)?.into())?;
    }
    put("rope.dimension_count", read.rope_dim()?.into())?;
    put("hash_layer_count", read.hash_layers()?.into())?;
    put("expert_gating_func", 4u32.into())?;
    put("expert_group_count", 0u32.into())?;
    put("expert_group_used_count", 0u32.into())?;
    let drafts = read.find(&["num_nextn_predict_layers"]).and_then(Json::as_u64).unwrap_or(0);
    put("nextn_predict_layers", (drafts.min(u64::from(u32::MAX)) as u32).into())?;

    let yarn = |name: &'static str| [["rope_scaling", name], ["rope_parameters.compress", name]];
    let original = yarn("original_max_position_embeddings");
    let original = read.count(&[&original[0], &original[1]])?;
    put("rope.scaling.type", "yarn".into())?;
    put("rope.scaling.original_context_length", original.into())?;
    for (key, name) in [
        ("rope.scaling.factor", "factor"),
        ("rope.scaling.yarn_beta_fast", "beta_fast"),
        ("rope.scaling.yarn_beta_slow", "beta_slow"),
    ] {
        let places = yarn(name);
        put(key, read.float(&[&places[0], &places[1]])?.into())?;
    }
    let floats: [(&str, &[&[&str]]); 5] = [
        ("rope.freq_base", &[&["rope_theta"], &["rope_parameters.main", "rope_theta"]]),
        (
            "attention.compress_rope_freq_base",
            &[&["compress_rope_theta"], &["rope_parameters.compress", "rope_theta"]],
        ),
        ("expert_weights_scale", &[&["routed_scaling_factor"]]),
        ("attention.layer_norm_rms_epsilon", &[&["rms_norm_eps"]]),
        ("hyper_connection.epsilon", &[&["hc_eps"]]),
    ];
    for (key, names) in floats {
        put(key, read.float(names)?.into())?;
    }
    let norm = read.find(&["norm_topk_prob"]).and_then(Json::as_bool).unwrap_or(true);
    put("expert_weights_norm", norm.into())?;
    put("attention.compress_ratios", read.ratios(layers as usize)?.into())?;
    let clamp = read.float(&[&["swiglu_limit"]])?;
    put("swiglu_clamp_exp", vec![clamp; layers as usize].into())?;
    // Not in published configurations: for parity with programs that leave the rounding out.
    if let Some(rounding) = read.find(&["activation_rounding"]).and_then(Json::as_bool) {
        put("activation_rounding", rounding.into())?;
    }
    Ok(out)
}

struct Read<'a> {
    path: &'a Path,
    config: &'a Json,
}

impl Read<'_> {
    fn wrong(&self, key: &str, problem: &str) -> QuantizeError {
        QuantizeError::file(self.path, format!("key {key}: {problem}"))
    }

    /// A value by the keys that lead to it; a key may itself be a path with dots.
    fn find(&self, keys: &[&str]) -> Option<&Json> {
        let mut at = self.config;
        for key in keys.iter().flat_map(|key| key.split('.')) {
            at = at.get(key)?;
        }
        Some(at).filter(|value| !value.is_null())
    }

    fn first(&self, places: &[&[&str]]) -> Result<&Json> {
        let missing =
            || self.wrong(&places.first().map_or(String::new(), |p| p.join(".")), "missing");
        places.iter().find_map(|keys| self.find(keys)).ok_or_else(missing)
    }

    fn count(&self, places: &[&[&str]]) -> Result<u32> {
        let value = self.first(places)?;
        let key = || places.first().map_or(String::new(), |p| p.join("."));
        let count = value.as_u64().and_then(|n| u32::try_from(n).ok());
        // A layer count makes arrays of its length.
        let count = count.filter(|n| *n <= 1 << 24);
        count.ok_or_else(|| self.wrong(&key(), &format!("{value} is no count")))
    }

    fn float(&self, places: &[&[&str]]) -> Result<f32> {
        let value = self.first(places)?;
        let key = || places.first().map_or(String::new(), |p| p.join("."));
        let float = value.as_f64().map(|v| v as f32);
        float.ok_or_else(|| self.wrong(&key(), &format!("{value} is no number")))
    }

    fn rope_dim(&self) -> Result<u32> {
        if self.find(&["qk_rope_head_dim"]).is_some() {
            return self.count(&[&["qk_rope_head_dim"]]);
        }
        let part = self.float(&[&["partial_rotary_factor"]])?;
        Ok((self.count(&[&["head_dim"]])? as f32 * part).round() as u32)
    }

    fn hash_layers(&self) -> Result<u32> {
        if self.find(&["num_hash_layers"]).is_some() {
            return self.count(&[&["num_hash_layers"]]);
        }
        let kinds = self.first(&[&["mlp_layer_types"]])?.as_array();
        let kinds = kinds.ok_or_else(|| self.wrong("mlp_layer_types", "is no list"))?;
        let hashed = kinds.iter().take_while(|kind| *kind == "hash_moe").count();
        if kinds.iter().skip(hashed).any(|kind| *kind == "hash_moe") {
            return Err(self.wrong("mlp_layer_types", "hashed layers must come first"));
        }
        Ok(hashed as u32)
    }

    /// Tokens in a compressed row, by layer; 0 in layers that compress nothing.
    fn ratios(&self, layers: usize) -> Result<Vec<u32>> {
        if let Some(ratios) = self.find(&["compress_ratios"]) {
            let read = |ratio: &Json| ratio.as_u64().and_then(|n| u32::try_from(n).ok());
            let ratios: Option<Vec<u32>> =
                ratios.as_array().and_then(|list| list.iter().map(read).collect());
            let ratios = ratios.filter(|ratios| ratios.len() >= layers);
            let problem = format!("must be at least {layers} counts, one a layer");
            let mut ratios = ratios.ok_or_else(|| self.wrong("compress_ratios", &problem))?;
            ratios.truncate(layers);
            return Ok(ratios);
        }
        let kinds = self.first(&[&["layer_types"]])?.as_array().filter(|k| k.len() == layers);
        let problem = format!("must name {layers} layers");
        let kinds = kinds.ok_or_else(|| self.wrong("layer_types", &problem))?;
        let ratio = |kind: &Json| match kind.as_str() {
            Some("sliding_attention") => Ok(0),
            Some("compressed_sparse_attention") => Ok(LayerKind::SPARSE_RATIO as u32),
            Some(kind @ "heavily_compressed_attention") => self.count(&[&["compress_rates", kind]]),
            _ => Err(self.wrong("layer_types", &format!("{kind} is not known"))),
        };
        kinds.iter().map(ratio).collect()
    }
}
