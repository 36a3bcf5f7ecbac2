//! A model of the real shape with random weights: for speed, which does not mind what they say.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use rayon::prelude::*;

use super::error::{QuantizeError, Result};
use super::plan::{Options, Plan, Planned};
use super::{Progress, Recipe, Role};
use crate::config::{Config, ARCHITECTURE};
use crate::gguf::{FillResult, Metadata, Strings, TensorType, Value, Writer};
use crate::tokenizer;

/// Bytes that are drawn at a time.
const CHUNK: usize = 4 << 20;
/// Layers of DeepSeek V4 Flash.
const LAYERS: u32 = 43;

/// What to make.
#[derive(Clone, Debug)]
pub struct Synth {
    /// Shape and vocabulary.
    pub metadata: Metadata,
    /// The types.
    pub recipe: Recipe,
    /// Layers of each kind (window, sparse, heavy) with data of their own; the others share it, which
    /// makes the file smaller but for a reader no different. `None`: all.
    pub distinct_layers: Option<usize>,
}

impl Synth {
    /// DeepSeek V4 Flash.
    ///
    /// # Errors
    /// None that is known: the numbers are fixed.
    pub fn flash(recipe: Recipe) -> Result<Self> {
        Self::first_layers(LAYERS, recipe)
    }

    /// The first layers of DeepSeek V4 Flash: two that see a window only, then sparse and heavy ones in
    /// turn.
    ///
    /// # Errors
    /// As [`Synth::flash`].
    pub fn first_layers(layers: u32, recipe: Recipe) -> Result<Self> {
        Ok(Self { metadata: flash(layers)?, recipe, distinct_layers: None })
    }

    /// Tensors, types and sizes.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn plan(&self) -> Result<Plan> {
        Plan::new(&self.metadata, &Options::new(self.recipe))
    }
}

