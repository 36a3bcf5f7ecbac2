//! Files that are whole GGUF files and no good model: each is refused with the name of what is
//! wrong and what to do about it, and no damage makes loading panic.

use std::path::{Path, PathBuf};

use candle_ds4::candle::Device;
use candle_ds4::engine::Engine;
use candle_ds4::gguf::{Array, Gguf, Metadata, TensorType, Value, Writer};
use candle_ds4::model::Model;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A file in parts that can be tampered with.
struct Parts {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, Vec<u64>, TensorType, Vec<u8>)>,
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Window, sparse and heavy layers, hash and top-k routing.
fn mixed() -> Parts {
    Parts::read(&path("tests/golden/model/mixed.gguf"))
}

impl Parts {
    fn read(path: &Path) -> Self {
        let gguf = Gguf::open(path).unwrap();
        let entries = gguf.metadata().iter();
        let tensors = gguf.tensors().iter();
        Self {
            metadata: entries.map(|(key, value)| (key.to_owned(), value.clone())).collect(),
            tensors: tensors
                .map(|t| (t.name.clone(), t.dims.clone(), t.ty, gguf.data(t).unwrap().to_vec()))
                .collect(),
        }
    }

    fn write(&self) -> Vec<u8> {
        let mut metadata = Metadata::new();
        for (key, value) in &self.metadata {
            metadata.insert(key.clone(), value.clone()).unwrap();
        }
        let mut writer = Writer::new(metadata);
        for (name, dims, ty, bytes) in &self.tensors {
            writer.tensor_bytes(name, dims, *ty, bytes).unwrap();
        }
        let mut file = Vec::new();
        writer.write(&mut file).unwrap();
        file
    }

    /// Replaces an entry, or with `None` drops it.
    fn set(mut self, key: &str, value: Option<Value>) -> Self {
        let at = self.metadata.iter().position(|(name, _)| name == key).unwrap();
        match value {
            Some(value) => self.metadata[at].1 = value,
            None => drop(self.metadata.remove(at)),
        }
        self
    }

    fn tensor(&mut self, name: &str) -> &mut (String, Vec<u64>, TensorType, Vec<u8>) {
        self.tensors.iter_mut().find(|t| t.0 == name).unwrap()
    }

    /// What loading says, as a user sees it.
    fn refusal(&self) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.gguf");
        std::fs::write(&file, self.write()).unwrap();
        match Engine::load(&file, &Device::Cpu) {
            Ok(_) => panic!("a bad model was loaded"),
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("model.gguf"), "no file named: {error}");
                error
            }
        }
    }
}

#[track_caller]
fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} missing: {error}");
    }
}

fn load(file: Vec<u8>) -> Result<Model, String> {
    let gguf = Gguf::from_bytes(file.into()).map_err(|error| error.to_string())?;
    Model::load(&gguf, &Device::Cpu).map_err(|error| error.to_string())
}

#[test]
fn every_missing_tensor_is_named() {
    let count = mixed().tensors.len();
    assert!(count > 100, "the golden has all kinds of tensors");
    for at in 0..count {
        let mut parts = mixed();
        let (name, ..) = parts.tensors.remove(at);
        says(&parts.refusal(), &[&name, "missing", "download"]);
    }
}

#[test]
fn every_missing_key_is_named() {
    // Values that a file may leave out, and some that describe it to other programs.
    let optional = [
        "context_length",
        "activation_rounding",
        "expert_weights_norm",
        "expert_group_count",
        "expert_group_used_count",
        "expert_gating_func",
        "nextn_predict_layers",
        "rope.scaling.type",
    ];
    let mut required = 0;
    for at in 0..mixed().metadata.len() {
        let mut parts = mixed();
        let (key, _) = parts.metadata.remove(at);
        match load(parts.write()) {
            Ok(_) => {
                let name = key.strip_prefix("deepseek4.");
                assert!(name.is_none_or(|name| optional.contains(&name)), "{key} is not read");
            }
            Err(error) => {
                required += 1;
                says(&error, &[&key, "missing", "download"]);
            }
        }
    }
    assert!(required > 25, "only {required} keys are needed");
}

#[test]
fn every_wrong_shape_is_named() {
    for at in 0..mixed().tensors.len() {
        let mut parts = mixed();
        let (name, dims, _, bytes) = &mut parts.tensors[at];
        let name = name.clone();
        // A row too many.
        let rows = dims.last_mut().unwrap();
        let row = bytes.len() / *rows as usize;
        *rows += 1;
        bytes.extend_from_within(..row);
        says(&parts.refusal(), &[&name, "shape", "download it again or convert it again"]);
    }
}

