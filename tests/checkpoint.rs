//! Checkpoints as published: converted, they compute what a float model of the same bytes computes;
//! damaged, they are refused by name. Made by `tools/golden/checkpoint.py`.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_ds4::candle::{Device, Tensor};
use candle_ds4::engine::Engine;
use candle_ds4::gguf::Gguf;
use candle_ds4::model::{Input as Tokens, Logits, Model};
use candle_ds4::ops::Workspace;
use candle_ds4::quantize::{quantize, Input, Options, Recipe};
use serde_json::Value as Json;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn convert(from: &Path, out: &Path) -> Result<Input, String> {
    let input = Input::open(from).map_err(|error| error.to_string())?;
    let on = &mut |_: candle_ds4::quantize::Progress<'_>| ControlFlow::Continue(());
    quantize(&input, &Options::new(Recipe::F16), out, on).map_err(|error| error.to_string())?;
    Ok(input)
}

/// The largest difference between a file's logits and stored ones.
fn difference(gguf: &Path, logits: &Path, tokens: &Path) -> f32 {
    let model = Model::load(&Gguf::open(gguf).unwrap(), &Device::Cpu).unwrap();
    let tokens = fs::read_to_string(tokens).unwrap();
    let tokens: Vec<u32> = tokens.split_whitespace().map(|id| id.parse().unwrap()).collect();
    let wanted: Vec<Vec<f32>> = Tensor::read_npy(logits).unwrap().to_vec2().unwrap();
    let mut cache = model.new_cache().unwrap();
    let input = Tokens { tokens: &tokens, cache: &mut cache };
    let ws = Workspace::new(&Device::Cpu);
    let got = model.forward(&mut [input], Logits::All, &ws).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!((got.len(), got[0].len()), (wanted.len(), wanted[0].len()));
    let pairs = got.iter().flatten().zip(wanted.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn copy(folder: &Path) -> PathBuf {
    let to = folder.join("checkpoint");
    let _ = fs::remove_dir_all(&to);
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(golden("checkpoint/original")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    to
}

const SHARDS: [&str; 3] = [
    "model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors",
    "model-00003-of-00003.safetensors",
];

/// Changes the header of a safetensors file, its data staying as it is.
fn edit_header(path: &Path, edit: impl Fn(&str) -> String) {
    let bytes = fs::read(path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = edit(std::str::from_utf8(&bytes[8..8 + len]).unwrap());
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&bytes[8 + len..]);
    fs::write(path, out).unwrap();
}

/// Changes names in every header and in the index.
fn rename(folder: &Path, edit: impl Fn(&str) -> String + Copy) {
    for shard in SHARDS {
        edit_header(&folder.join(shard), edit);
    }
    let index = folder.join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, edit(&text)).unwrap();
}

#[test]
fn the_original_naming_and_types_give_the_logits_of_a_float_model() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let input = convert(&golden("checkpoint/original"), &out).unwrap();
    assert_eq!(input.ignored(), 1, "the draft head is left out");
    let worst = difference(
        &out,
        &golden("checkpoint/original.logits.npy"),
        &golden("checkpoint/original.tokens.txt"),
    );
    println!("original: largest difference {worst:.1e}");
    assert!(worst < 2e-4, "{worst}");
    let tokenizer = Engine::load(&out, &Device::Cpu).unwrap().tokenizer().clone();
    assert_eq!(tokenizer.encode("the"), [258, 2 + u32::from(b'e')]);
    assert_eq!(tokenizer.control().user, 259);
}

#[test]
fn the_naming_of_transformers_gives_its_logits() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    convert(&golden("checkpoint/transformers"), &out).unwrap();
    let worst =
        difference(&out, &golden("model/mixed.logits.npy"), &golden("model/mixed.tokens.txt"));
    println!("transformers: largest difference {worst:.1e}");
    assert!(worst < 2e-4, "{worst}");
}

#[test]
fn names_as_transformers_saves_them_are_known_too() {
    let folder = tempfile::tempdir().unwrap();
    let from = copy(folder.path());
    rename(&from, |text| {
        let text = text.replace("\"layers.", "\"model.layers.");
        let text = text.replace("attn.kv_norm", "attn.norm").replace("\"norm.", "\"model.norm.");
        let text = text.replace("\"embed.", "\"model.embed_tokens.");
        text.replace("\"hc_head_", "\"model.hc_head.hc_").replace("\"head.", "\"lm_head.")
    });
    let (out, plain) = (folder.path().join("out.gguf"), folder.path().join("plain.gguf"));
    convert(&from, &out).unwrap();
    convert(&golden("checkpoint/original"), &plain).unwrap();
    let [a, b] = [out, plain].map(|path| Gguf::open(path).unwrap());
    for info in b.tensors() {
        let same = a.data(a.tensor(&info.name).unwrap()).unwrap() == b.data(info).unwrap();
        assert!(same, "{}", info.name);
    }
}

