//! The whole model through the Metal kernels, emulated on this CPU; and what the full-size model would
//! launch on a Mac. `cargo test --release --features metal-emulator --test metal`
#![cfg(feature = "metal-emulator")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use candle_ds4::candle::{Device, Result, Tensor};
use candle_ds4::config::LayerKind;
use candle_ds4::gguf::{Gguf, Writer};
use candle_ds4::model::{Input, Logits, Model};
use candle_ds4::ops::device::metal::{emulate, plan, record, Dispatch};
use candle_ds4::ops::Workspace;
use candle_ds4::quantize::{Layout, Recipe, Role, Synth};

fn demo() -> Model {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny/tiny.gguf");
    Model::load(&Gguf::open(file).unwrap(), &Device::Cpu).unwrap()
}

fn values(logits: &Tensor) -> Vec<f32> {
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

fn likeliest(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap()
}

/// Both on the same CPU caches: a prompt long enough that the indexer has to choose comes from the CPU,
/// then a chunk and single tokens run both ways.
#[test]
fn the_demo_model_answers_as_on_the_cpu() {
    const BEFORE: u32 = 1070;
    const CHUNK: u32 = 21;
    const SINGLE: usize = 3;
    let model = demo();
    let vocab = model.config().vocab_size as u32;
    let token = |i: u32| (i.wrapping_mul(2_654_435_761) >> 7) % vocab;
    let prompt: Vec<u32> = (0..BEFORE).map(token).collect();
    let chunk: Vec<u32> = (BEFORE..BEFORE + CHUNK).map(token).collect();
    let mut cache = model.new_cache().unwrap();
    let ws = Workspace::new(&Device::Cpu);
    let input = Input { tokens: &prompt, cache: &mut cache };
    model.forward(&mut [input], Logits::None, &ws).unwrap();
    let start = cache.snapshot().unwrap();

    let run = |emulated: bool, forced: &[Vec<f32>]| -> Vec<Vec<f32>> {
        let mut cache = model.new_cache().unwrap();
        cache.restore(&start).unwrap();
        let ws = Workspace::new(&Device::Cpu);
        let mut all: Vec<Vec<f32>> = Vec::new();
        let mut tokens = chunk.clone();
        for step in 0..=SINGLE {
            let input = Input { tokens: &tokens, cache: &mut cache };
            let forward = || model.forward(&mut [input], Logits::Last, &ws).map(|t| values(&t));
            let logits = match emulated {
                true => emulate(7 + step as u64, forward),
                false => forward(),
            };
            let logits = logits.unwrap();
            // The same tokens both ways, whatever the likeliest one is.
            tokens = vec![likeliest(forced.get(step).unwrap_or(&logits)) as u32];
            all.push(logits);
        }
        all
    };
    let want = run(false, &[]);
    let got = run(true, &want);
    for (step, (got, want)) in got.iter().zip(&want).enumerate() {
        let most = want.iter().fold(0f32, |most, v| most.max(v.abs()));
        let off = got.iter().zip(want).fold(0f32, |off, (a, b)| off.max((a - b).abs()));
        println!("step {step}: logits within {:.1e} of the largest", off / most);
        // Where a value lies between two codes of FP8 or FP4, sums in another order choose another one.
        assert!(off <= 1e-2 * most, "step {step}: {off} off, the largest is {most}");
        assert_eq!(likeliest(got), likeliest(want), "step {step}");
    }
}

/// Two sequences in one batch, one of them from its first token on.
#[test]
fn a_batch_of_the_demo_model_answers_as_on_the_cpu() -> Result<()> {
    let model = demo();
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37) % 2000).collect();
    let run = |seed: Option<u64>| -> Vec<f32> {
        let (mut a, mut b) = (model.new_cache().unwrap(), model.new_cache().unwrap());
        let ws = Workspace::new(&Device::Cpu);
        let input = Input { tokens: &tokens[..30], cache: &mut a };
        model.forward(&mut [input], Logits::None, &ws).unwrap();
        let mut forward = || {
            let first = Input { tokens: &tokens[30..31], cache: &mut a };
            let second = Input { tokens: &tokens[31..36], cache: &mut b };
            let logits = model.forward(&mut [first, second], Logits::All, &ws);
            values(&logits.unwrap())
        };
        match seed {
            Some(seed) => emulate(seed, forward),
            None => forward(),
        }
    };
    let want = run(None);
    let got = run(Some(99));
    let most = want.iter().fold(0f32, |most, v| most.max(v.abs()));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!((got - want).abs() <= 1e-2 * most, "value {i}: {got} is not {want}");
    }
    Ok(())
}

/// A file of zeros that takes no room: writes of nothing but zeros become holes.
struct Holes(File);

