//! What a conversation is made of, in the JSON shape of OpenAI's chat messages.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::ToolCall;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all = "snake_case")]
pub enum Role {
    /// Instructions. Rendered where it stands, without a marker.
    System,
    /// DeepSeek's internal role: a user turn that is forgotten once another user turn follows,
    /// unless tools are declared. It is not OpenAI's `developer`, which means
    /// [`System`](Self::System); a server of that dialect must say so.
    Developer,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
    /// A reminder that holds for the next reply.
    LatestReminder,
}

/// A role that the template does not know.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[error("unknown role {0:?}: use system, developer, user, assistant, tool or latest_reminder")]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;

    /// Reads a role; `function` is the old name of `tool`.
    fn from_str(role: &str) -> Result<Self, UnknownRole> {
        match role {
            "system" => Ok(Self::System),
            "developer" => Ok(Self::Developer),
            "user" => Ok(Self::User),
            "assistant" => Ok(Self::Assistant),
            "tool" | "function" => Ok(Self::Tool),
            "latest_reminder" => Ok(Self::LatestReminder),
            other => Err(UnknownRole(other.to_owned())),
        }
    }
}

impl TryFrom<String> for Role {
    type Error = UnknownRole;

    fn try_from(role: String) -> Result<Self, UnknownRole> {
        role.parse()
    }
}

/// One message.
///
/// As JSON: `content` is a string, null, absent, or a list of `{"type": "text", "text": …}` parts,
/// which are joined by a blank line; `reasoning_content` may also be called `reasoning`; keys that
/// are not listed here are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Wire")]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// What the assistant thought before.
    #[serde(rename = "reasoning_content", skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// What the assistant asked for after.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool message answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// What a server sent along with an assistant message to recognise it by. Not of the shape of
    /// OpenAI's messages: the other dialects have a place for it.
    #[serde(skip)]
    pub replay: Option<String>,
}

impl Message {
    /// A message of text.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            reasoning: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            replay: None,
        }
    }

    /// Instructions.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// A user's message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// A reply.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// The result of the call with this id.
    pub fn tool(tool_call_id: impl Into<String>, content: impl Into<String>) -> Self {
        Self { tool_call_id: Some(tool_call_id.into()), ..Self::new(Role::Tool, content) }
    }
}

/// A message as clients write it.
#[derive(Deserialize)]
struct Wire {
    role: Role,
    #[serde(default, deserialize_with = "text")]
    content: String,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCall>>,
    #[serde(default)]
    tool_call_id: Option<String>,
}

impl From<Wire> for Message {
    fn from(wire: Wire) -> Self {
        Self {
            role: wire.role,
            content: wire.content,
            reasoning: wire.reasoning_content.or(wire.reasoning),
            tool_calls: wire.tool_calls.unwrap_or_default(),
            tool_call_id: wire.tool_call_id,
            replay: None,
        }
    }
}

/// Reads a content field.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    use serde::de::Error;

    match Value::deserialize(deserializer)? {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            let texts: Result<Vec<String>, String> = parts.into_iter().map(part).collect();
            texts.map(|texts| texts.join("\n\n")).map_err(D::Error::custom)
        }
        _ => Err(D::Error::custom("content must be a string, null or a list of text parts")),
    }
}

/// Reads one part of a content list.
fn part(mut part: Value) -> Result<String, String> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("text").to_owned();
    match (kind.as_str(), part.get_mut("text").map(Value::take)) {
        ("text" | "input_text" | "output_text", Some(Value::String(text))) => Ok(text),
        ("text" | "input_text" | "output_text", _) => {
            Err("a text part of content has no string called text".to_owned())
        }
        _ => Err(format!("content part of type {kind:?}: DeepSeek V4 Flash reads text only")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Message, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn every_shape_of_content_is_read() {
        let contents = [
            (json!("a"), "a"),
            (json!(null), ""),
            (json!([{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]), "a\n\nb"),
            (json!([]), ""),
        ];
        for (content, text) in contents {
            let message = read(json!({"role": "user", "content": content, "name": "x"}));
            assert_eq!(message, Ok(Message::user(text)));
        }
        assert_eq!(read(json!({"role": "user"})), Ok(Message::user("")));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let refused = [
            (json!({"role": "wizard", "content": "a"}), "unknown role \"wizard\""),
            (json!({"role": "user", "content": [{"type": "image_url"}]}), "image_url"),
            (json!({"role": "user", "content": 3}), "content must be"),
            (json!({"content": "a"}), "role"),
        ];
        for (message, needle) in refused {
            let error = read(message).unwrap_err();
            assert!(error.contains(needle), "{error}");
        }
    }

    #[test]
    fn a_turn_with_calls_survives_json() {
        let message = Message {
            reasoning: Some("r".into()),
            tool_calls: vec![ToolCall {
                id: "c1".into(),
                name: "f".into(),
                arguments: "{\"a\":1}".into(),
            }],
            ..Message::assistant("")
        };
        let wire = serde_json::to_value(&message).unwrap();
        assert_eq!(wire["tool_calls"][0]["function"]["arguments"], "{\"a\":1}");
        assert_eq!(wire["reasoning_content"], "r");
        assert_eq!(serde_json::from_value::<Message>(wire).unwrap(), message);

        let both = json!({"role": "assistant", "reasoning": "r", "reasoning_content": null,
            "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]});
        let read = read(both).unwrap();
        assert_eq!(read.reasoning.as_deref(), Some("r"));
        assert_eq!(read.tool_calls[0].arguments, "{\"a\":1}");
    }
}