#[test]
fn a_type_without_a_kernel_is_named_with_those_that_have_one() {
    // The goldens' rows are shorter than a block of these types.
    let demo = path("assets/tiny/tiny.gguf");
    for (name, ty, role, have) in [
        ("blk.3.ffn_up_exps.weight", TensorType::Q5_K, "routed experts", "IQ2_XXS"),
        ("blk.0.ffn_gate_exps.weight", TensorType::IQ2_XS, "routed experts", "Q4_K"),
        ("blk.0.attn_q_a.weight", TensorType::Q4_0, "a matrix", "Q8_0"),
        ("token_embd.weight", TensorType::I8, "a matrix", "F16"),
        ("output_norm.weight", TensorType::Q8_0, "a vector", "F32"),
        ("blk.0.ffn_gate_tid2eid.weight", TensorType::F32, "a table of indices", "I32"),
    ] {
        let mut parts = Parts::read(&demo);
        let tensor = parts.tensor(name);
        let block = ty.block().unwrap();
        let n: u64 = tensor.1.iter().product();
        tensor.2 = ty;
        tensor.3 = vec![0; (n / block.elements * block.bytes) as usize];
        says(&parts.refusal(), &[name, ty.name().unwrap(), role, have, "quantise"]);
    }
}

#[test]
fn another_architecture_and_values_that_cannot_be_are_refused() {
    let key = |key: &str| format!("deepseek4.{key}");
    let refused = |name: &str, value: Value| {
        let error = mixed().set(name, Some(value)).refusal();
        says(&error, &[name]);
        error
    };
    says(&refused("general.architecture", "llama".into()), &["llama", "ds4 pull"]);
    says(&refused(&key("expert_used_count"), 77u32.into()), &["77", "download"]);
    for (name, value) in [
        ("attention.head_count", 0u32),
        ("embedding_length", u32::MAX),
        ("attention.head_count_kv", 2),
        ("attention.value_length", 1),
        ("rope.dimension_count", 3),
        ("attention.output_group_count", 3),
        ("expert_used_count", 1 << 20),
        ("attention.sliding_window", 1 << 20),
        ("attention.indexer.key_length", 1),
    ] {
        refused(&key(name), value.into());
    }
    for value in [0f32, -1.0, f32::NAN, f32::INFINITY] {
        refused(&key("rope.freq_base"), value.into());
        refused(&key("attention.layer_norm_rms_epsilon"), value.into());
    }
    let layers = mixed().set(&key("block_count"), Some(Value::U32(1 << 20))).refusal();
    says(&layers, &["attention.compress_ratios", "1048576 layers"]);
    refused(&key("attention.compress_ratios"), vec![4u32].into());
    refused(&key("attention.compress_ratios"), "4".into());
    refused(&key("swiglu_clamp_exp"), vec![f32::NAN; 64].into());
    refused(&key("expert_weights_norm"), false.into());
}

#[test]
fn values_that_no_training_leaves_are_refused() {
    let mut parts = mixed();
    let name = "blk.1.attn_norm.weight";
    parts.tensor(name).3[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
    says(&parts.refusal(), &[name, "value 2", "NaN", "download"]);

    let mut parts = mixed();
    let name = "blk.0.ffn_gate_tid2eid.weight";
    for wrong in [-1i32, 1 << 20] {
        let tensor = parts.tensor(name);
        tensor.3[4 * 5..4 * 6].copy_from_slice(&wrong.to_le_bytes());
        let row = format!("row {}", 5 / tensor.1[0]);
        says(&parts.refusal(), &[name, &row, &wrong.to_string(), "must be below", "download"]);
    }
}

#[test]
fn a_vocabulary_of_another_size_is_refused() {
    let mut parts = Parts::read(&path("assets/tiny/tiny.gguf"));
    let mut longer = 0;
    for (key, value) in &mut parts.metadata {
        match (key.as_str(), value) {
            ("tokenizer.ggml.tokens", Value::Array(Array::String(tokens))) => {
                let tokens_and_one = tokens.iter().chain([&b"<one more>"[..]]);
                longer = tokens.len() + 1;
                *tokens = tokens_and_one.map(<[u8]>::to_vec).collect();
            }
            ("tokenizer.ggml.token_type", Value::Array(Array::I32(types))) => types.push(3),
            _ => {}
        }
    }
    let (longer, model) = (longer.to_string(), (longer - 1).to_string());
    says(&parts.refusal(), &[&longer, &model, "vocabulary", "download"]);
}

#[test]
fn a_model_cut_anywhere_is_an_error() {
    let whole = mixed().write();
    assert!(load(whole.clone()).is_ok());
    let header = whole.len() / 8;
    let every = (0..header).chain((header..whole.len() - 64).step_by(101));
    for len in every {
        assert!(load(whole[..len].to_vec()).is_err(), "{len} of {} bytes load", whole.len());
    }
}

#[test]
fn no_damage_to_a_header_makes_loading_panic() {
    let whole = mixed().write();
    let header = Gguf::from_bytes(whole.clone().into()).unwrap().header().data_start() as usize;
    let mut rng = StdRng::seed_from_u64(5);
    let (mut loaded, mut refused) = (0, 0);
    for _ in 0..3000 {
        let mut file = whole.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..header);
            file[at] = match rng.random_range(0..3) {
                0 => file[at] ^ (1 << rng.random_range(0..8)),
                1 => rng.random(),
                _ => [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
            };
        }
        match load(file) {
            Ok(_) => loaded += 1,
            Err(error) => {
                assert!(!error.is_empty());
                refused += 1;
            }
        }
    }
    assert!(refused > 1000 && loaded > 0, "{refused} refused, {loaded} loaded");
}
