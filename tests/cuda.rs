//! The whole model on CUDA against the CPU: the demo model, whose tokens are easily told apart.
//!
//! With the feature `cuda-emulator` its kernels run on the CPU, a few steps of it; with `cuda` on GPU 0,
//! hundreds. The test binary needs no Rust where it runs:
//!
//!     cargo test --release --features cuda --test cuda --no-run
#![cfg(any(feature = "cuda", feature = "cuda-emulator"))]

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_ds4::candle::{Device, Tensor};
use candle_ds4::demo::demo_model;
use candle_ds4::gguf::Gguf;
use candle_ds4::model::{Input, Logits, Model};
use candle_ds4::ops::Workspace;
use candle_ds4::tokenizer::Tokenizer;

/// Steps that are compared; an emulated one takes a while.
const STEPS: usize = if cfg!(feature = "cuda") { 500 } else { 4 };
/// What activations in eight bits and halves may do to a score, as a share of the scores' spread.
const TOLERANCE: f32 = 0.15;
/// The same in a model of random weights, which damp no error.
const RANDOM: f32 = 0.3;
const QUESTION: &str = "What is the capital of France? The capital of France is";

/// One thread owns the device.
fn turn() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    cfg!(feature = "cuda").then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

fn gguf() -> Gguf {
    Gguf::from_bytes(demo_model()).unwrap()
}

fn prompt() -> Vec<u32> {
    let tokenizer = Tokenizer::from_gguf(&gguf()).unwrap();
    let mut ids = vec![tokenizer.control().bos];
    ids.extend(tokenizer.encode(QUESTION));
    ids
}

/// Runs `f` with the model where kernels run.
fn on_gpu<R>(f: impl FnOnce(&Model) -> R) -> R {
    #[cfg(feature = "cuda")]
    {
        let device = candle_ds4::ops::device::cuda::open(0).unwrap();
        f(&Model::load(&gguf(), &device).unwrap())
    }
    #[cfg(not(feature = "cuda"))]
    {
        let model = Model::load(&gguf(), &Device::Cpu).unwrap();
        candle_ds4::ops::device::cuda::emulate(7, || f(&model))
    }
}

fn scores(logits: Tensor) -> Vec<Vec<f32>> {
    logits.to_device(&Device::Cpu).unwrap().to_vec2().unwrap()
}

/// Scores after each of `tokens`, run in pieces of these lengths, the last of which repeats.
fn run(model: &Model, tokens: &[u32], cuts: &[usize]) -> Vec<Vec<f32>> {
    let ws = Workspace::new(model.device());
    let mut cache = model.new_cache().unwrap();
    let mut all = Vec::new();
    let mut lengths = cuts.iter().copied();
    let mut length = tokens.len();
    while cache.len() < tokens.len() {
        length = lengths.next().unwrap_or(length);
        let from = cache.len();
        let tokens = &tokens[from..tokens.len().min(from + length)];
        // The scores of single tokens come from recorded steps.
        let which = if tokens.len() == 1 { Logits::Last } else { Logits::All };
        let input = Input { tokens, cache: &mut cache };
        all.extend(scores(model.forward(&mut [input], which, &ws).unwrap()));
    }
    all
}

