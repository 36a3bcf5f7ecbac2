//! Answers in the Responses dialect: an object, or events of items.
//!
//! ```text
//! response.created response.in_progress
//! { output_item.added …parts and deltas… output_item.done } …
//! response.completed | response.incomplete | response.failed
//! ```
//!
//! Both come from the same walk over the events, so that they cannot differ: the object is what
//! the last event of the stream holds.

use std::time::{Duration, Instant};

use serde_json::{json, Value};

use super::resource::{Resource, State};
use crate::server::app::new_id;
use crate::server::chat::encode::logprobs;
use crate::server::sse::{Encode, Frames};
use crate::server::{ApiError, End, Event, Finish, Whole};

/// A sign of life is sent this often while a prompt is read: some clients do not count comments.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// The item that is being told.
enum Open {
    Reasoning { id: String, text: String },
    Message { id: String, text: String, logprobs: Vec<Value> },
    Call { id: String, call: String, name: String, arguments: String },
}

/// Events of items.
pub struct Items {
    resource: Resource,
    started: bool,
    sequence: u64,
    /// Items that are complete.
    output: Vec<Value>,
    open: Option<Open>,
    /// Probabilities that go with the next text.
    logprobs: Vec<Value>,
    told: Option<Instant>,
}

impl Items {
    /// Nothing was told yet.
    pub fn new(resource: Resource) -> Self {
        Self {
            resource,
            started: false,
            sequence: 0,
            output: Vec::new(),
            open: None,
            logprobs: Vec::new(),
            told: None,
        }
    }

    /// The object for an answer in one piece.
    pub fn whole(&mut self, whole: Whole) -> Value {
        let mut frames = Frames::new();
        let note = whole.end.as_ref().and_then(|end| end.replay.clone());
        let mut tell = |event| {
            self.event(0, event, &mut frames);
            frames.take();
        };
        if !whole.reasoning.is_empty() {
            tell(Event::Reasoning(whole.reasoning));
            tell(Event::ReasoningEnd { replay: note });
        }
        if !whole.logprobs.is_empty() {
            tell(Event::Logprobs(whole.logprobs));
        }
        if !whole.text.is_empty() {
            tell(Event::Text(whole.text));
        }
        let complete = whole.calls.len() - usize::from(whole.cut);
        for (index, call) in whole.calls.into_iter().enumerate() {
            tell(Event::ToolBegin { index, id: call.id, name: call.name });
            tell(Event::ToolArguments { index, fragment: call.arguments });
            if index < complete {
                tell(Event::ToolEnd { index });
            }
        }
        match whole.end {
            Some(end) => {
                tell(Event::End(end.clone()));
                self.resource.object(&State::Ended(&end), &self.output)
            }
            None => self.resource.object(&State::InProgress, &self.output),
        }
    }

    fn tell(&mut self, kind: &str, mut data: Value, frames: &mut Frames) {
        data["type"] = kind.into();
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        frames.event(kind, &data);
    }

