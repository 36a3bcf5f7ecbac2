//! The model against logits that another implementation computed from the same bytes, and against
//! itself under every cut of a sequence. The vectors and how they were made: `tools/golden/`.

use std::path::{Path, PathBuf};

use candle_ds4::candle::{Device, Result, Tensor};
use candle_ds4::gguf::Gguf;
use candle_ds4::model::{Input, Logits, Model};
use candle_ds4::ops::Workspace;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Configurations without the training-time rounding, then two with it.
const GOLDENS: [&str; 9] = [
    "sliding",
    "sparse",
    "sparse_only",
    "heavy8",
    "heavy16",
    "mixed",
    "long",
    "rounded",
    "rounded_wide",
];

struct Golden {
    model: Model,
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

fn path(name: &str, extension: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/model")
        .join(name.to_owned() + extension)
}

fn golden(name: &str) -> Golden {
    let gguf = Gguf::open(path(name, ".gguf")).unwrap();
    let tokens = std::fs::read_to_string(path(name, ".tokens.txt")).unwrap();
    Golden {
        model: Model::load(&gguf, &Device::Cpu).unwrap(),
        tokens: tokens.split_whitespace().map(|id| id.parse().unwrap()).collect(),
        logits: Tensor::read_npy(path(name, ".logits.npy")).unwrap().to_vec2().unwrap(),
    }
}

/// Logits of every token, the sequence cut into pieces of these lengths.
fn run(model: &Model, tokens: &[u32], cuts: &[usize]) -> Vec<Vec<f32>> {
    let ws = Workspace::new(&Device::Cpu);
    let mut cache = model.new_cache().unwrap();
    let mut rows = Vec::new();
    for &len in cuts {
        let tokens = &tokens[cache.len()..][..len];
        let input = Input { tokens, cache: &mut cache };
        let logits = model.forward(&mut [input], Logits::All, &ws).unwrap();
        rows.extend(logits.to_vec2::<f32>().unwrap());
    }
    assert_eq!(cache.len(), tokens.len());
    rows
}

fn random_cuts(total: usize, rng: &mut StdRng) -> Vec<usize> {
    let mut cuts = Vec::new();
    let mut left = total;
    while left > 0 {
        cuts.push(rng.random_range(1..=left.min(total / 3)));
        left -= cuts[cuts.len() - 1];
    }
    cuts
}

#[test]
fn logits_are_those_of_transformers() {
    for name in GOLDENS {
        let golden = golden(name);
        let got = run(&golden.model, &golden.tokens, &[golden.tokens.len()]);
        assert_eq!(got.len(), golden.logits.len(), "{name}");
        let mut worst = 0f32;
        for (token, (got, want)) in got.iter().zip(&golden.logits).enumerate() {
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(want) {
                let difference = (got - want).abs();
                assert!(difference <= 2e-4, "{name}, token {token}: {got} is not {want}");
                worst = worst.max(difference);
            }
        }
        println!("{name}: {} tokens, largest difference {worst:.1e}", got.len());
    }
}

#[test]
fn every_cut_of_a_sequence_gives_the_same_bits() {
    let mut rng = StdRng::seed_from_u64(4);
    for name in GOLDENS {
        let Golden { model, tokens, .. } = golden(name);
        let whole = run(&model, &tokens, &[tokens.len()]);
        assert_eq!(run(&model, &tokens, &vec![1; tokens.len()]), whole, "{name}, one by one");
        for _ in 0..5 {
            let cuts = random_cuts(tokens.len(), &mut rng);
            assert_eq!(run(&model, &tokens, &cuts), whole, "{name}, {cuts:?}");
        }
    }
}

/// Attention goes through many tokens slice by slice; where one ends is a cut like any other.
#[test]
fn a_chunk_of_several_slices_gives_the_bits_of_shorter_ones() -> Result<()> {
    let Golden { model, .. } = golden(GOLDENS[0]);
    let mut rng = StdRng::seed_from_u64(9);
    let vocab = model.config().vocab_size as u32;
    let context = model.config().context_length;
    let sequences: Vec<Vec<u32>> = [1, 900, 3, 700, 40]
        .map(|len: usize| (0..len.min(context)).map(|_| rng.random_range(0..vocab)).collect())
        .into();
    let alone: Vec<_> = sequences
        .iter()
        .flat_map(|tokens| {
            let mut cuts = vec![300; tokens.len() / 300];
            cuts.push(tokens.len() % 300);
            run(&model, tokens, &cuts.into_iter().filter(|&cut| cut > 0).collect::<Vec<_>>())
        })
        .collect();
    let mut caches: Vec<_> = sequences.iter().map(|_| model.new_cache()).collect::<Result<_>>()?;
    let mut inputs: Vec<_> =
        sequences.iter().zip(&mut caches).map(|(tokens, cache)| Input { tokens, cache }).collect();
    let ws = Workspace::new(&Device::Cpu);
    let together = model.forward(&mut inputs, Logits::All, &ws).unwrap().to_vec2::<f32>()?;
    assert!(together.len() > 1024, "one slice only: the model's context is {context}");
    assert!(together == alone);
    Ok(())
}

#[test]
fn a_batch_of_sequences_gives_what_each_gives_alone() {
    let mut rng = StdRng::seed_from_u64(8);
    for name in GOLDENS {
        let Golden { model, tokens, .. } = golden(name);
        // Four sequences, each its own rotation of the tokens, at its own pace.
        let sequences: Vec<Vec<u32>> = (0..4)
            .map(|turn| {
                let mut tokens = tokens.clone();
                tokens.rotate_left(turn * 7);
                tokens.truncate(tokens.len() - turn * 5);
                tokens
            })
            .collect();
        let alone: Vec<_> = sequences.iter().map(|s| run(&model, s, &[s.len()])).collect();
        let ws = Workspace::new(&Device::Cpu);
        let mut caches: Vec<_> = sequences.iter().map(|_| model.new_cache().unwrap()).collect();
        let mut together = vec![Vec::new(); sequences.len()];
        while caches.iter().zip(&sequences).any(|(cache, s)| cache.len() < s.len()) {
            let mut inputs = Vec::new();
            let mut rows = Vec::new();
            for (index, (cache, s)) in caches.iter_mut().zip(&sequences).enumerate() {
                let left = s.len() - cache.len();
                if left > 0 {
                    let len = rng.random_range(1..=left.min(20));
                    let tokens = &s[cache.len()..][..len];
                    inputs.push(Input { tokens, cache });
                    rows.extend(std::iter::repeat_n(index, len));
                }
            }
            let logits = model.forward(&mut inputs, Logits::All, &ws).unwrap();
            for (index, row) in rows.into_iter().zip(logits.to_vec2::<f32>().unwrap()) {
                together[index].push(row);
            }
        }
        assert_eq!(together, alone, "{name}");
    }
}

#[test]
fn last_logits_are_the_last_row_of_all() -> Result<()> {
    let Golden { model, tokens, .. } = golden("mixed");
    let whole = run(&model, &tokens, &[tokens.len()]);
    let ws = Workspace::new(&Device::Cpu);
    let (mut a, mut b) = (model.new_cache()?, model.new_cache()?);
    let mut inputs = [
        Input { tokens: &tokens[..30], cache: &mut a },
        Input { tokens: &tokens[..17], cache: &mut b },
    ];
    let last = model.forward(&mut inputs, Logits::Last, &ws).unwrap().to_vec2::<f32>()?;
    assert_eq!(last, [whole[29].clone(), whole[16].clone()]);
    let input = Input { tokens: &tokens[30..33], cache: &mut a };
    assert_eq!(model.forward(&mut [input], Logits::None, &ws).unwrap().dims()[0], 0);
    assert_eq!(a.len(), 33);
    Ok(())
}

#[test]
fn a_restored_or_rewound_cache_goes_on_as_if_nothing_had_happened() -> Result<()> {
    for name in GOLDENS {
        let Golden { model, tokens, .. } = golden(name);
        let whole = run(&model, &tokens, &[tokens.len()]);
        let ws = Workspace::new(&Device::Cpu);
        let go_on = |cache: &mut candle_ds4::cache::Cache, to: usize| {
            let tokens = &tokens[cache.len()..to];
            let input = Input { tokens, cache };
            model.forward(&mut [input], Logits::All, &ws).unwrap().to_vec2::<f32>().unwrap()
        };
        for at in [1, 3, 4, 5, 15, 16, 17, 31] {
            let mut cache = model.new_cache()?;
            go_on(&mut cache, at);
            let snapshot = cache.snapshot()?;
            // Wrong tokens, then back.
            let wrong = vec![tokens[at]; 29];
            let input = Input { tokens: &wrong, cache: &mut cache };
            model.forward(&mut [input], Logits::None, &ws).unwrap();
            assert!(cache.truncate(at).is_err(), "29 tokens are too many to take back");
            cache.restore(&snapshot)?;
            assert_eq!(go_on(&mut cache, tokens.len()), whole[at..], "{name}, snapshot at {at}");

            let mut other = model.new_cache()?;
            other.restore(&snapshot)?;
            for back in [1, 8] {
                let wrong = vec![tokens[at + 1]; back];
                let input = Input { tokens: &wrong, cache: &mut other };
                model.forward(&mut [input], Logits::None, &ws).unwrap();
                other.truncate(at).unwrap();
            }
            assert_eq!(go_on(&mut other, tokens.len()), whole[at..], "{name}, rewound to {at}");
        }
    }
    Ok(())
}

#[test]
fn input_that_cannot_run_is_refused_and_changes_nothing() -> Result<()> {
    let Golden { model, tokens, .. } = golden("sparse");
    let ws = Workspace::new(&Device::Cpu);
    let mut cache = model.new_cache()?;
    let vocab = model.config().vocab_size as u32;
    let mut refused = |tokens: &[u32]| {
        let input = Input { tokens, cache: &mut cache };
        model.forward(&mut [input], Logits::All, &ws).unwrap_err().to_string()
    };
    let error = refused(&[1, 2, vocab]);
    assert!(error.contains(&format!("token {vocab} at position 2")), "{error}");
    assert!(refused(&[]).contains("no new tokens"));
    let error = refused(&vec![0; model.config().context_length + 1]);
    assert!(error.contains("longer than the model's context"), "{error}");
    assert!(cache.is_empty());
    assert_eq!(run(&model, &tokens, &[tokens.len()]).len(), tokens.len());
    Ok(())
}
