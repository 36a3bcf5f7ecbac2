//! An answer is the same however it comes: in one piece or in many, in whatever tokens.

use std::sync::Arc;
use std::time::Duration;

use candle_ds4::demo::demo_model;
use candle_ds4::engine::{self, Chosen, Outcome, TokenLogprob, Update};
use candle_ds4::gguf::Gguf;
use candle_ds4::server::{
    chat_completion, Answer, AnswerError, ChatChunks, ChatHead, Content, Encode, Event, Finish,
    Frames, Reading, Whole,
};
use candle_ds4::tokenizer::{Tokenizer, DSML};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{json, Map, Value};

use crate::client::frames;

/// Random token streams that every property is checked with.
const STREAMS: u64 = 10_000;

/// A piece of what a model may write.
#[derive(Clone, Debug)]
enum Piece {
    Text(&'static str),
    Control(u32),
}

struct Model {
    tokenizer: Arc<Tokenizer>,
    /// The token of each byte.
    bytes: Vec<u32>,
}

impl Model {
    fn new() -> Self {
        let gguf = Gguf::from_bytes(demo_model()).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let ids = 0..tokenizer.vocab_size() as u32;
        let of = |byte: u8| {
            let own = |id: &u32| {
                tokenizer.token_bytes(*id) == Some(&[byte]) && !tokenizer.is_control(*id)
            };
            ids.clone().find(own).unwrap()
        };
        let bytes = (0..=255).map(of).collect();
        Self { tokenizer: Arc::new(tokenizer), bytes }
    }

    /// A stream that is now and then what a model should write, and often not.
    fn stream(&self, random: &mut StdRng) -> Vec<Piece> {
        let control = self.tokenizer.control();
        let marker = Piece::Control(control.dsml);
        let texts = [
            "<",
            "</",
            "\n\n",
            "\n",
            "tool_calls>",
            "tool_calls>\n",
            "invoke name=\"f\">\n",
            "invoke>\n",
            "invoke>",
            "parameter name=\"a\" string=\"true\">",
            "parameter name=\"b\" string=\"false\">",
            "parameter>",
            "parameter>\n",
            "[1, 2]",
            "True",
            "{\"x\": 1}",
            "Grüße 𝄞",
            "\"quoted\\\"",
            "STOP",
            "ST",
            "OP",
            "Hello",
            " world. ",
            "\u{0}",
        ];
        let mut pieces = Vec::new();
        for _ in 0..random.random_range(1..12) {
            match random.random_range(0..10) {
                0..=3 => pieces.push(Piece::Text(texts.choose(random).unwrap())),
                4 => pieces.push(marker.clone()),
                5 => pieces.push(Piece::Control(control.end_think)),
                6 => pieces.push(Piece::Control(control.think)),
                7 => pieces.push(Piece::Control(control.user)),
                _ => self.block(random, &marker, &mut pieces),
            }
        }
        pieces
    }

    /// A block of calls; sometimes one of its pieces is lost.
    fn block(&self, random: &mut StdRng, marker: &Piece, pieces: &mut Vec<Piece>) {
        let start = pieces.len();
        let tag = |open: &'static str, rest: &'static str| {
            [Piece::Text(open), marker.clone(), Piece::Text(rest)]
        };
        let values = ["Paris", "a < b </ c", "line\nline", "\"q\" \\ é", "STOP", "", "𝄞"];
        pieces.push(Piece::Text("\n\n"));
        pieces.extend(tag("<", "tool_calls>\n"));
        for _ in 0..random.random_range(1..3) {
            pieces.extend(tag("<", "invoke name=\"get_weather\">\n"));
            if random.random() {
                pieces.extend(tag("<", "parameter name=\"city\" string=\"true\">"));
                pieces.push(Piece::Text(values.choose(random).unwrap()));
                pieces.extend(tag("</", "parameter>\n"));
            }
            if random.random() {
                pieces.extend(tag("<", "parameter name=\"days\" string=\"false\">"));
                pieces
                    .push(Piece::Text(["3", "[1, {\"a\": null}]", "True"].choose(random).unwrap()));
                pieces.extend(tag("</", "parameter>\n"));
            }
            pieces.extend(tag("</", "invoke>\n"));
        }
        pieces.extend(tag("</", "tool_calls>"));
        if random.random_range(0..3) == 0 {
            pieces.remove(random.random_range(start..pieces.len()));
        }
    }

