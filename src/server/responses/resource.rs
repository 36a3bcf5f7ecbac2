//! The response object, with every field that OpenAI's reference says it has.

use std::sync::Arc;

use serde_json::{json, Map, Value};

use super::request::Echo;
use super::Kept;
use crate::engine::Namespace;
use crate::server::app::now;
use crate::server::{ApiError, End, Finish, Usage};
use crate::tokenizer::Tokenizer;

/// What is known before the answer.
pub struct Resource {
    /// The response's id.
    pub id: String,
    /// When it was begun, in seconds since 1970.
    pub created: u64,
    /// For the text of tokens in probabilities.
    pub tokenizer: Arc<Tokenizer>,
    /// Where items are kept for clients that refer to them, if they may be.
    pub kept: Option<(Arc<Kept>, Namespace)>,
    /// What the request said.
    pub echo: Echo,
}

/// How far a response is.
pub enum State<'a> {
    /// It goes on.
    InProgress,
    /// It ended.
    Ended(&'a End),
    /// It broke off.
    Failed(&'a ApiError),
}

impl Resource {
    /// The object with these items.
    pub fn object(&self, state: &State<'_>, output: &[Value]) -> Value {
        let incomplete = match state {
            State::Ended(End { finish: Finish::Length | Finish::Context, .. }) => {
                json!({ "reason": "max_output_tokens" })
            }
            _ => Value::Null,
        };
        let status = match state {
            State::InProgress => "in_progress",
            State::Failed(_) => "failed",
            State::Ended(_) if incomplete.is_null() => "completed",
            State::Ended(_) => "incomplete",
        };
        let error = match state {
            State::Failed(error) => {
                json!({ "code": error.code.unwrap_or("server_error"), "message": error.message })
            }
            _ => Value::Null,
        };
        let usage = match state {
            State::Ended(end) => usage(end.usage),
            _ => Value::Null,
        };
        let echo = &self.echo;
        let given = |name: &str| echo.body.get(name).cloned().unwrap_or_default();
        let or = |name: &str, default: Value| match given(name) {
            Value::Null => default,
            value => value,
        };
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": (status == "completed").then(now),
            "status": status,
            "background": false,
            "error": error,
            "incomplete_details": incomplete,
            "instructions": given("instructions"),
            "max_output_tokens": given("max_output_tokens"),
            "max_tool_calls": given("max_tool_calls"),
            "model": echo.model,
            "output": output,
            "parallel_tool_calls": echo.parallel_tool_calls,
            "previous_response_id": null,
            "prompt_cache_key": given("prompt_cache_key"),
            "reasoning": {
                "effort": given("reasoning").get("effort"),
                "summary": given("reasoning").get("summary"),
            },
            "safety_identifier": given("safety_identifier"),
            "service_tier": "default",
            "store": echo.store,
            "temperature": echo.temperature,
            "text": text(given("text")),
            "tool_choice": or("tool_choice", "auto".into()),
            "tools": tools(given("tools")),
            "top_logprobs": or("top_logprobs", 0.into()),
            "top_p": echo.top_p,
            "frequency_penalty": or("frequency_penalty", 0.into()),
            "presence_penalty": or("presence_penalty", 0.into()),
            "truncation": or("truncation", "disabled".into()),
            "usage": usage,
            "user": given("user"),
            "metadata": or("metadata", json!({})),
        })
    }

    /// Keeps an item, if the client may refer to it.
    pub fn keep(&self, item: &Value) {
        if let Some((kept, namespace)) = &self.kept {
            kept.keep(*namespace, item);
        }
    }
}

/// Tokens, in the words of this dialect.
fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": { "cached_tokens": usage.cached, "cache_write_tokens": 0 },
        "output_tokens": usage.completion,
        "output_tokens_details": { "reasoning_tokens": usage.reasoning },
        "total_tokens": usage.prompt + usage.completion,
    })
}

/// The form of the text, with what was left out.
fn text(given: Value) -> Value {
    let mut text = match given {
        Value::Object(text) => text,
        _ => Map::new(),
    };
    if text.get("format").is_none_or(Value::is_null) {
        text.insert("format".to_owned(), json!({ "type": "text" }));
    }
    Value::Object(text)
}

/// The tools, with what was left out.
fn tools(given: Value) -> Value {
    let Value::Array(mut tools) = given else { return json!([]) };
    for tool in &mut tools {
        let Value::Object(tool) = tool else { continue };
        if tool.get("type").and_then(Value::as_str) == Some("function") {
            for (name, value) in [
                ("description", Value::Null),
                ("parameters", Value::Null),
                ("strict", false.into()),
            ] {
                tool.entry(name).or_insert(value);
            }
        }
    }
    Value::Array(tools)
}
