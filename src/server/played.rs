//! Answers played from given ids, for tests.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;

use super::{Answer, AnswerError, Content, Event, Frames, Keep, Reading, Whole};
use crate::demo::demo_model;
use crate::engine::{Chosen, Finish, Outcome, Update};
use crate::gguf::Gguf;
use crate::tokenizer::Tokenizer;

pub fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    let load = || Tokenizer::from_gguf(&Gguf::from_bytes(demo_model()).unwrap()).unwrap();
    Arc::clone(TOKENIZER.get_or_init(|| Arc::new(load())))
}

/// Ids of a text in the least canonical way: a token for each byte. `¤` is the marker, `]` the end
/// of reasoning.
pub fn spelled(text: &str) -> Vec<u32> {
    let control = *tokenizer().control();
    let mut ids = Vec::new();
    for character in text.chars() {
        match character {
            '¤' => ids.push(control.dsml),
            ']' => ids.push(control.end_think),
            other => {
                let mut bytes = [0; 4];
                ids.extend(other.encode_utf8(&mut bytes).bytes().map(byte_id));
            }
        }
    }
    ids
}

fn byte_id(byte: u8) -> u32 {
    static IDS: OnceLock<Vec<u32>> = OnceLock::new();
    let find = |byte| {
        let tokenizer = tokenizer();
        let mut ids = 0..tokenizer.vocab_size() as u32;
        let is =
            |&id: &u32| !tokenizer.is_control(id) && tokenizer.token_bytes(id) == Some(&[byte][..]);
        ids.find(is).unwrap()
    };
    IDS.get_or_init(|| (0..=255).map(find).collect())[usize::from(byte)]
}

pub fn reading(thinks: bool) -> Reading {
    Reading {
        content: Content::Reply { reasoning: thinks, tools: true },
        stop: vec!["STOP".to_owned()],
        parallel_tool_calls: true,
        call_prefix: "call_",
    }
}

pub fn outcome(finish: Finish) -> Outcome {
    Outcome {
        prompt_tokens: 7,
        cached_tokens: 3,
        generated_tokens: 0,
        finish,
        prefill: Duration::ZERO,
        decode: Duration::ZERO,
    }
}

/// What is told of an answer with these ids, and how many of them were taken.
pub fn events(
    reading: Reading,
    keep: Option<Box<dyn Keep>>,
    ids: &[u32],
    finish: Finish,
) -> Result<(Vec<Event>, usize), AnswerError> {
    let mut answer = Answer::new(tokenizer(), reading, keep);
    let mut events = Vec::new();
    let mut taken = 0;
    answer.push(Update::Prefill { cached: 3, done: 3, total: 7 }, &mut events)?;
    answer.push(Update::Prefill { cached: 3, done: 7, total: 7 }, &mut events)?;
    for &token in ids {
        if answer.is_done() {
            break;
        }
        taken += 1;
        answer.push(Update::Token(Chosen { token, logprobs: None }), &mut events)?;
    }
    answer.push(Update::End(outcome(finish)), &mut events)?;
    Ok((events, taken))
}

pub fn whole(events: &[Event]) -> Whole {
    let mut whole = Whole::new();
    events.iter().for_each(|event| whole.push(event.clone()));
    whole
}

/// Texts that a model might write, right and wrong, and how they end.
pub fn replies() -> impl Strategy<Value = (String, Finish)> {
    let piece = prop_oneof![
        4 => Just("]".to_owned()),
        1 => Just("¤".to_owned()),
        4 => Just("\n\n<¤tool_calls>\n".to_owned()),
        2 => Just("</¤tool_calls>".to_owned()),
        4 => Just("<¤invoke name=\"add\">\n".to_owned()),
        4 => Just("</¤invoke>\n".to_owned()),
        2 => Just("<¤parameter name=\"a\" string=\"true\">é\"\n</¤parameter>\n".to_owned()),
        2 => Just("<¤parameter name=\"b\" string=\"false\">[1, {}]</¤parameter>\n".to_owned()),
        1 => Just("STOP".to_owned()),
        4 => "[ a-zé世\n\"\\\\<&]{1,6}",
    ];
    let finish = prop_oneof![Just(Finish::Stop), Just(Finish::Length), Just(Finish::Context)];
    (prop::collection::vec(piece, 0..14), finish)
        .prop_map(|(pieces, finish)| (pieces.concat(), finish))
}

/// The frames of a stream: name and data.
pub fn frames(frames: &mut Frames) -> Vec<(String, Value)> {
    let text = frames.take();
    let frames = text.split_terminator("\n\n").filter(|frame| !frame.starts_with(':'));
    frames
        .map(|frame| {
            let (name, data) = frame.split_once('\n').unwrap();
            let data = data.strip_prefix("data: ").unwrap();
            let name = name.strip_prefix("event: ").unwrap().to_owned();
            (name, serde_json::from_str(data).unwrap())
        })
        .collect()
}