    /// The ids of a stream: text as the tokenizer cuts it, or byte by byte.
    fn ids(&self, pieces: &[Piece], bytewise: bool) -> Vec<u32> {
        let mut ids = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Control(id) => ids.push(*id),
                Piece::Text(text) if bytewise => {
                    ids.extend(text.bytes().map(|byte| self.bytes[usize::from(byte)]));
                }
                Piece::Text(text) => self.tokenizer.encode_into(text, &mut ids),
            }
        }
        ids
    }

    fn answer(
        &self,
        reading: &Reading,
        ids: &[u32],
        finish: engine::Finish,
    ) -> Result<Vec<Event>, AnswerError> {
        let mut answer = Answer::new(self.tokenizer.clone(), reading.clone(), None);
        let mut events = Vec::new();
        answer.push(Update::Prefill { cached: 3, done: 9, total: 9 }, &mut events)?;
        for &token in ids {
            let logprob = TokenLogprob { token, logprob: -0.5 };
            let logprobs = Some((logprob.clone(), vec![logprob]));
            answer.push(Update::Token(Chosen { token, logprobs }), &mut events)?;
        }
        let outcome = Outcome {
            prompt_tokens: 9,
            cached_tokens: 3,
            generated_tokens: ids.len(),
            finish,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        };
        answer.push(Update::End(outcome), &mut events)?;
        assert!(answer.is_done());
        Ok(events)
    }
}

fn reading(random: &mut StdRng) -> Reading {
    let stops = [vec![], vec!["STOP".to_owned()], vec!["\n".to_owned(), "lo w".to_owned()]];
    Reading {
        content: Content::Reply {
            reasoning: random.random(),
            tools: random.random_range(0..4) > 0,
        },
        stop: stops.choose(random).unwrap().clone(),
        parallel_tool_calls: random.random(),
        call_prefix: "call_",
    }
}

fn head(model: &Model) -> ChatHead {
    ChatHead {
        id: "chatcmpl-x".into(),
        created: 1,
        model: "m".into(),
        fingerprint: "fp".into(),
        tokenizer: model.tokenizer.clone(),
        logprobs: true,
    }
}

/// The object that a client puts together from the chunks of a stream.
fn put_together(text: &str) -> Value {
    let frames = frames(text);
    assert_eq!(frames.last().unwrap().data, "[DONE]");
    let (mut message, mut calls) = (Map::new(), Vec::<Value>::new());
    let (mut logprobs, mut finish, mut usage) = (Vec::new(), Value::Null, Value::Null);
    message.insert("content".into(), "".into());
    for frame in &frames[..frames.len() - 1] {
        let chunk: Value = serde_json::from_str(&frame.data).unwrap();
        if chunk["usage"].is_object() {
            usage = chunk["usage"].clone();
        }
        let Some(choice) = chunk["choices"].get(0) else { continue };
        for (key, value) in choice["delta"].as_object().unwrap() {
            if key != "tool_calls" {
                let text = value.as_str().unwrap();
                let before = message.get(key).and_then(Value::as_str).unwrap_or_default();
                message.insert(key.clone(), format!("{before}{text}").into());
                continue;
            }
            for call in value.as_array().unwrap() {
                let index = call["index"].as_u64().unwrap() as usize;
                if let Some(id) = call.get("id") {
                    assert_eq!(index, calls.len(), "calls are told in order");
                    calls.push(
                        json!({ "id": id, "type": call["type"], "function": call["function"] }),
                    );
                } else {
                    let more = call["function"]["arguments"].as_str().unwrap();
                    let before = calls[index]["function"]["arguments"].as_str().unwrap();
                    calls[index]["function"]["arguments"] = format!("{before}{more}").into();
                }
            }
        }
        if let Some(tokens) = choice["logprobs"]["content"].as_array() {
            logprobs.extend(tokens.clone());
        }
        if choice["finish_reason"].is_string() {
            assert_eq!(finish, Value::Null, "one end");
            finish = choice["finish_reason"].clone();
        }
    }
    if message["content"] == "" && !calls.is_empty() {
        message.insert("content".into(), Value::Null);
    }
    message.insert("refusal".into(), Value::Null);
    if !calls.is_empty() {
        message.insert("tool_calls".into(), calls.into());
    }
    let logprobs = json!({ "content": logprobs, "refusal": null });
    json!({ "message": message, "logprobs": logprobs, "finish_reason": finish, "usage": usage })
}

/// Checks what holds for every answer.
fn check(whole: &Whole, reading: &Reading) {
    assert!(!whole.text.contains(DSML), "{whole:?}");
    for call in &whole.calls {
        assert!(!call.arguments.contains(DSML) && !call.name.contains(DSML), "{whole:?}");
        let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
        assert!(arguments.is_object(), "{whole:?}");
    }
    for stop in &reading.stop {
        assert!(!whole.text.contains(stop.as_str()), "{whole:?}");
    }
    if !reading.parallel_tool_calls {
        assert!(whole.calls.len() <= 1, "{whole:?}");
    }
    if !matches!(reading.content, Content::Reply { tools: true, .. }) {
        assert!(whole.calls.is_empty(), "{whole:?}");
    }
    let usage = whole.end.as_ref().unwrap().usage;
    assert!(usage.reasoning <= usage.completion);
    assert_eq!((usage.prompt, usage.cached), (9, 3));
}

