//! A model with the family's head shapes in all four quantised formats against the same model in
//! F32: the formats change how weights lie in memory and nothing else.

use std::collections::BTreeMap;

use candle_ds4::candle::Device;
use candle_ds4::gguf::{Gguf, Metadata, TensorType, Writer};
use candle_ds4::model::{Input, Logits, Model};
use candle_ds4::ops::{Format, Workspace};
use half::f16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const HIDDEN: usize = 256;
const VOCAB: usize = 512;
const HEADS: usize = 64;
const HEAD_DIM: usize = 512;
const Q_RANK: usize = 64;
const GROUPS: usize = 8;
const O_RANK: usize = 32;
const INDEXER_HEADS: usize = 64;
const INDEXER_DIM: usize = 128;
const EXPERTS: usize = 6;
const ACTIVE: usize = 2;
const WIDTH: usize = 256;
const STREAMS: usize = 4;
const MIX: usize = 2 * STREAMS + STREAMS * STREAMS;
const RATIOS: [u32; 5] = [0, 0, 4, 128, 4];
/// Far fewer than the 75 rows that 300 tokens have at ratio 4: selection matters.
const TOP_K: u32 = 24;
const TOKENS: usize = 300;

/// One tensor as a file stores it, dimensions innermost first.
struct Stored {
    dims: Vec<u64>,
    ty: TensorType,
    bytes: Vec<u8>,
}

fn format_of(ty: TensorType) -> Option<Format> {
    Some(match ty {
        TensorType::F32 => Format::F32,
        TensorType::F16 => Format::F16,
        TensorType::Q8_0 => Format::Q8_0,
        TensorType::Q2_K => Format::Q2K,
        TensorType::Q4_K => Format::Q4K,
        TensorType::IQ2_XXS => Format::Iq2Xxs,
        _ => return None,
    })
}

/// Any bits, with scales such that the values are about `rms` in size and centred.
fn blocks(format: Format, n: usize, rms: f32, rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; format.row_bytes(n).unwrap()];
    rng.fill(&mut bytes[..]);
    // Where the scale and the minimum's scale are, the size of values at scale 1, and the
    // minimum's scale that centres them.
    let (scale, least, unit, centre) = match format {
        Format::F32 | Format::F16 => {
            let half = 3f32.sqrt() * rms;
            let values = (0..n).map(|_| rng.random_range(-half..half));
            return match format {
                Format::F32 => values.flat_map(f32::to_le_bytes).collect(),
                _ => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
            };
        }
        Format::Q8_0 => (0, None, 74.0, 0.0),
        Format::Q2K => (80, Some(82), 14.0, 1.5),
        Format::Q4K => (0, Some(2), 260.0, 7.5),
        Format::Iq2Xxs => (0, None, 48.0, 0.0),
        other => panic!("no weights in {other} here"),
    };
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        let d = rms / unit * rng.random_range(0.7..1.3);
        block[scale..scale + 2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        if let Some(least) = least {
            block[least..least + 2].copy_from_slice(&f16::from_f32(d * centre).to_le_bytes());
        }
    }
    bytes
}