fn best(scores: &[f32]) -> usize {
    (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap()
}

/// Fails if scores of more than one step in each fifty differ by more than the tolerance, those of any by more
/// than a change of experts explains, or if a token that leads by more is another.
///
/// A router that is almost undecided chooses other experts after a rounding: such a step differs by more.
fn same(case: &str, got: &[Vec<f32>], want: &[Vec<f32>]) {
    within(case, TOLERANCE, got, want);
}

/// The same with another tolerance.
fn within(case: &str, tolerance: f32, got: &[Vec<f32>], want: &[Vec<f32>]) {
    assert_eq!(got.len(), want.len(), "{case}");
    let (mut worst, mut at, mut beyond) = (0f32, 0, 0);
    // Steps whose likeliest token is another, and by how much it led.
    let mut other = Vec::new();
    for (step, (got, want)) in got.iter().zip(want).enumerate() {
        let mean = want.iter().sum::<f32>() / want.len() as f32;
        let spread = want.iter().map(|s| (s - mean).powi(2)).sum::<f32>() / want.len() as f32;
        let spread = spread.sqrt();
        let mut of_step = 0f32;
        for (got, want) in got.iter().zip(want) {
            assert!(got.is_finite(), "{case}, step {step}: {got}");
            of_step = of_step.max((got - want).abs() / spread);
        }
        if of_step > worst {
            (worst, at) = (of_step, step);
        }
        beyond += usize::from(of_step > tolerance);
        let (found, wanted) = (best(got), best(want));
        let lead = (want[wanted] - want[found]) / spread;
        if lead > 2.0 * of_step.min(tolerance) {
            other.push((step, lead));
        }
    }
    let steps = got.len();
    println!(
        "{case}: scores differ by {worst} of their spread at most, at step {at}; {beyond} of {steps} \
         steps by more than {tolerance}"
    );
    assert!(other.is_empty(), "{case}: other tokens than on the CPU, with their lead: {other:?}");
    assert!(worst <= 4.0 * tolerance, "{case}: scores differ by {worst} of their spread");
    assert!(
        beyond <= steps.div_ceil(50),
        "{case}: {beyond} of {steps} steps differ by more than {tolerance}"
    );
}

#[test]
fn the_same_tokens_as_on_the_cpu() {
    let _turn = turn();
    let model = Model::load(&gguf(), &Device::Cpu).unwrap();
    let mut tokens = prompt();
    let known = tokens.len();
    // The CPU's own continuation, which both then read.
    let ws = Workspace::new(&Device::Cpu);
    let mut cache = model.new_cache().unwrap();
    let mut from = 0;
    for _ in 0..STEPS {
        let input = Input { tokens: &tokens[from..], cache: &mut cache };
        let logits = model.forward(&mut [input], Logits::Last, &ws).unwrap();
        from = tokens.len();
        tokens.push(best(&scores(logits)[0]) as u32);
    }
    let want = run(&model, &tokens, &[known, 1]);
    let got = on_gpu(|model| run(model, &tokens, &[known, 1]));
    same("greedy", &got, &want);
}

/// A step that is replayed does what a step that is launched op by op does, to the bit.
#[test]
fn recorded_steps_are_eager_ones() {
    let _turn = turn();
    let tokens: Vec<u32> = prompt().into_iter().cycle().take(STEPS.min(40) + 6).collect();
    let (recorded, eager, nodes) = on_gpu(|model| {
        let recorded = run(model, &tokens, &[6, 1]);
        let nodes = model.recorded_nodes().unwrap();
        let ws = Workspace::new(model.device());
        let mut cache = model.new_cache().unwrap();
        let mut eager = Vec::new();
        for tokens in [&tokens[..6]].into_iter().chain(tokens[6..].chunks(1)) {
            let input = Input { tokens, cache: &mut cache };
            eager.extend(scores(model.forward(&mut [input], Logits::All, &ws).unwrap()));
        }
        (recorded, eager, nodes)
    });
    assert!(recorded == eager, "replayed and launched steps differ");
    let [kernels, others, edges] = nodes.expect("nothing was recorded");
    println!("{kernels} launches a step, {edges} programmatic edges");
    assert_eq!(others, 0, "copies or allocations in a step");
    if cfg!(feature = "cuda") {
        assert_eq!(edges, kernels - 1, "every launch overlaps with its predecessor");
    }
}

#[test]
fn any_cut_gives_the_same_scores() {
    let _turn = turn();
    let many = if cfg!(feature = "cuda") { 300 } else { 20 };
    let tokens: Vec<u32> = prompt().into_iter().cycle().take(many).collect();
    let cpu = run(&Model::load(&gguf(), &Device::Cpu).unwrap(), &tokens, &[many]);
    on_gpu(|model| {
        same("at once", &run(model, &tokens, &[many]), &cpu);
        same("in chunks", &run(model, &tokens, &[7, 2, many / 2]), &cpu);
        if cfg!(feature = "cuda") {
            same("token by token", &run(model, &tokens, &[1]), &cpu);
        }
    });
}

#[test]
fn a_batch_is_its_sequences() {
    let _turn = turn();
    let prompt = prompt();
    let count = if cfg!(feature = "cuda") { 8 } else { 3 };
    // Sequences of different lengths.
    let of = |index: usize| -> Vec<u32> {
        prompt.iter().copied().cycle().skip(index).take(4 + index).collect()
    };
    on_gpu(|model| {
        let ws = Workspace::new(model.device());
        let mut caches: Vec<_> = (0..count).map(|_| model.new_cache().unwrap()).collect();
        let sequences: Vec<Vec<u32>> = (0..count).map(of).collect();
        let mut inputs: Vec<_> = sequences
            .iter()
            .zip(&mut caches)
            .map(|(tokens, cache)| Input { tokens, cache })
            .collect();
        model.forward(&mut inputs, Logits::None, &ws).unwrap();
        // Three steps: eager, recorded, replayed.
        let mut together = vec![Vec::new(); count];
        for step in 0..3 {
            let tokens: Vec<u32> = (0..count).map(|index| prompt[(index + step) % 5]).collect();
            let mut inputs: Vec<_> = tokens
                .chunks(1)
                .zip(&mut caches)
                .map(|(tokens, cache)| Input { tokens, cache })
                .collect();
            let logits = scores(model.forward(&mut inputs, Logits::Last, &ws).unwrap());
            together.iter_mut().zip(logits).for_each(|(all, logits)| all.push(logits));
        }
        for (index, together) in together.iter().enumerate() {
            let mut tokens = of(index);
            let known = tokens.len();
            tokens.extend((0..3).map(|step| prompt[(index + step) % 5]));
            let alone = run(model, &tokens, &[known, 1]);
            same(&format!("sequence {index}"), together, &alone[known..]);
        }
    });
}

/// A model of random weights: the full one's first four layers, with other numbers. All its layers choose
/// experts by token: a router of random weights is almost undecided too often for a comparison of scores.
fn random_model(numbers: &[(&str, u32)]) -> Gguf {
    use candle_ds4::gguf::Metadata;
    use candle_ds4::quantize::{synth, Recipe, Synth};

    let mut what = Synth::first_layers(4, Recipe::Q2).unwrap();
    let mut metadata = Metadata::new();
    let by_token = [("hash_layer_count", 4)];
    for (key, value) in what.metadata.iter() {
        let mut other = numbers.iter().chain(&by_token);
        match other.find(|(name, _)| key == format!("deepseek4.{name}")) {
            Some((_, value)) => metadata.insert(key, *value).unwrap(),
            None => metadata.insert(key, value.clone()).unwrap(),
        }
    }
    what.metadata = metadata;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("random.gguf");
    synth(&what, &file, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    // Mapped, so that it outlives its name.
    Gguf::open(&file).unwrap()
}

/// The full model's kinds of layers and head sizes, narrow: what the kernels that do a layer's work in few
/// launches are made for, and the demo model is not.
#[test]
fn a_narrow_model_of_the_full_kind() {
    let _turn = turn();
    const PROMPT: usize = 26;
    let gguf = random_model(&[
        ("vocab_size", 320),
        ("embedding_length", 512),
        ("attention.head_count", 8),
        ("attention.q_lora_rank", 128),
        ("attention.output_lora_rank", 64),
        ("attention.output_group_count", 2),
        ("attention.sliding_window", 16),
        ("attention.indexer.head_count", 8),
        ("attention.indexer.top_k", 4),
        ("expert_count", 8),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", 256),
    ]);
    let tokens: Vec<u32> = (0..PROMPT as u32 + 4).map(|i| i * 37 % 320).collect();
    let cpu = run(&Model::load(&gguf, &Device::Cpu).unwrap(), &tokens, &[PROMPT, 1]);
    let check = |model: &Model| {
        let recorded = run(model, &tokens, &[PROMPT, 1]);
        let ws = Workspace::new(model.device());
        let mut cache = model.new_cache().unwrap();
        let mut eager = Vec::new();
        for tokens in [&tokens[..PROMPT]].into_iter().chain(tokens[PROMPT..].chunks(1)) {
            let input = Input { tokens, cache: &mut cache };
            eager.extend(scores(model.forward(&mut [input], Logits::All, &ws).unwrap()));
        }
        assert!(recorded == eager, "replayed and launched steps differ");
        within("narrow", RANDOM, &recorded, &cpu);
    };
    #[cfg(feature = "cuda")]
    {
        let device = candle_ds4::ops::device::cuda::open(0).unwrap();
        check(&Model::load(&gguf, &device).unwrap());
    }
    #[cfg(not(feature = "cuda"))]
    {
        let model = Model::load(&gguf, &Device::Cpu).unwrap();
        candle_ds4::ops::device::cuda::emulate(11, || check(&model));
    }
}

/// Four layers of the full model's shape, one of each kind and more: a prompt long enough that rows are
/// chosen, then single tokens. Takes a minute, 8 GB of disk, and as much memory on the host and on the GPU:
///
///     ./cuda-… --ignored --nocapture four_layers
#[cfg(feature = "cuda")]
#[test]
#[ignore = "writes 8 GB"]
fn four_layers_of_the_full_shape() {
    const PROMPT: usize = 2080;
    const SINGLE: usize = 16;
    let _turn = turn();
    let gguf = random_model(&[]);
    let tokens: Vec<u32> = (0..(PROMPT + SINGLE) as u32).map(|i| i * 7919 % 129_280).collect();
    let scores_of = |device: &Device| {
        let model = Model::load(&gguf, device).unwrap();
        let ws = Workspace::new(device);
        let mut cache = model.new_cache().unwrap();
        let mut all = Vec::new();
        for tokens in [&tokens[..PROMPT]].into_iter().chain(tokens[PROMPT..].chunks(1)) {
            let input = Input { tokens, cache: &mut cache };
            all.extend(scores(model.forward(&mut [input], Logits::Last, &ws).unwrap()));
        }
        all
    };
    let want = scores_of(&Device::Cpu);
    let got = scores_of(&candle_ds4::ops::device::cuda::open(0).unwrap());
    within("four layers", RANDOM, &got, &want);
}
