//! A coding agent's session, by the rules of ds4's KV cache and by ours: what has to be computed
//! again, and what is written to the disk.
//!
//! Both are simulated token by token over tests/golden/kv/transcript.txt for the shape of DeepSeek
//! V4 Flash. Ours is the real store with pages and frontiers of the real size (of zeros, which
//! cost no room on the disk), and a list of what is in memory until the server is restarted.
//!
//! Figures: `cargo test --release --test kv_transcript -- --nocapture`

#[path = "kv_transcript/ds4.rs"]
mod ds4;
#[path = "kv_transcript/ours.rs"]
mod ours;
#[path = "kv_transcript/transcript.rs"]
mod transcript;

use std::collections::HashSet;

use transcript::{Event, Request};

/// What a session cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Tokens of prompts that were run through the model.
    pub prefilled: usize,
    /// Of these, the ones that had been run before after the very same tokens.
    pub recomputed: usize,
    /// Bytes written to the disk.
    pub written: u64,
    /// Points to come back to that were written.
    pub checkpoints: usize,
}

/// All beginnings of sequences that a model has run so far.
#[derive(Default)]
struct Computed(HashSet<u64>);

impl Computed {
    /// How many of `tokens[from..]` had been run before.
    fn again(&self, tokens: &[u32], from: usize) -> usize {
        hashes(tokens).skip(from).filter(|hash| self.0.contains(hash)).count()
    }

    fn add(&mut self, tokens: &[u32]) {
        self.0.extend(hashes(tokens));
    }
}

/// A hash for each beginning of a sequence.
fn hashes(tokens: &[u32]) -> impl Iterator<Item = u64> + '_ {
    tokens.iter().scan(0u64, |hash, token| {
        *hash = (*hash ^ u64::from(*token)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        *hash = hash.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (*hash >> 31);
        Some(*hash)
    })
}

/// A cache under a server: says how many tokens of a prompt it need not compute.
trait Rules {
    fn answer(&mut self, request: &Request) -> usize;
    fn restart(&mut self);
    fn written(&self) -> (u64, usize);
}

fn run(rules: &mut dyn Rules, events: &[Event]) -> Cost {
    let mut computed = Computed::default();
    let mut cost = Cost::default();
    for event in events {
        match event {
            Event::Restart => rules.restart(),
            Event::Request(request) => {
                let cached = rules.answer(request);
                cost.prefilled += request.prompt.len() - cached;
                cost.recomputed += computed.again(&request.prompt, cached);
                computed.add(&request.all());
            }
        }
    }
    rules.restart();
    (cost.written, cost.checkpoints) = rules.written();
    cost
}

#[test]
fn an_agents_session_costs_a_twentieth_of_the_work_and_a_tenth_of_the_bytes() {
    let events = transcript::read(include_str!("golden/kv/transcript.txt"));
    let requests = events.iter().filter(|event| matches!(event, Event::Request(_))).count();
    assert_eq!(requests, 40);
    let theirs = run(&mut ds4::Ds4::default(), &events);
    let folder = tempfile::tempdir().unwrap();
    let mut store = ours::Ours::new(folder.path());
    let ours = run(&mut store, &events);
    println!("ds4's rules: {theirs:?}\nours: {ours:?}");
    let of_them = |ours: f64, theirs: f64| 100.0 * ours / theirs;
    println!(
        "computed again: {:.1} %; written: {:.1} %",
        of_them(ours.recomputed as f64, theirs.recomputed as f64),
        of_them(ours.written as f64, theirs.written as f64),
    );
    let new = theirs.prefilled - theirs.recomputed;
    assert_eq!(ours.prefilled - ours.recomputed, new, "what is new is computed by both");
    assert!(20 * ours.recomputed <= theirs.recomputed, "{ours:?} {theirs:?}");
    assert!(10 * ours.written <= theirs.written, "{ours:?} {theirs:?}");

    // 3.8 KB a token, each token once, and the frontiers.
    let (pages, tokens, frontiers) = store.stored();
    assert!(pages <= 3800 * tokens as u64, "{pages} bytes for {tokens} tokens");
    assert_eq!(pages + frontiers, ours.written);
}
