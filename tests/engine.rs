//! Sequences that are reused, rewound and interrupted answer as fresh ones do.

#[path = "support/ids.rs"]
mod ids;

use std::ops::ControlFlow;

use candle_ds4::candle::Device;
use candle_ds4::engine::{Engine, EngineError, Finish, Outcome, Progress, Request, Sequence};
use candle_ds4::sample::Sampling;
use ids::ids;

fn engine() -> Engine {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny/tiny.gguf");
    Engine::load(file, &Device::Cpu).unwrap()
}

/// Greedy, and never the end of the answer.
fn endless(engine: &Engine) -> Sampling {
    let eos = engine.tokenizer().control().eos;
    Sampling { logit_bias: [(eos, f32::NEG_INFINITY)].into(), ..Sampling::greedy() }
}

fn answer(engine: &Engine, sequence: &mut Sequence, prompt: &[u32]) -> (Vec<u32>, Outcome) {
    let request = Request { prompt: prompt.to_vec(), sampling: endless(engine), max_tokens: 24 };
    let mut tokens = Vec::new();
    let outcome = engine
        .generate(sequence, &request, &mut |progress| {
            if let Progress::Token(token) = progress {
                tokens.push(token);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    (tokens, outcome)
}

fn fresh(engine: &Engine, prompt: &[u32]) -> Vec<u32> {
    answer(engine, &mut engine.new_sequence().unwrap(), prompt).0
}

#[test]
fn a_conversation_computes_only_what_is_new_and_answers_the_same() {
    let engine = engine();
    let mut sequence = engine.new_sequence().unwrap();
    let mut prompt = ids(0, 700);
    for turn in 0..4 {
        let (tokens, outcome) = answer(&engine, &mut sequence, &prompt);
        assert_eq!(tokens, fresh(&engine, &prompt), "turn {turn}");
        if turn > 0 {
            let new = prompt.len() - outcome.cached_tokens;
            assert!(new <= 60, "turn {turn} computed {new} tokens of {}", prompt.len());
        }
        prompt.extend(tokens);
        prompt.extend(ids(turn * 5 + 1, 50));
    }
}

#[test]
fn a_prompt_that_diverges_goes_back_to_the_nearest_point_kept() {
    let engine = engine();
    let mut sequence = engine.new_sequence().unwrap();
    let system = ids(9, 600);
    answer(&engine, &mut sequence, &system);
    let with = |tail: &[u32]| [system.clone(), tail.to_vec()].concat();
    let (first, second) = (with(&ids(100, 40)), with(&ids(200, 33)));
    answer(&engine, &mut sequence, &first);
    let (tokens, outcome) = answer(&engine, &mut sequence, &second);
    assert_eq!(outcome.cached_tokens, system.len(), "the system prompt was computed once");
    assert_eq!(tokens, fresh(&engine, &second));

    // The same prompt once more: only its last token is left to compute.
    let (again, outcome) = answer(&engine, &mut sequence, &second);
    assert_eq!(again, tokens);
    assert_eq!(outcome.cached_tokens + 1, second.len());

    // Another one that shares nothing.
    let (tokens, outcome) = answer(&engine, &mut sequence, &ids(777, 130));
    assert_eq!((tokens, outcome.cached_tokens), (fresh(&engine, &ids(777, 130)), 0));
}

#[test]
fn breaking_off_at_any_point_leaves_a_usable_sequence() {
    let engine = engine();
    let prompt = ids(3, 1300);
    let want = fresh(&engine, &prompt);
    let mut sequence = engine.new_sequence().unwrap();
    for stop in 0..8 {
        let mut heard = 0;
        let request =
            Request { prompt: prompt.clone(), sampling: endless(&engine), max_tokens: 24 };
        let outcome = engine
            .generate(&mut sequence, &request, &mut |_| {
                heard += 1;
                if heard > stop {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .unwrap();
        assert_eq!(outcome.finish, Finish::Caller);
        assert_eq!(heard, stop + 1);
    }
    assert_eq!(answer(&engine, &mut sequence, &prompt).0, want);
}

#[test]
fn limits_end_an_answer_and_say_which() {
    let engine = engine().with_context(140);
    let mut sequence = engine.new_sequence().unwrap();
    let request = |prompt, max_tokens| Request { prompt, sampling: Sampling::greedy(), max_tokens };
    let mut go_on = |_: Progress| ControlFlow::Continue(());
    let outcome = engine.generate(&mut sequence, &request(ids(1, 20), 0), &mut go_on).unwrap();
    assert_eq!((outcome.finish, outcome.generated_tokens), (Finish::Length, 0));

    let long = Request { prompt: ids(1, 130), sampling: endless(&engine), max_tokens: 1000 };
    let outcome = engine.generate(&mut sequence, &long, &mut go_on).unwrap();
    assert_eq!(outcome.finish, Finish::Context);
    assert_eq!(outcome.prompt_tokens + outcome.generated_tokens, 141);

    let error = engine.generate(&mut sequence, &request(ids(1, 140), 9), &mut go_on).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("140 tokens") && text.contains("--ctx"), "{text}");
    let error = engine.generate(&mut sequence, &request(vec![], 9), &mut go_on).unwrap_err();
    assert!(matches!(error, EngineError::EmptyPrompt));
}
