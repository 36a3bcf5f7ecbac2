//! Answers in the chat dialect: an object, or chunks.

use std::sync::Arc;

use serde_json::{json, Map, Value};

use crate::engine::TokenLogprob;
use crate::server::sse::{Encode, Frames};
use crate::server::{ApiError, Dialect, Event, Finish, Usage, Whole};
use crate::tokenizer::Tokenizer;

/// What all objects of one response have in common.
#[derive(Clone)]
pub struct Head {
    /// The response's id.
    pub id: String,
    /// When it was begun, in seconds since 1970.
    pub created: u64,
    /// What the client calls the model.
    pub model: String,
    /// Changes with everything that changes answers.
    pub fingerprint: String,
    /// For the text of tokens in probabilities.
    pub tokenizer: Arc<Tokenizer>,
    /// Whether probabilities were asked for.
    pub logprobs: bool,
}

impl Head {
    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

/// Why an answer ended, in OpenAI's words.
pub fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopText(_) => "stop",
        Finish::Length | Finish::Context => "length",
        Finish::ToolCalls => "tool_calls",
    }
}

/// Tokens, in OpenAI's words and DeepSeek's. The answers to one request have one prompt.
pub fn usage(answers: &[Usage]) -> Value {
    let prompt = answers.iter().map(|usage| usage.prompt).max().unwrap_or(0);
    let cached = answers.first().map_or(0, |usage| usage.cached);
    let completion: usize = answers.iter().map(|usage| usage.completion).sum();
    let reasoning: usize = answers.iter().map(|usage| usage.reasoning).sum();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": { "cached_tokens": cached },
        "completion_tokens_details": { "reasoning_tokens": reasoning },
        "prompt_cache_hit_tokens": cached,
        "prompt_cache_miss_tokens": prompt.saturating_sub(cached),
    })
}

/// Probabilities of tokens.
pub fn logprobs(tokenizer: &Tokenizer, tokens: &[(TokenLogprob, Vec<TokenLogprob>)]) -> Value {
    let one = |logprob: &TokenLogprob| {
        let bytes = tokenizer.token_bytes(logprob.token).unwrap_or_default();
        let mut object = Map::new();
        object.insert("token".to_owned(), String::from_utf8_lossy(bytes).into());
        object.insert("logprob".to_owned(), finite(logprob.logprob));
        object.insert("bytes".to_owned(), bytes.into());
        object
    };
    let tokens = tokens.iter().map(|(chosen, top)| {
        let mut object = one(chosen);
        let top: Vec<Value> = top.iter().map(|logprob| Value::Object(one(logprob))).collect();
        object.insert("top_logprobs".to_owned(), top.into());
        Value::Object(object)
    });
    json!({ "content": tokens.collect::<Vec<Value>>(), "refusal": null })
}

/// JSON has no infinity; OpenAI writes this for what cannot happen.
pub fn finite(logprob: f32) -> Value {
    let logprob = if logprob.is_finite() { f64::from(logprob) } else { -9999.0 };
    logprob.into()
}

/// The object for answers in one piece.
pub fn whole(head: &Head, answers: &[Whole]) -> Value {
    let choices = answers.iter().enumerate().map(|(index, answer)| {
        let mut message = Map::new();
        message.insert("role".to_owned(), "assistant".into());
        let silent = answer.text.is_empty() && !answer.calls.is_empty();
        let content = if silent { Value::Null } else { answer.text.clone().into() };
        message.insert("content".to_owned(), content);
        message.insert("refusal".to_owned(), Value::Null);
        if !answer.reasoning.is_empty() {
            message.insert("reasoning_content".to_owned(), answer.reasoning.clone().into());
        }
        if !answer.calls.is_empty() {
            let calls = answer.calls.iter().map(|call| {
                json!({
                    "id": call.id,
                    "type": "function",
                    "function": { "name": call.name, "arguments": call.arguments },
                })
            });
            message.insert("tool_calls".to_owned(), calls.collect::<Vec<Value>>().into());
        }
        let probabilities = match head.logprobs {
            true => logprobs(&head.tokenizer, &answer.logprobs),
            false => Value::Null,
        };
        let finish = answer.end.as_ref().map(|end| finish_reason(&end.finish));
        json!({
            "index": index,
            "message": message,
            "logprobs": probabilities,
            "finish_reason": finish,
        })
    });
    let choices: Vec<Value> = choices.collect();
    let mut object = head.object("chat.completion", choices.into());
    let usages: Vec<Usage> = answers.iter().map(|answer| answer.usage).collect();
    object["usage"] = usage(&usages);
    object
}

/// Chunks.
pub struct Chunks {
    head: Head,
    include_usage: bool,
    answers: Vec<Chunked>,
}

/// What was told of an answer.
#[derive(Clone, Default)]
struct Chunked {
    usage: Usage,
    /// Probabilities that go with the next text.
    logprobs: Option<Value>,
}

impl Chunks {
    /// Chunks of this many answers.
    pub fn new(head: Head, answers: usize, include_usage: bool) -> Self {
        Self { head, include_usage, answers: vec![Chunked::default(); answers] }
    }

    fn chunk(&mut self, answer: usize, delta: Value, finish: Option<&Finish>, frames: &mut Frames) {
        let logprobs = self.answers.get_mut(answer).and_then(|answer| answer.logprobs.take());
        let choice = json!({
            "index": answer,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish.map(finish_reason),
        });
        let mut chunk = self.head.object("chat.completion.chunk", json!([choice]));
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        frames.data(&chunk);
    }
}

impl Encode for Chunks {
    fn event(&mut self, answer: usize, event: Event, frames: &mut Frames) {
        let delta = match event {
            Event::Prefill { .. } | Event::ReasoningEnd { .. } | Event::ToolEnd { .. } => return,
            Event::Begin(_) => json!({ "role": "assistant", "content": "" }),
            Event::Reasoning(text) => json!({ "reasoning_content": text }),
            Event::Text(text) => json!({ "content": text }),
            Event::ToolBegin { index, id, name } => json!({ "tool_calls": [{
                "index": index,
                "id": id,
                "type": "function",
                "function": { "name": name, "arguments": "" },
            }] }),
            Event::ToolArguments { index, fragment } => json!({ "tool_calls": [{
                "index": index,
                "function": { "arguments": fragment },
            }] }),
            Event::Logprobs(tokens) => {
                let value = logprobs(&self.head.tokenizer, &tokens);
                if let Some(answer) = self.answers.get_mut(answer) {
                    answer.logprobs = Some(value);
                }
                return;
            }
            Event::End(end) => {
                if let Some(answer) = self.answers.get_mut(answer) {
                    answer.usage = end.usage;
                }
                self.chunk(answer, json!({}), Some(&end.finish), frames);
                return;
            }
        };
        self.chunk(answer, delta, None, frames);
    }

    fn error(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.data(&error.body(Dialect::OpenAi, ""));
    }

    fn close(&mut self, frames: &mut Frames) {
        if self.include_usage {
            let mut chunk = self.head.object("chat.completion.chunk", json!([]));
            let usages: Vec<Usage> = self.answers.iter().map(|answer| answer.usage).collect();
            chunk["usage"] = usage(&usages);
            frames.data(&chunk);
        }
        frames.done();
    }
}