    fn start(&mut self, frames: &mut Frames) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        let response = self.resource.object(&State::InProgress, &[]);
        self.tell("response.created", json!({ "response": response.clone() }), frames);
        self.tell("response.in_progress", json!({ "response": response }), frames);
    }

    fn added(&mut self, item: Value, frames: &mut Frames) {
        let data = json!({ "output_index": self.output.len(), "item": item });
        self.tell("response.output_item.added", data, frames);
    }

    fn done(&mut self, item: Value, frames: &mut Frames) {
        let data = json!({ "output_index": self.output.len(), "item": item.clone() });
        self.tell("response.output_item.done", data, frames);
        self.resource.keep(&item);
        self.output.push(item);
    }

    /// A piece of reasoning.
    fn reason(&mut self, piece: &str, frames: &mut Frames) {
        if !matches!(self.open, Some(Open::Reasoning { .. })) {
            self.close_item(None, true, frames);
            let id = new_id("rs_");
            let item = json!({
                "id": id, "type": "reasoning", "status": "in_progress", "summary": [], "content": [],
                "encrypted_content": null,
            });
            self.added(item, frames);
            let at = json!({ "item_id": id, "output_index": self.output.len() });
            if self.resource.echo.summary {
                let part = json!({ "type": "summary_text", "text": "" });
                let data = with(&at, json!({ "summary_index": 0, "part": part }));
                self.tell("response.reasoning_summary_part.added", data, frames);
            }
            let part = json!({ "type": "reasoning_text", "text": "" });
            let data = with(&at, json!({ "content_index": 0, "part": part }));
            self.tell("response.content_part.added", data, frames);
            self.open = Some(Open::Reasoning { id, text: String::new() });
        }
        let Some(Open::Reasoning { id, text }) = &mut self.open else { return };
        text.push_str(piece);
        let at = json!({ "item_id": id, "output_index": self.output.len() });
        if self.resource.echo.summary {
            let data = with(&at, json!({ "summary_index": 0, "delta": piece }));
            self.tell("response.reasoning_summary_text.delta", data, frames);
        }
        let data = with(&at, json!({ "content_index": 0, "delta": piece }));
        self.tell("response.reasoning_text.delta", data, frames);
    }

    /// A piece of text.
    fn say(&mut self, piece: &str, frames: &mut Frames) {
        if !matches!(self.open, Some(Open::Message { .. })) {
            self.close_item(None, true, frames);
            let id = new_id("msg_");
            let item = json!({
                "id": id, "type": "message", "status": "in_progress", "role": "assistant",
                "content": [],
            });
            self.added(item, frames);
            let data = json!({
                "item_id": id, "output_index": self.output.len(), "content_index": 0,
                "part": output_text("", &[]),
            });
            self.tell("response.content_part.added", data, frames);
            self.open = Some(Open::Message { id, text: String::new(), logprobs: Vec::new() });
        }
        let new = std::mem::take(&mut self.logprobs);
        let Some(Open::Message { id, text, logprobs }) = &mut self.open else { return };
        text.push_str(piece);
        logprobs.extend(new.iter().cloned());
        let data = json!({
            "item_id": id, "output_index": self.output.len(), "content_index": 0,
            "delta": piece, "logprobs": new,
        });
        self.tell("response.output_text.delta", data, frames);
    }

    /// Completes the item that is open. It may have been cut off.
    fn close_item(&mut self, note: Option<String>, complete: bool, frames: &mut Frames) {
        let index = self.output.len();
        let status = if complete { "completed" } else { "incomplete" };
        match self.open.take() {
            None => {}
            Some(Open::Reasoning { id, text }) => {
                let at = json!({ "item_id": id, "output_index": index });
                let part = json!({ "type": "reasoning_text", "text": text });
                let data = with(&at, json!({ "content_index": 0, "text": text }));
                self.tell("response.reasoning_text.done", data, frames);
                let data = with(&at, json!({ "content_index": 0, "part": part.clone() }));
                self.tell("response.content_part.done", data, frames);
                let mut summary = json!([]);
                if self.resource.echo.summary {
                    let part = json!({ "type": "summary_text", "text": text });
                    let data = with(&at, json!({ "summary_index": 0, "text": text }));
                    self.tell("response.reasoning_summary_text.done", data, frames);
                    let data = with(&at, json!({ "summary_index": 0, "part": part.clone() }));
                    self.tell("response.reasoning_summary_part.done", data, frames);
                    summary = json!([part]);
                }
                let mut item = json!({
                    "id": id, "type": "reasoning", "status": status, "summary": summary,
                    "content": [part], "encrypted_content": note,
                });
                // Whoever refers to the item later need not have wanted to see the note.
                self.resource.keep(&item);
                if !self.resource.echo.encrypted {
                    item["encrypted_content"] = Value::Null;
                }
                self.done(item, frames);
            }
            Some(Open::Message { id, text, logprobs }) => {
                let part = output_text(&text, &logprobs);
                let at = json!({ "item_id": id, "output_index": index, "content_index": 0 });
                let data = with(&at, json!({ "text": text, "logprobs": logprobs }));
                self.tell("response.output_text.done", data, frames);
                let data = with(&at, json!({ "part": part.clone() }));
                self.tell("response.content_part.done", data, frames);
                let item = json!({
                    "id": id, "type": "message", "status": status, "role": "assistant",
                    "content": [part],
                });
                self.done(item, frames);
            }
            Some(Open::Call { id, call, name, arguments }) => {
                let data = json!({
                    "item_id": id, "output_index": index, "name": name, "arguments": arguments,
                });
                self.tell("response.function_call_arguments.done", data, frames);
                self.done(function_call(&id, &call, &name, &arguments, status), frames);
            }
        }
    }

    fn call(&mut self, call: String, name: String, frames: &mut Frames) {
        self.close_item(None, true, frames);
        let id = new_id("fc_");
        self.added(function_call(&id, &call, &name, "", "in_progress"), frames);
        self.open = Some(Open::Call { id, call, name, arguments: String::new() });
    }

    fn argue(&mut self, fragment: &str, frames: &mut Frames) {
        let Some(Open::Call { id, arguments, .. }) = &mut self.open else { return };
        arguments.push_str(fragment);
        let data = json!({ "item_id": id, "output_index": self.output.len(), "delta": fragment });
        self.tell("response.function_call_arguments.delta", data, frames);
    }

    fn end(&mut self, end: &End, frames: &mut Frames) {
        let cut = matches!(end.finish, Finish::Length | Finish::Context);
        self.close_item(None, !cut, frames);
        let kind = if cut { "response.incomplete" } else { "response.completed" };
        let response = self.resource.object(&State::Ended(end), &self.output);
        self.tell(kind, json!({ "response": response }), frames);
    }
}

