//! Answers in the Messages dialect: an object, or events of content blocks.
//!
//! ```text
//! message_start ping { content_block_start content_block_delta* content_block_stop } …
//! message_delta message_stop
//! ```
//!
//! One block at a time; `ping` may also come while a long prompt is read. A thinking block ends
//! with its signature.

use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::server::sse::{Encode, Frames};
use crate::server::{ApiError, Dialect, End, Event, Finish, Usage, Whole};

/// A sign of life is sent this often while a prompt is read.
const PING: Duration = Duration::from_secs(5);

/// What is known before the answer.
#[derive(Clone, Debug)]
pub struct Head {
    /// The message's id.
    pub id: String,
    /// What the client calls the model.
    pub model: String,
    /// The request's id, for errors.
    pub request_id: String,
    /// Whether thinking blocks have text.
    pub shows_reasoning: bool,
}

impl Head {
    fn message(&self, content: Vec<Value>, end: Option<&End>, usage: &Value) -> Value {
        let (reason, sequence) = stop(end);
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage,
        })
    }
}

/// Why an answer ended: the reason, and the stop sequence if it was one.
fn stop(end: Option<&End>) -> (Option<&'static str>, Option<&str>) {
    match end.map(|end| &end.finish) {
        None => (None, None),
        Some(Finish::Stop) => (Some("end_turn"), None),
        Some(Finish::StopText(text)) => (Some("stop_sequence"), Some(text)),
        Some(Finish::Length) => (Some("max_tokens"), None),
        Some(Finish::Context) => (Some("model_context_window_exceeded"), None),
        Some(Finish::ToolCalls) => (Some("tool_use"), None),
    }
}

/// Tokens: those of the prompt that had to be computed, and those that had not, apart.
fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt.saturating_sub(usage.cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    })
}

/// The same with what only a message says of it, not the end of a stream.
fn usage_of_message(tokens: Usage) -> Value {
    let mut usage = usage(tokens);
    usage["cache_creation"] =
        json!({ "ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0 });
    usage["service_tier"] = "standard".into();
    usage
}

/// The object for an answer in one piece.
pub fn whole(head: &Head, answer: &Whole) -> Value {
    let mut content = Vec::new();
    if !answer.reasoning.is_empty() {
        let signature = answer.end.as_ref().and_then(|end| end.replay.as_deref());
        content.push(json!({
            "type": "thinking",
            "thinking": if head.shows_reasoning { answer.reasoning.as_str() } else { "" },
            "signature": signature.unwrap_or(UNSIGNED),
        }));
    }
    if !answer.text.is_empty() {
        content.push(json!({ "type": "text", "text": answer.text }));
    }
    for call in &answer.calls {
        let input = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
        content.push(json!({
            "type": "tool_use", "id": call.id, "name": call.name, "input": input,
        }));
    }
    head.message(content, answer.end.as_ref(), &usage_of_message(answer.usage))
}

/// The signature of reasoning that nothing brings back: clients drop blocks without one.
const UNSIGNED: &str = "none";

/// Which block is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    None,
    Thinking,
    Text,
    Tool,
}

/// Events of content blocks.
pub struct Blocks {
    head: Head,
    started: bool,
    open: Open,
    /// Blocks that were opened.
    blocks: usize,
    told: Option<Instant>,
}

impl Blocks {
    /// Nothing was told yet.
    pub fn new(head: Head) -> Self {
        Self { head, started: false, open: Open::None, blocks: 0, told: None }
    }

    fn start(&mut self, tokens: Usage, frames: &mut Frames) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        let message = self.head.message(Vec::new(), None, &usage_of_message(tokens));
        frames.event("message_start", &json!({ "type": "message_start", "message": message }));
        frames.event("ping", &json!({ "type": "ping" }));
    }

    fn open(&mut self, kind: Open, block: Value, frames: &mut Frames) {
        self.close_block(frames);
        let index = self.blocks;
        frames.event(
            "content_block_start",
            &json!({ "type": "content_block_start", "index": index, "content_block": block }),
        );
        self.blocks += 1;
        self.open = kind;
    }

    fn delta(&self, delta: Value, frames: &mut Frames) {
        let index = self.blocks.saturating_sub(1);
        frames.event(
            "content_block_delta",
            &json!({ "type": "content_block_delta", "index": index, "delta": delta }),
        );
    }

    fn close_block(&mut self, frames: &mut Frames) {
        if std::mem::replace(&mut self.open, Open::None) != Open::None {
            let index = self.blocks - 1;
            frames.event(
                "content_block_stop",
                &json!({ "type": "content_block_stop", "index": index }),
            );
        }
    }

    fn end(&mut self, end: &End, frames: &mut Frames) {
        self.close_block(frames);
        let (reason, sequence) = stop(Some(end));
        frames.event(
            "message_delta",
            &json!({
                "type": "message_delta",
                "delta": { "stop_reason": reason, "stop_sequence": sequence },
                "usage": usage(end.usage),
            }),
        );
        frames.event("message_stop", &json!({ "type": "message_stop" }));
    }
}

impl Encode for Blocks {
    fn event(&mut self, _: usize, event: Event, frames: &mut Frames) {
        match event {
            Event::Prefill { cached, total, .. } => {
                self.start(Usage { prompt: total, cached, ..Usage::default() }, frames);
                if self.told.get_or_insert_with(Instant::now).elapsed() >= PING {
                    self.told = Some(Instant::now());
                    frames.event("ping", &json!({ "type": "ping" }));
                }
            }
            Event::Begin(usage) => self.start(usage, frames),
            Event::Reasoning(text) => {
                if self.open != Open::Thinking {
                    let block = json!({ "type": "thinking", "thinking": "", "signature": "" });
                    self.open(Open::Thinking, block, frames);
                }
                if self.head.shows_reasoning {
                    self.delta(json!({ "type": "thinking_delta", "thinking": text }), frames);
                }
            }
            Event::ReasoningEnd { replay } => {
                let signature = replay.as_deref().unwrap_or(UNSIGNED);
                self.delta(json!({ "type": "signature_delta", "signature": signature }), frames);
                self.close_block(frames);
            }
            Event::Text(text) => {
                if self.open != Open::Text {
                    self.open(Open::Text, json!({ "type": "text", "text": "" }), frames);
                }
                self.delta(json!({ "type": "text_delta", "text": text }), frames);
            }
            Event::ToolBegin { id, name, .. } => {
                let block = json!({ "type": "tool_use", "id": id, "name": name, "input": {} });
                self.open(Open::Tool, block, frames);
            }
            Event::ToolArguments { fragment, .. } => {
                let delta = json!({ "type": "input_json_delta", "partial_json": fragment });
                self.delta(delta, frames);
            }
            Event::ToolEnd { .. } => self.close_block(frames),
            Event::Logprobs(_) => {}
            Event::End(end) => self.end(&end, frames),
        }
    }

    fn error(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.event("error", &error.body(Dialect::Anthropic, &self.head.request_id));
    }

    fn close(&mut self, _: &mut Frames) {}
}
