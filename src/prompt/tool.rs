//! Tools, and calls of them, in the JSON shape of OpenAI's chat messages.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A call the assistant asked for.
///
/// As JSON: `{"id": …, "type": "function", "function": {"name": …, "arguments": …}}`, arguments
/// being JSON text, or (read only) the object itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "CallWire", into = "CallWire")]
pub struct ToolCall {
    /// What its result refers to.
    pub id: String,
    /// Which tool.
    pub name: String,
    /// A JSON object as text.
    pub arguments: String,
}

#[derive(Serialize, Deserialize)]
struct CallWire {
    #[serde(default)]
    id: Option<String>,
    #[serde(rename = "type", default)]
    kind: Option<String>,
    function: FunctionWire,
}

#[derive(Serialize, Deserialize)]
struct FunctionWire {
    name: String,
    #[serde(default)]
    arguments: Value,
}

impl From<CallWire> for ToolCall {
    fn from(wire: CallWire) -> Self {
        let arguments = match wire.function.arguments {
            Value::Null => String::new(),
            Value::String(text) => text,
            object => object.to_string(),
        };
        Self { id: wire.id.unwrap_or_default(), name: wire.function.name, arguments }
    }
}

impl From<ToolCall> for CallWire {
    fn from(call: ToolCall) -> Self {
        let function = FunctionWire { name: call.name, arguments: Value::String(call.arguments) };
        Self { id: Some(call.id), kind: Some("function".to_owned()), function }
    }
}

/// A tool that the model may call: OpenAI's function object, rendered key by key as given.
///
/// As JSON: `{"type": "function", "function": {"name": …, "description": …, "parameters": …}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ToolWire", into = "ToolWire")]
pub struct Tool {
    name: String,
    function: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
struct ToolWire {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    function: Option<Map<String, Value>>,
}

impl Tool {
    /// A tool with a JSON Schema of its parameters.
    pub fn new(name: impl Into<String>, description: impl Into<String>, parameters: Value) -> Self {
        let name = name.into();
        let function = [
            ("name".to_owned(), Value::String(name.clone())),
            ("description".to_owned(), Value::String(description.into())),
            ("parameters".to_owned(), parameters),
        ];
        Self { name, function: function.into_iter().collect() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The function object: `name`, and whatever else was given.
    pub fn function(&self) -> &Map<String, Value> {
        &self.function
    }
}

impl TryFrom<ToolWire> for Tool {
    type Error = String;

    fn try_from(wire: ToolWire) -> Result<Self, String> {
        let kind = wire.kind.as_deref().unwrap_or("function");
        if kind != "function" {
            return Err(format!("tool of type {kind:?}: only function tools can be called"));
        }
        let function = wire.function.ok_or("a function tool has no object called function")?;
        match function.get("name").and_then(Value::as_str) {
            Some(name) => Ok(Self { name: name.to_owned(), function }),
            None => Err("a function tool has no string called name".to_owned()),
        }
    }
}

impl From<Tool> for ToolWire {
    fn from(tool: Tool) -> Self {
        Self { kind: Some("function".to_owned()), function: Some(tool.function) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_keeps_the_order_of_its_keys() {
        let text = r#"{"type":"function","function":{"name":"f","strict":true,"parameters":{}}}"#;
        let tool: Tool = serde_json::from_str(text).unwrap();
        assert_eq!(tool.name(), "f");
        assert_eq!(serde_json::to_string(&tool).unwrap(), text);
        for refused in [r#"{"type":"custom"}"#, r#"{"function":{"description":"x"}}"#, "{}"] {
            assert!(serde_json::from_str::<Tool>(refused).is_err(), "{refused}");
        }
    }
}
