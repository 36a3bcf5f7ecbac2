use super::*;
use crate::cache::Cache;
use crate::config::Config;
use crate::demo::demo_model;
use crate::gguf::Gguf;
use candle_core::Device;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const ALICE: Namespace = Namespace([1; 16]);
const BOB: Namespace = Namespace([2; 16]);

fn state() -> Arc<Snapshot> {
    let gguf = Gguf::from_bytes(demo_model()).unwrap();
    let config = Config::from_metadata(gguf.metadata()).unwrap();
    Arc::new(Cache::new(&config, &Device::Cpu).unwrap().into_snapshot().unwrap())
}

/// A snapshot of its own with the same content.
fn another(state: &Snapshot) -> Arc<Snapshot> {
    Arc::new(state.duplicate().unwrap())
}

#[test]
fn lookups_are_those_of_a_plain_list_whatever_was_put_in_and_taken_out() {
    let mut rng = StdRng::seed_from_u64(1);
    let state = state();
    let one = state.fixed_bytes();
    for round in 0..40 {
        let mut prefixes = Prefixes::default();
        let mut list: Vec<(Namespace, Vec<u32>)> = Vec::new();
        for _ in 0..60 {
            // Few letters and lengths, so that everything parts from everything everywhere.
            let mut tokens: Vec<u32> = match rng.random_range(0..3) {
                0 if !list.is_empty() => list[rng.random_range(0..list.len())].1.clone(),
                _ => Vec::new(),
            };
            tokens.truncate(rng.random_range(0..=tokens.len()));
            let more = rng.random_range(1..30);
            tokens.extend((0..more).map(|_| rng.random_range(0..2u32)));
            let namespace = if rng.random_bool(0.7) { ALICE } else { BOB };

            let found = prefixes.find(namespace, &tokens);
            let own = || list.iter().filter(|(of, _)| *of == namespace);
            let shared = own().map(|(_, kept)| common(kept, &tokens)).max().unwrap_or(0);
            let usable = own().map(|(_, kept)| {
                let same = common(kept, &tokens).min(tokens.len() - 1);
                if kept.len() <= same + REWIND_TOKENS {
                    same.min(kept.len())
                } else {
                    0
                }
            });
            assert_eq!(found.shared, shared, "round {round}");
            assert_eq!(found.len(), usable.max().unwrap_or(0), "round {round}");
            drop(found);

            let known = own().any(|(_, kept)| *kept == tokens);
            assert_eq!(prefixes.contains(namespace, &tokens), known);
            prefixes.insert(namespace, &tokens, another(&state), 0);
            if !known {
                list.push((namespace, tokens));
            }
            assert_eq!((prefixes.frontiers(), prefixes.bytes()), (list.len(), one * list.len()));
            if rng.random_bool(0.05) {
                let budget = one * rng.random_range(0..=list.len());
                prefixes.shrink(budget);
                assert!(prefixes.bytes() <= budget);
                list.retain(|(namespace, tokens)| prefixes.contains(*namespace, tokens));
                assert_eq!(prefixes.frontiers(), list.len());
            }
        }
        prefixes.shrink(0);
        assert_eq!((prefixes.bytes(), prefixes.frontiers()), (0, 0));
        assert!(prefixes.tree.is_empty() && prefixes.pages.is_empty());
    }
}

#[test]
fn what_is_in_use_stays_and_what_is_worth_most_goes_last() {
    let state = state();
    let mut prefixes = Prefixes::default();
    let tokens: Vec<u32> = (0..1000).collect();
    // A long prefix that is asked for, a long one that is not, a short step after it.
    prefixes.insert(ALICE, &tokens[..500], another(&state), 0);
    let held = another(&state);
    prefixes.insert(ALICE, &tokens[1..10], held.clone(), 0);
    prefixes.insert(ALICE, &tokens[..900], another(&state), 0);
    prefixes.insert(ALICE, &tokens[..910], another(&state), 0);
    for _ in 0..3 {
        assert_eq!(prefixes.find(ALICE, &tokens[..600]).len(), 500);
    }
    let one = state.fixed_bytes();
    let left =
        |prefixes: &Prefixes| [500, 900, 910].map(|len| prefixes.contains(ALICE, &tokens[..len]));
    assert_eq!(prefixes.shrink(one * 4 - 1), 1);
    assert_eq!(left(&prefixes), [true, true, false]);
    assert_eq!(prefixes.shrink(one * 3 - 1), 1);
    assert_eq!(left(&prefixes), [true, false, false]);
    assert_eq!(prefixes.shrink(0), 1);
    assert!(prefixes.contains(ALICE, &tokens[1..10]), "somebody holds it");
    assert_eq!((prefixes.pinned_bytes(), prefixes.bytes()), (one, one));
    drop(held);
    assert_eq!((prefixes.shrink(0), prefixes.bytes()), (1, 0));
}

#[test]
fn common_prefixes_are_exact_around_blocks() {
    for len in [0, 1, 63, 64, 65, 127, 128, 200] {
        for other in [0, 1, 63, 64, 65, 127, 128, 200] {
            for at in 0..=len.min(other) {
                let a: Vec<u32> = (0..len as u32).collect();
                let mut b: Vec<u32> = (0..other as u32).collect();
                b.iter_mut().skip(at).for_each(|token| *token += 1);
                assert_eq!(common(&a, &b), at);
            }
        }
    }
}
