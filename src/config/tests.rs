use super::*;
use crate::gguf::{Array, Value};

/// The metadata of the full model, as its converter writes it.
pub(crate) fn flash() -> Metadata {
    let mut metadata = Metadata::new();
    let mut put = |key: &str, value: Value| {
        let key = match key.strip_prefix("general.") {
            Some(_) => key.to_owned(),
            None => format!("deepseek4.{key}"),
        };
        metadata.insert(key, value).unwrap();
    };
    put("general.architecture", "deepseek4".into());
    for (key, value) in [
        ("vocab_size", 129_280),
        ("context_length", 1_048_576),
        ("embedding_length", 4096),
        ("block_count", 43),
        ("attention.head_count", 64),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 512),
        ("attention.value_length", 512),
        ("rope.dimension_count", 64),
        ("attention.q_lora_rank", 1024),
        ("attention.output_lora_rank", 1024),
        ("attention.output_group_count", 8),
        ("attention.sliding_window", 128),
        ("attention.indexer.head_count", 64),
        ("attention.indexer.key_length", 128),
        ("attention.indexer.top_k", 512),
        ("expert_count", 256),
        ("expert_used_count", 6),
        ("expert_feed_forward_length", 2048),
        ("expert_shared_count", 1),
        ("hash_layer_count", 3),
        ("hyper_connection.count", 4),
        ("hyper_connection.sinkhorn_iterations", 20),
        ("rope.scaling.original_context_length", 65_536),
    ] {
        put(key, Value::U32(value));
    }
    for (key, value) in [
        ("hyper_connection.epsilon", 1e-6),
        ("attention.layer_norm_rms_epsilon", 1e-6),
        ("expert_weights_scale", 1.5),
        ("rope.freq_base", 1e4),
        ("attention.compress_rope_freq_base", 1.6e5),
        ("rope.scaling.factor", 16.0),
        ("rope.scaling.yarn_beta_fast", 32.0),
        ("rope.scaling.yarn_beta_slow", 1.0),
    ] {
        put(key, Value::F32(value));
    }
    put("expert_weights_norm", Value::Bool(true));
    put("swiglu_clamp_exp", Value::Array(Array::F32(vec![10.0; 43])));
    let ratios: Vec<i32> =
        (0..44).map(|i| if i < 2 || i == 43 { 0 } else { [4, 128][i % 2] }).collect();
    put("attention.compress_ratios", Value::Array(Array::I32(ratios)));
    metadata
}

/// `flash` with one value changed, or taken out.
fn changed(key: &str, value: Option<Value>) -> Metadata {
    let mut metadata = Metadata::new();
    for (name, old) in flash().iter() {
        let value = if name == key { value.clone() } else { Some(old.clone()) };
        if let Some(value) = value {
            metadata.insert(name, value).unwrap();
        }
    }
    metadata
}

#[test]
fn the_full_model_is_two_window_layers_then_sparse_and_heavy_in_turn() {
    let config = Config::from_metadata(&flash()).unwrap();
    assert_eq!(config.layers.len(), 43);
    assert_eq!(
        config.layers[..4],
        [
            LayerKind::Window,
            LayerKind::Window,
            LayerKind::Sparse { ratio: 4 },
            LayerKind::Heavy { ratio: 128 },
        ]
    );
    assert_eq!(config.layers.iter().filter(|k| k.ratio() == Some(4)).count(), 21);
    assert_eq!(config.layers.iter().filter(|k| k.ratio() == Some(128)).count(), 20);
    assert!(config.activation_rounding, "on unless the file says otherwise");
    assert_eq!(config.rope_table(LayerKind::Window).frequencies().len(), 32);
    assert_eq!(config.nope_dim(), 448);
}

#[test]
fn every_key_that_is_read_is_named_when_it_is_missing() {
    let optional = ["deepseek4.context_length", "deepseek4.expert_weights_norm"];
    for (key, _) in flash().iter() {
        let result = Config::from_metadata(&changed(key, None));
        if optional.contains(&key) {
            result.unwrap();
        } else {
            let error = result.expect_err(key).to_string();
            assert!(error.contains(key), "{key}: {error}");
        }
    }
}

#[test]
fn values_that_no_model_can_have_are_refused_by_name() {
    for (key, value) in [
        ("deepseek4.embedding_length", Value::U32(0)),
        ("deepseek4.block_count", Value::U64(u64::MAX)),
        ("deepseek4.block_count", Value::U32(45)),
        ("deepseek4.attention.head_count_kv", Value::U32(2)),
        ("deepseek4.attention.value_length", Value::U32(256)),
        ("deepseek4.rope.dimension_count", Value::U32(63)),
        ("deepseek4.rope.dimension_count", Value::U32(514)),
        ("deepseek4.attention.output_group_count", Value::U32(7)),
        ("deepseek4.expert_used_count", Value::U32(257)),
        ("deepseek4.expert_weights_norm", Value::Bool(false)),
        ("deepseek4.attention.indexer.key_length", Value::U32(96)),
        ("deepseek4.attention.indexer.key_length", Value::U32(32)),
        ("deepseek4.rope.freq_base", Value::F32(f32::NAN)),
        ("deepseek4.hyper_connection.epsilon", Value::F32(-1.0)),
        ("deepseek4.swiglu_clamp_exp", Value::Array(Array::F32(vec![10.0; 42]))),
        ("deepseek4.attention.compress_ratios", Value::Array(Array::I32(vec![-4; 43]))),
        ("deepseek4.vocab_size", Value::F32(1.0)),
    ] {
        // The list that block_count outgrows is the one to name.
        let named = match &value {
            Value::U32(45) => "deepseek4.attention.compress_ratios",
            _ => key,
        };
        let metadata = changed(key, Some(value.clone()));
        let error = Config::from_metadata(&metadata).expect_err(key).to_string();
        assert!(error.contains(named), "{key} = {value:?}: {error}");
    }
}

#[test]
fn another_architecture_is_refused_with_what_to_do() {
    let metadata = changed("general.architecture", Some("llama".into()));
    let error = Config::from_metadata(&metadata).unwrap_err().to_string();
    assert!(error.contains("\"llama\"") && error.contains("ds4 pull"), "{error}");
}