/// The members of two objects.
fn with(one: &Value, other: Value) -> Value {
    let mut both = one.clone();
    if let (Value::Object(both), Value::Object(other)) = (&mut both, other) {
        both.extend(other);
    }
    both
}

fn output_text(text: &str, logprobs: &[Value]) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs })
}

fn function_call(id: &str, call: &str, name: &str, arguments: &str, status: &str) -> Value {
    json!({
        "id": id, "type": "function_call", "status": status, "call_id": call, "name": name,
        "arguments": arguments,
    })
}

impl Encode for Items {
    fn event(&mut self, _: usize, event: Event, frames: &mut Frames) {
        self.start(frames);
        match event {
            Event::Prefill { .. } => {
                if self.told.get_or_insert_with(Instant::now).elapsed() >= SIGN_OF_LIFE {
                    self.told = Some(Instant::now());
                    let response = self.resource.object(&State::InProgress, &[]);
                    self.tell("response.in_progress", json!({ "response": response }), frames);
                }
            }
            Event::Begin(_) => {}
            Event::Reasoning(text) => self.reason(&text, frames),
            Event::ReasoningEnd { replay } => self.close_item(replay, true, frames),
            Event::Text(text) => self.say(&text, frames),
            Event::ToolBegin { id, name, .. } => self.call(id, name, frames),
            Event::ToolArguments { fragment, .. } => self.argue(&fragment, frames),
            Event::ToolEnd { .. } => self.close_item(None, true, frames),
            Event::Logprobs(tokens) => {
                if let Value::Array(tokens) =
                    logprobs(&self.resource.tokenizer, &tokens)["content"].take()
                {
                    self.logprobs.extend(tokens);
                }
            }
            Event::End(end) => self.end(&end, frames),
        }
    }

    fn error(&mut self, error: &ApiError, frames: &mut Frames) {
        self.start(frames);
        let response = self.resource.object(&State::Failed(error), &self.output);
        self.tell("response.failed", json!({ "response": response }), frames);
    }

    fn close(&mut self, _: &mut Frames) {}
}