/// Writes the file, whole or not at all, and returns its size in bytes. The same call writes the
/// same bytes.
///
/// # Errors
/// A shape that the recipe cannot have, or the disk's.
pub fn synth(
    what: &Synth,
    out: &Path,
    progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<u64> {
    let plan = what.plan()?;
    let config = Config::from_metadata(&what.metadata)?;
    let distinct = what.distinct_layers.unwrap_or(usize::MAX).max(1);
    // By leaf name and kind of layer: the tensors that have data of their own, and how many ask.
    let mut kinds: HashMap<(String, usize), (Vec<&str>, usize)> = HashMap::new();
    let mut own: Vec<(&Planned, Option<&str>)> = Vec::new();
    for t in &plan.tensors {
        let mut shared = None;
        if let Some(layer) = t.slot.layer {
            let leaf = t.slot.name.split('.').skip(2).collect::<Vec<_>>().join(".");
            let ratio = config.layers.get(layer).and_then(|kind| kind.ratio()).unwrap_or(0);
            let (names, asked) = kinds.entry((leaf, ratio)).or_default();
            shared = if *asked < distinct { None } else { names.get(*asked % distinct).copied() };
            if shared.is_none() {
                names.push(&t.slot.name);
            }
            *asked += 1;
        }
        own.push((t, shared));
    }
    let total = own.iter().filter(|t| t.1.is_none()).map(|t| t.0.bytes).sum();
    let tensors = own.len();
    let state = RefCell::new((progress, 0u64));
    let mut writer = Writer::new(plan.metadata.clone());
    for (index, (t, shared)) in own.into_iter().enumerate() {
        if let Some(shared) = shared {
            writer.alias(&t.slot.name, shared)?;
            continue;
        }
        let (state, experts) = (&state, config.moe.experts);
        let fill = move |out: &mut dyn Write| -> FillResult {
            fill(t, index, experts, out, &mut |bytes| {
                let mut state = state.borrow_mut();
                state.1 += bytes as u64;
                let (tensor, written) = (t.slot.name.as_str(), state.1);
                let report = Progress { tensor, number: index + 1, tensors, written, total };
                (state.0)(report)
            })
        };
        writer.tensor(&t.slot.name, &t.slot.dims, t.ty, fill)?;
    }
    Ok(writer.save(out)?)
}

/// Writes one tensor's random data.
fn fill(
    t: &Planned,
    index: usize,
    experts: usize,
    out: &mut dyn Write,
    report: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> FillResult {
    let block = t.ty.block().map_or(1, |block| block.bytes as usize);
    let step = CHUNK / block * block;
    let total = t.bytes as usize;
    let starts: Vec<usize> = (0..total).step_by(step).collect();
    for batch in starts.chunks(rayon::current_num_threads()) {
        let drawn: Vec<Vec<u8>> = batch
            .par_iter()
            .map(|start| {
                let mut bytes = vec![0; step.min(total - start)];
                let mut random = Random::new(index as u64, *start as u64);
                draw(t, experts, &mut random, &mut bytes);
                bytes
            })
            .collect();
        for bytes in &drawn {
            out.write_all(bytes)?;
            if report(bytes.len()).is_break() {
                return Err(QuantizeError::Stopped.into());
            }
        }
    }
    Ok(())
}

/// Random weights of the size that trained ones have, so that nothing overflows.
fn draw(t: &Planned, experts: usize, random: &mut Random, out: &mut [u8]) {
    let name = &t.slot.name;
    let float = |random: &mut Random| match t.slot.role {
        Role::Vector if name.contains("norm") => 1.0,
        Role::Vector if name.contains("scale") => 0.5,
        Role::Vector => 0.1 * random.normal(),
        _ => 0.02 * random.normal(),
    };
    // Where a block has its scales, and what they are.
    let scales: &[(usize, f32)] = match t.ty {
        TensorType::F32 => {
            out.as_chunks_mut().0.iter_mut().for_each(|b| *b = float(random).to_le_bytes());
            return;
        }
        TensorType::I32 => {
            let below = |random: &mut Random| (random.next() % experts.max(1) as u64) as i32;
            out.as_chunks_mut().0.iter_mut().for_each(|b| *b = below(random).to_le_bytes());
            return;
        }
        TensorType::F16 => {
            let half = |random: &mut Random| half::f16::from_f32(float(random)).to_le_bytes();
            out.as_chunks_mut().0.iter_mut().for_each(|b| *b = half(random));
            return;
        }
        TensorType::Q8_0 => &[(0, 0.02 / 73.0)],
        TensorType::IQ2_XXS => &[(0, 0.0004)],
        TensorType::Q2_K => &[(80, 0.0015), (82, 0.0022)],
        _ => &[(0, 0.000_12), (2, 0.0009)],
    };
    for word in out.chunks_mut(8) {
        let bytes = random.next().to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
    let block = t.ty.block().map_or(1, |block| block.bytes as usize);
    for block in out.chunks_exact_mut(block) {
        for (at, scale) in scales {
            if let Some(place) = block.get_mut(*at..at + 2) {
                place.copy_from_slice(&half::f16::from_f32(*scale).to_le_bytes());
            }
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn new(tensor: u64, start: u64) -> Self {
        let mut random = Self(tensor.wrapping_mul(0xd134_2543_de82_ef95) ^ start);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Close to normal, with variance 1: the sum of eight uniform bytes of one draw.
    fn normal(&mut self) -> f32 {
        let sum: u32 = self.next().to_le_bytes().iter().map(|b| u32::from(*b)).sum();
        (sum as f32 - 1020.0) / 209.0
    }
}

/// The metadata of DeepSeek V4 Flash's first layers, with a vocabulary of single bytes and the control tokens that
/// prompts need; the other numbers have placeholders.
fn flash(layers: u32) -> Result<Metadata> {
    const VOCABULARY: usize = 129_280;
    let mut out = Metadata::new();
    out.insert("general.architecture", ARCHITECTURE)?;
    out.insert("general.name", "DeepSeek V4 Flash, random weights")?;
    let mut put = |key: &str, value: Value| out.insert(format!("{ARCHITECTURE}.{key}"), value);
    for (key, value) in [
        ("block_count", layers),
        ("context_length", 1 << 20),
        ("embedding_length", 4096),
        ("vocab_size", VOCABULARY as u32),
        ("attention.head_count", 64),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 512),
        ("attention.value_length", 512),
        ("attention.q_lora_rank", 1024),
        ("attention.output_lora_rank", 1024),
        ("attention.output_group_count", 8),
        ("attention.sliding_window", 128),
        ("attention.indexer.head_count", 64),
        ("attention.indexer.key_length", 128),
        ("attention.indexer.top_k", 512),
        ("rope.dimension_count", 64),
        ("rope.scaling.original_context_length", 65_536),
        ("expert_count", 256),
        ("expert_used_count", 6),
        ("expert_feed_forward_length", 2048),
        ("expert_shared_count", 1),
        ("expert_group_count", 0),
        ("expert_group_used_count", 0),
        ("expert_gating_func", 4),
        ("hash_layer_count", layers.min(3)),
        ("hyper_connection.count", 4),
        ("hyper_connection.sinkhorn_iterations", 20),
    ] {
        put(key, value.into())?;
    }
    for (key, value) in [
        ("rope.freq_base", 1e4f32),
        ("rope.scaling.factor", 16.0),
        ("rope.scaling.yarn_beta_fast", 32.0),
        ("rope.scaling.yarn_beta_slow", 1.0),
        ("attention.compress_rope_freq_base", 160_000.0),
        ("attention.layer_norm_rms_epsilon", 1e-6),
        ("hyper_connection.epsilon", 1e-6),
        ("expert_weights_scale", 1.5),
    ] {
        put(key, value.into())?;
    }
    put("rope.scaling.type", "yarn".into())?;
    put("expert_weights_norm", true.into())?;
    let ratio = |layer: u32| match layer {
        0 | 1 => 0,
        even if even % 2 == 0 => 4,
        _ => 128,
    };
    put("attention.compress_ratios", (0..layers).map(ratio).collect::<Vec<u32>>().into())?;
    put("swiglu_clamp_exp", vec![10f32; layers as usize].into())?;

    let control = [
        tokenizer::BOS,
        tokenizer::EOS,
        tokenizer::USER,
        tokenizer::ASSISTANT,
        tokenizer::THINK,
        tokenizer::END_THINK,
        tokenizer::DSML,
        tokenizer::LATEST_REMINDER,
    ];
    let bytes = (0..=255u8).map(|byte| (tokenizer::byte_token(byte), 1));
    let known = control.iter().map(|text| ((*text).to_owned(), 3)).chain(bytes);
    let unused = (0..).map(|n| (format!("[unused{n}]"), 5));
    let (texts, kinds): (Vec<String>, Vec<i32>) = known.chain(unused).take(VOCABULARY).unzip();
    out.insert("tokenizer.ggml.model", "gpt2")?;
    out.insert("tokenizer.ggml.pre", "joyai-llm")?;
    out.insert("tokenizer.ggml.tokens", texts.into_iter().collect::<Strings>())?;
    out.insert("tokenizer.ggml.token_type", kinds)?;
    out.insert("tokenizer.ggml.merges", Strings::default())?;
    out.insert("tokenizer.ggml.bos_token_id", 0u32)?;
    out.insert("tokenizer.ggml.eos_token_id", 1u32)?;
    Ok(out)
}