/// The error of a copy of the checkpoint that was changed, and that it left no output.
fn refused(change: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let from = copy(folder.path());
    change(&from);
    let out = folder.path().join("out.gguf");
    let error = convert(&from, &out).map(|_| ()).unwrap_err();
    assert!(!out.exists());
    error
}

fn with(error: String, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn missing_cut_and_damaged_shards_are_named() {
    let shard = SHARDS[1];
    with(refused(|c| fs::remove_file(c.join(shard)).unwrap()), &[shard, "fetch"]);
    let cut = |len: usize| {
        move |c: &Path| {
            let bytes = fs::read(c.join(shard)).unwrap();
            fs::write(c.join(shard), &bytes[..bytes.len().min(len)]).unwrap();
        }
    };
    with(refused(cut(0)), &[shard]);
    with(refused(cut(1000)), &[shard, "whole"]);
    with(refused(cut(40_000)), &[shard, "tensor", "cut short"]);
    with(refused(|c| fs::write(c.join(shard), [b'<'; 4000]).unwrap()), &[shard, "header"]);
    let swapped = |c: &Path| {
        fs::copy(c.join(SHARDS[0]), c.join(shard)).unwrap();
    };
    with(refused(swapped), &[shard, "the index says"]);
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let everywhere = |from: &'static str, to: &'static str| {
        move |c: &Path| rename(c, |text| text.replace(from, to))
    };
    let error = refused(everywhere("layers.1.attn.wq_b.weight", "layers.1.attn.wq_c.weight"));
    with(error, &["layers.1.attn.wq_b.weight", "self_attn.q_b_proj", "missing"]);
    let error = refused(everywhere("layers.2.ffn.experts.3.w2.scale", "layers.2.odd"));
    with(error, &["layers.2.ffn.experts.3.w2.weight", "w2.scale", "missing"]);
    // A copy under a name that no model has.
    let error = refused(|c| {
        edit_header(&c.join(SHARDS[0]), |text| {
            let mut header: Json = serde_json::from_str(text).unwrap();
            let some = header.as_object().unwrap().values().next().unwrap().clone();
            header["layers.0.attn.wx.weight"] = some;
            header.to_string()
        })
    });
    with(error, &["layers.0.attn.wx.weight", SHARDS[0], "config.json"]);
    let config = |key: &'static str, value: &'static str| {
        move |c: &Path| {
            let path = c.join("config.json");
            let mut config: Json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            config[key] = serde_json::from_str(value).unwrap();
            fs::write(&path, config.to_string()).unwrap();
        }
    };
    with(refused(config("hidden_size", "64")), &["[272, 32]", "[272, 64]", "config.json"]);
    with(refused(config("model_type", "\"llama\"")), &["model_type"]);
    with(refused(config("q_lora_rank", "null")), &["q_lora_rank", "missing"]);
    with(refused(config("num_hidden_layers", "-1")), &["num_hidden_layers", "-1"]);
    with(refused(config("num_hidden_layers", "5")), &["compress_ratios"]);
    with(refused(config("scoring_func", "\"softmax\"")), &["softmax"]);
    with(refused(config("vocab_size", "200")), &["tokenizer.json", "200"]);
    with(refused(|c| fs::remove_file(c.join("config.json")).unwrap()), &["config.json"]);
    with(refused(|c| fs::remove_file(c.join("tokenizer.json")).unwrap()), &["tokenizer.json"]);
    let error = refused(everywhere("\"F8_E8M0\"", "\"I8\""));
    with(error, &["scales", "F8_E8M0"]);
}

#[test]
fn a_value_that_is_no_number_is_named() {
    // 0x7f is NaN in FP8.
    let error = refused(|c| {
        let path = c.join(SHARDS[0]);
        let mut bytes = fs::read(&path).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Json = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        let found = header.as_object().unwrap().iter().find(|(_, t)| t["dtype"] == "F8_E4M3");
        let at = found.unwrap().1["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[8 + len + at] = 0x7f;
        fs::write(&path, bytes).unwrap();
    });
    with(error, &["tensor blk.", "row 0", "value 0 is NaN"]);
}