/// Every tensor of the model, by name; types as in the published files.
fn tensors(rng: &mut StdRng) -> BTreeMap<String, Stored> {
    use TensorType::{F16, F32, IQ2_XXS, Q2_K, Q4_K, Q8_0};

    let mut all = BTreeMap::new();
    // `cols` inputs of size one give outputs of size one; a stack has one more dimension.
    let mut add = |name: String, ty: TensorType, shape: &[usize], rms: f32| {
        let n = shape.iter().product();
        let bytes = blocks(format_of(ty).unwrap(), n, rms, rng);
        let dims = shape.iter().rev().map(|&n| n as u64).collect();
        all.insert(name, Stored { dims, ty, bytes });
    };
    let unit = |cols: usize| (cols as f32).powf(-0.5);
    add("token_embd.weight".into(), F16, &[VOCAB, HIDDEN], 1.0);
    add("output.weight".into(), Q8_0, &[VOCAB, HIDDEN], unit(HIDDEN));
    add("output_norm.weight".into(), F32, &[HIDDEN], 1.0);
    let flat = STREAMS * HIDDEN;
    add("output_hc_fn.weight".into(), F16, &[STREAMS, flat], unit(flat));
    add("output_hc_base.weight".into(), F32, &[STREAMS], 0.5);
    add("output_hc_scale.weight".into(), F32, &[1], 1.0);
    for (layer, &ratio) in RATIOS.iter().enumerate() {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        for part in ["attn", "ffn"] {
            add(name(&format!("hc_{part}_fn")), F16, &[MIX, flat], unit(flat));
            add(name(&format!("hc_{part}_base")), F32, &[MIX], 0.5);
            add(name(&format!("hc_{part}_scale")), F32, &[3], 1.0);
            add(name(&format!("{part}_norm")), F32, &[HIDDEN], 1.0);
        }
        add(name("attn_q_a"), Q8_0, &[Q_RANK, HIDDEN], unit(HIDDEN));
        add(name("attn_q_a_norm"), F32, &[Q_RANK], 1.0);
        add(name("attn_q_b"), Q8_0, &[HEADS * HEAD_DIM, Q_RANK], unit(Q_RANK));
        add(name("attn_kv"), Q8_0, &[HEAD_DIM, HIDDEN], unit(HIDDEN));
        add(name("attn_kv_a_norm"), F32, &[HEAD_DIM], 1.0);
        add(name("attn_sinks"), F32, &[HEADS], 1.0);
        let group = HEADS / GROUPS * HEAD_DIM;
        add(name("attn_output_a"), Q8_0, &[GROUPS * O_RANK, group], 4.0 * unit(group));
        add(name("attn_output_b"), Q8_0, &[HIDDEN, GROUPS * O_RANK], unit(GROUPS * O_RANK));
        if ratio != 0 {
            let overlap = if ratio == 4 { 2 } else { 1 };
            let mut compressor = |prefix: &str, dim: usize| {
                let width = overlap * dim;
                add(name(&format!("{prefix}_kv")), F16, &[width, HIDDEN], unit(HIDDEN));
                add(name(&format!("{prefix}_gate")), F16, &[width, HIDDEN], unit(HIDDEN));
                add(name(&format!("{prefix}_ape")), F16, &[ratio as usize, width], 0.5);
                add(name(&format!("{prefix}_norm")), F32, &[dim], 1.0);
            };
            compressor("attn_compressor", HEAD_DIM);
            if ratio == 4 {
                compressor("indexer_compressor", INDEXER_DIM);
                let rows = INDEXER_HEADS * INDEXER_DIM;
                add(name("indexer.attn_q_b"), F16, &[rows, Q_RANK], unit(Q_RANK));
                add(name("indexer.proj"), F16, &[INDEXER_HEADS, HIDDEN], unit(HIDDEN));
            }
        }
        add(name("ffn_gate_inp"), F16, &[EXPERTS, HIDDEN], unit(HIDDEN));
        if layer > 0 {
            add(format!("blk.{layer}.exp_probs_b.bias"), F32, &[EXPERTS], 0.2);
        }
        let (gate_up, down) = if layer % 2 == 0 { (IQ2_XXS, Q2_K) } else { (Q4_K, Q4_K) };
        add(name("ffn_gate_exps"), gate_up, &[EXPERTS, WIDTH, HIDDEN], unit(HIDDEN));
        add(name("ffn_up_exps"), gate_up, &[EXPERTS, WIDTH, HIDDEN], unit(HIDDEN));
        add(name("ffn_down_exps"), down, &[EXPERTS, HIDDEN, WIDTH], unit(WIDTH));
        add(name("ffn_gate_shexp"), Q8_0, &[WIDTH, HIDDEN], unit(HIDDEN));
        add(name("ffn_up_shexp"), Q8_0, &[WIDTH, HIDDEN], unit(HIDDEN));
        add(name("ffn_down_shexp"), Q8_0, &[HIDDEN, WIDTH], unit(WIDTH));
    }
    // The first layer's experts are chosen by token id.
    let table = (0..VOCAB).flat_map(|_| {
        let first = rng.random_range(0..EXPERTS as i32);
        [first, (first + 1 + rng.random_range(0..EXPERTS as i32 - 1)) % EXPERTS as i32]
    });
    let bytes = table.flat_map(i32::to_le_bytes).collect();
    let dims = vec![ACTIVE as u64, VOCAB as u64];
    let stored = Stored { dims, ty: TensorType::I32, bytes };
    all.insert("blk.0.ffn_gate_tid2eid.weight".into(), stored);
    all
}