impl Write for Holes {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match bytes.iter().all(|&b| b == 0) {
            true => self.0.seek(SeekFrom::Current(bytes.len() as i64)).map(|_| bytes.len()),
            false => self.0.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// DeepSeek V4 Flash with all weights zero, layers of a kind sharing theirs; and the bytes of weights
/// that one token has to read.
fn flash(recipe: Recipe, file: &Path) -> (Model, usize) {
    let metadata = Synth::flash(recipe).unwrap().metadata;
    let config = candle_ds4::config::Config::from_metadata(&metadata).unwrap();
    let layout = Layout::of(&config);
    let mut writer = Writer::new(metadata);
    let mut known: BTreeMap<(String, usize), String> = BTreeMap::new();
    let mut needed = 0;
    for slot in layout.slots() {
        let ty = recipe.type_of(slot.role);
        let values: u64 = slot.dims.iter().product();
        let block = ty.block().unwrap();
        let bytes = values / block.elements * block.bytes;
        let rows = slot.rows().max(1) as u64 * slot.slices().max(1) as u64;
        needed += match slot.role {
            Role::Vector | Role::Indices => 0,
            Role::Embedding => (bytes / rows) as usize,
            Role::RoutedUp | Role::RoutedDown => {
                bytes as usize / config.moe.experts * config.moe.active
            }
            _ => bytes as usize,
        };
        let kind = slot.layer.and_then(|layer| config.layers[layer].ratio()).unwrap_or(0);
        let leaf = match slot.layer {
            Some(_) => slot.name.split('.').skip(2).collect::<Vec<_>>().join("."),
            None => slot.name.clone(),
        };
        let key = (leaf, kind);
        if let Some(same) = known.get(&key) {
            writer.alias(&slot.name, same).unwrap();
            continue;
        }
        known.insert(key, slot.name.clone());
        let fill = move |out: &mut dyn Write| -> candle_ds4::gguf::FillResult {
            let zeros = vec![0; 1 << 22];
            let mut left = bytes as usize;
            while left > 0 {
                let run = left.min(zeros.len());
                out.write_all(&zeros[..run])?;
                left -= run;
            }
            Ok(())
        };
        writer.tensor(&slot.name, &slot.dims, ty, fill).unwrap();
    }
    let mut out = Holes(File::create(file).unwrap());
    let bytes = writer.write(&mut out).unwrap();
    out.0.set_len(bytes).unwrap();
    (Model::load(&Gguf::open(file).unwrap(), &Device::Cpu).unwrap(), needed)
}

/// A device's name, its memory's bandwidth in GB/s, and what ds4 publishes for it in tokens/s.
const MACS: [(&str, f64, f64); 3] =
    [("M3 Max", 400.0, 26.7), ("M3 Ultra", 819.0, 36.9), ("M5 Max", 614.0, 39.4)];
/// Of the bandwidth, what a mat-vec kernel reaches; and seconds that a dependent launch costs. Both are
/// assumptions: nothing here was measured on a Mac.
const REACHED: f64 = 0.75;
const LAUNCH: f64 = 2.5e-6;

#[test]
fn a_token_of_the_full_model_reads_its_weights_once() {
    let folder = tempfile::tempdir().unwrap();
    for (recipe, name) in [(Recipe::Q2, "q2"), (Recipe::Q4, "q4")] {
        let (model, needed) = flash(recipe, &folder.path().join("flash.gguf"));
        let layers = &model.config().layers;
        let ws = Workspace::new(&Device::Cpu);
        let mut cache = model.new_cache().unwrap();
        let prompt: Vec<u32> = (0..3000).map(|i| i % 1000).collect();
        let forward = |tokens: &[u32], cache: &mut _| {
            let input = Input { tokens, cache };
            plan(|| model.forward(&mut [input], Logits::Last, &ws).map(drop)).unwrap();
        };
        forward(&prompt, &mut cache);
        // Positions 3000 to 3003: a window of four ends in the last one.
        let tokens = 4;
        let (_, log) = record(|| (0..tokens).for_each(|i| forward(&[i], &mut cache)));
        let tokens = tokens as usize;

        let read = log.iter().map(|d| d.weight_bytes).sum::<usize>() / tokens;
        let launches = log.len() / tokens;
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        log.iter().for_each(|Dispatch { kernel, .. }| *kinds.entry(kernel).or_default() += 1);
        println!("{name}: {read} bytes of weights a token, {needed} needed; {launches} launches");
        println!("{kinds:?}");
        assert!(read <= needed + needed / 20, "{read} bytes read, {needed} needed");
        assert!(read >= needed - needed / 100, "{read} bytes counted, {needed} needed");
        // A layer's, of one sequence, and two more where rows are chosen; embedding, the way out, the head.
        let of_layer = |kind: &LayerKind| match kind {
            LayerKind::Sparse { .. } => 13,
            _ => 11,
        };
        let wanted = layers.iter().map(of_layer).sum::<usize>() + 4;
        assert_eq!(launches, wanted, "{kinds:?}");
        for (mac, bandwidth, published) in MACS {
            let seconds = read as f64 / (REACHED * bandwidth * 1e9) + launches as f64 * LAUNCH;
            let bound = bandwidth * 1e9 / read as f64;
            println!(
                "{name} on {mac}: prediction {:.1} tokens/s, bound {bound:.1}; ds4 publishes \
                 {published} for its q2",
                1.0 / seconds
            );
        }
    }
}