fn whole(events: &[Event]) -> Whole {
    let mut whole = Whole::new();
    events.iter().cloned().for_each(|event| whole.push(event));
    whole
}

#[test]
fn a_stream_is_the_answer_in_pieces() {
    let model = Model::new();
    let (mut answers, mut called, mut refused) = (0, 0, 0);
    for seed in 0..STREAMS {
        let mut random = StdRng::seed_from_u64(seed);
        let (pieces, reading) = (model.stream(&mut random), reading(&mut random));
        let finish = if random.random() { engine::Finish::Stop } else { engine::Finish::Length };
        let ids = model.ids(&pieces, random.random());
        let Ok(events) = model.answer(&reading, &ids, finish) else {
            refused += 1;
            continue;
        };
        let whole = whole(&events);
        check(&whole, &reading);

        let mut chunks = ChatChunks::new(head(&model), 1, true);
        let mut frames = Frames::new();
        for event in events {
            chunks.event(0, event, &mut frames);
        }
        chunks.close(&mut frames);
        let streamed = put_together(&frames.take());
        let mut object = chat_completion(&head(&model), std::slice::from_ref(&whole));
        let mut choice = object["choices"][0].take();
        choice["usage"] = object["usage"].take();
        choice.as_object_mut().unwrap().remove("index");
        assert_eq!(streamed, choice, "seed {seed}: {pieces:?}");
        answers += 1;
        called += u64::from(!whole.calls.is_empty());
    }
    // The streams are not all of one kind.
    assert!(
        answers > STREAMS / 2 && called > STREAMS / 20 && refused > 0,
        "{answers} {called} {refused}"
    );
}

#[test]
fn the_cuts_between_tokens_do_not_matter() {
    let model = Model::new();
    let told = |events: Result<Vec<Event>, AnswerError>| match events {
        Err(error) => Err(error.to_string()),
        Ok(events) => {
            let Whole { reasoning, text, mut calls, end, .. } = whole(&events);
            calls.iter_mut().for_each(|call| call.id.clear());
            Ok((reasoning, text, calls, end.unwrap().finish))
        }
    };
    for seed in 0..STREAMS {
        let mut random = StdRng::seed_from_u64(seed);
        let (pieces, reading) = (model.stream(&mut random), reading(&mut random));
        let finish = if random.random() { engine::Finish::Stop } else { engine::Finish::Length };
        let [whole, bytes] = [false, true]
            .map(|bytewise| told(model.answer(&reading, &model.ids(&pieces, bytewise), finish)));
        assert_eq!(whole, bytes, "seed {seed}: {pieces:?}");
    }
}

#[test]
fn an_answer_cut_anywhere_is_an_answer() {
    let model = Model::new();
    let mut random = StdRng::seed_from_u64(1);
    let mut pieces =
        vec![Piece::Text("Let me see."), Piece::Control(model.tokenizer.control().end_think)];
    pieces.push(Piece::Text("I look it up."));
    loop {
        let mut block = Vec::new();
        model.block(&mut random, &Piece::Control(model.tokenizer.control().dsml), &mut block);
        let whole = block.iter().filter(|p| matches!(p, Piece::Control(_))).count();
        if whole > 10 {
            pieces.extend(block);
            break;
        }
    }
    let ids = model.ids(&pieces, true);
    let reading = Reading {
        content: Content::Reply { reasoning: true, tools: true },
        stop: vec![],
        parallel_tool_calls: true,
        call_prefix: "call_",
    };
    for end in 0..=ids.len() {
        let events = model.answer(&reading, &ids[..end], engine::Finish::Length).unwrap();
        let whole = whole(&events);
        check(&whole, &reading);
        let begun = events.iter().filter(|e| matches!(e, Event::ToolBegin { .. })).count();
        let ended = events.iter().filter(|e| matches!(e, Event::ToolEnd { .. })).count();
        // Arguments that were cut off are whole JSON, but the call is not told to be complete.
        assert!(begun == ended || begun == ended + 1, "{begun} of {ended} at {end}");
        let complete = whole.end.as_ref().unwrap().finish == Finish::ToolCalls;
        assert!(begun == ended || !complete, "a call is left open at {end}");
    }
}

#[test]
fn text_without_a_template_is_what_the_tokens_say() {
    let model = Model::new();
    let reading = Reading {
        content: Content::Text,
        stop: vec![],
        parallel_tool_calls: true,
        call_prefix: "call_",
    };
    for seed in 0..500 {
        let mut random = StdRng::seed_from_u64(seed);
        let count = random.random_range(0..40);
        let vocabulary = model.tokenizer.vocab_size() as u32;
        let ids: Vec<u32> = (0..count).map(|_| random.random_range(0..vocabulary)).collect();
        let events = model.answer(&reading, &ids, engine::Finish::Length).unwrap();
        assert_eq!(whole(&events).text, model.tokenizer.decode(&ids), "seed {seed}");
    }
}