fn metadata() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "deepseek4").unwrap();
    let counts = [
        ("block_count", RATIOS.len()),
        ("context_length", 4096),
        ("embedding_length", HIDDEN),
        ("vocab_size", VOCAB),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", 1),
        ("attention.key_length", HEAD_DIM),
        ("attention.value_length", HEAD_DIM),
        ("rope.dimension_count", 64),
        ("attention.q_lora_rank", Q_RANK),
        ("attention.output_lora_rank", O_RANK),
        ("attention.output_group_count", GROUPS),
        ("attention.sliding_window", 128),
        ("attention.indexer.head_count", INDEXER_HEADS),
        ("attention.indexer.key_length", INDEXER_DIM),
        ("attention.indexer.top_k", TOP_K as usize),
        ("expert_count", EXPERTS),
        ("expert_used_count", ACTIVE),
        ("expert_feed_forward_length", WIDTH),
        ("expert_shared_count", 1),
        ("hash_layer_count", 1),
        ("hyper_connection.count", STREAMS),
        ("hyper_connection.sinkhorn_iterations", 20),
        ("rope.scaling.original_context_length", 65536),
    ];
    for (key, value) in counts {
        metadata.insert(format!("deepseek4.{key}"), value as u32).unwrap();
    }
    let floats = [
        ("rope.freq_base", 1e4),
        ("attention.compress_rope_freq_base", 1.6e5),
        ("rope.scaling.factor", 16.0),
        ("rope.scaling.yarn_beta_fast", 32.0),
        ("rope.scaling.yarn_beta_slow", 1.0),
        ("hyper_connection.epsilon", 1e-6),
        ("attention.layer_norm_rms_epsilon", 1e-6),
        ("expert_weights_scale", 1.5f32),
    ];
    for (key, value) in floats {
        metadata.insert(format!("deepseek4.{key}"), value).unwrap();
    }
    metadata.insert("deepseek4.expert_weights_norm", true).unwrap();
    metadata.insert("deepseek4.attention.compress_ratios", RATIOS.to_vec()).unwrap();
    metadata.insert("deepseek4.swiglu_clamp_exp", vec![10f32; RATIOS.len()]).unwrap();
    metadata
}

fn load(tensors: &BTreeMap<String, Stored>) -> Model {
    let mut writer = Writer::new(metadata());
    for (name, stored) in tensors {
        writer.tensor_bytes(name, &stored.dims, stored.ty, &stored.bytes).unwrap();
    }
    let mut file = Vec::new();
    writer.write(&mut file).unwrap();
    Model::load(&Gguf::from_bytes(file.into()).unwrap(), &Device::Cpu).unwrap()
}

fn logits(model: &Model, tokens: &[u32]) -> Vec<Vec<f32>> {
    let ws = Workspace::new(&Device::Cpu);
    let mut cache = model.new_cache().unwrap();
    let input = Input { tokens, cache: &mut cache };
    model.forward(&mut [input], Logits::All, &ws).unwrap().to_vec2().unwrap()
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap()
}

#[test]
fn quantised_weights_compute_what_their_f32_copy_computes() {
    let mut rng = StdRng::seed_from_u64(12);
    let quantised = tensors(&mut rng);
    let mut formats: Vec<_> = quantised.values().map(|stored| stored.ty.id()).collect();
    formats.sort_unstable();
    formats.dedup();
    assert_eq!(formats, [0, 1, 8, 10, 12, 16, 26], "F32, F16, the four formats, and I32");

    let copy: BTreeMap<String, Stored> = quantised
        .iter()
        .map(|(name, stored)| {
            let (dims, n) = (stored.dims.clone(), stored.dims.iter().product::<u64>());
            let Some(format) = format_of(stored.ty) else {
                let (ty, bytes) = (stored.ty, stored.bytes.clone());
                return (name.clone(), Stored { dims, ty, bytes });
            };
            let mut values = vec![0f32; n as usize];
            format.decode(&stored.bytes, &mut values).unwrap();
            let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
            (name.clone(), Stored { dims, ty: TensorType::F32, bytes })
        })
        .collect();

    let tokens: Vec<u32> = (0..TOKENS).map(|_| rng.random_range(0..VOCAB as u32)).collect();
    let (got, want) = (logits(&load(&quantised), &tokens), logits(&load(&copy), &tokens));
    let count = (TOKENS * VOCAB) as f32;
    let variance = want.iter().flatten().map(|v| v * v).sum::<f32>() / count;
    assert!((0.5..2.0).contains(&variance), "logits of variance {variance} prove little");
    let mut favourites: Vec<_> = want.iter().map(|row| argmax(row)).collect();
    favourites.sort_unstable();
    favourites.dedup();
    assert!(favourites.len() > 25, "only {} different answers", favourites.len());

    let mut worst = 0f32;
    for (token, (got, want)) in got.iter().zip(&want).enumerate() {
        for (got, want) in got.iter().zip(want) {
            worst = worst.max((got - want).abs());
        }
        assert_eq!(argmax(got), argmax(want), "token {token}");
    }
    println!("variance {variance:.2}, largest difference {worst:.1e}");
    // Blocks are decoded to f32 before they are multiplied: the same operations in the same order.
    assert_eq!(worst, 0.0, "the quantised path computes something else");
}
