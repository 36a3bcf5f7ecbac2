//! The items of an input to messages.

use serde_json::{json, Value};

use super::Kept;
use crate::engine::Namespace;
use crate::prompt::{Message, Role, ToolCall};
use crate::server::fields::Fields;
use crate::server::{common, ApiError};

/// What the model is told in place of an image that a tool has returned. The call cannot be taken
/// back, so to refuse it would end the conversation.
const NO_IMAGE: &str = "[an image, which this model cannot see]";

/// Puts messages together from items: reasoning, text and calls that follow each other are one
/// message of the assistant's.
pub struct Reader<'k> {
    kept: &'k Kept,
    namespace: Namespace,
    messages: Vec<Message>,
}

impl<'k> Reader<'k> {
    /// No messages yet. Items that are referred to are those of this namespace.
    pub fn new(kept: &'k Kept, namespace: Namespace) -> Self {
        Self { kept, namespace, messages: Vec::new() }
    }

    /// The messages.
    pub fn finish(self) -> Vec<Message> {
        self.messages
    }

    /// Instructions.
    pub fn system(&mut self, text: &str) {
        if !text.is_empty() {
            self.messages.push(Message::system(text));
        }
    }

    /// A user's message.
    pub fn user(&mut self, text: &str) {
        self.messages.push(Message::user(text));
    }

    /// A list of items, which a field of this name has.
    ///
    /// # Errors
    /// An item that makes no sense, or refers to one that is not known.
    pub fn items(&mut self, items: &[Value], name: &str) -> Result<(), ApiError> {
        for (index, item) in items.iter().enumerate() {
            let path = format!("{name}[{index}]");
            let fields = Fields::of(item, &path)?;
            if fields.string("type")? == Some("item_reference") {
                fields.required("id")?;
                let id = fields.string("id")?.unwrap_or_default();
                let Some(item) = self.kept.find(self.namespace, id) else {
                    let problem = "is not known (any more): send the item itself instead, as \
                                   clients do with store: false";
                    return Err(fields.error("id", problem).with_code("item_not_found"));
                };
                self.item(&Fields::of(&item, &path)?)?;
            } else {
                self.item(&fields)?;
            }
        }
        Ok(())
    }

    fn item(&mut self, item: &Fields<'_>) -> Result<(), ApiError> {
        match item.string("type")?.unwrap_or("message") {
            "message" => self.message(item),
            "reasoning" => self.reasoning(item),
            "function_call" => {
                let arguments = item.string("arguments")?.unwrap_or_default();
                self.call(item, arguments.to_owned())
            }
            "custom_tool_call" => {
                let input = item.string("input")?.unwrap_or_default();
                self.call(item, json!({ "input": input }).to_string())
            }
            "function_call_output" | "custom_tool_call_output" => {
                item.required("call_id")?;
                let id = item.string("call_id")?.unwrap_or_default();
                let output = match item.value("output") {
                    Some(Value::Array(_)) => parts(item, "output", true)?,
                    Some(Value::Object(output)) => Value::Object(output.clone()).to_string(),
                    _ => item.string("output")?.unwrap_or_default().to_owned(),
                };
                self.messages.push(Message::tool(id, output));
                Ok(())
            }
            // What tools of others did; there are new kinds every month.
            _ => Ok(()),
        }
    }

    fn message(&mut self, item: &Fields<'_>) -> Result<(), ApiError> {
        item.required("role")?;
        let roles = [
            ("user", Role::User),
            ("assistant", Role::Assistant),
            ("system", Role::System),
            // OpenAI's newer word for it; DeepSeek's template means something else by it.
            ("developer", Role::System),
        ];
        let role = item.word("role", &roles)?.unwrap_or(Role::User);
        let text = match item.value("content") {
            Some(Value::Array(_)) => parts(item, "content", false)?,
            _ => item.string("content")?.unwrap_or_default().to_owned(),
        };
        if role == Role::Assistant {
            append(&mut self.assistant(true).content, &text);
        } else {
            self.messages.push(Message::new(role, text));
        }
        Ok(())
    }

    fn reasoning(&mut self, item: &Fields<'_>) -> Result<(), ApiError> {
        let mut text = String::new();
        for name in ["content", "summary"] {
            for (index, part) in item.list(name)?.unwrap_or_default().iter().enumerate() {
                let part = Fields::of(part, &format!("{}[{index}]", item.path(name)))?;
                append(&mut text, part.string("text")?.unwrap_or_default());
            }
            if !text.is_empty() {
                break;
            }
        }
        let note = item.string("encrypted_content")?.filter(|note| !note.is_empty());
        let message = self.assistant(false);
        if !text.is_empty() {
            append(message.reasoning.get_or_insert_default(), &text);
        }
        message.replay = message.replay.take().or(note.map(str::to_owned));
        Ok(())
    }

    fn call(&mut self, item: &Fields<'_>, arguments: String) -> Result<(), ApiError> {
        item.required("call_id")?;
        item.required("name")?;
        let id = item.string("call_id")?.unwrap_or_default().to_owned();
        let name = item.string("name")?.unwrap_or_default().to_owned();
        common::check_name(item, "name", &name)?;
        self.assistant(true).tool_calls.push(ToolCall { id, name, arguments });
        Ok(())
    }

    /// The assistant's message that is being put together. What `goes_on` may follow anything;
    /// reasoning begins another message if something was said or called.
    fn assistant(&mut self, goes_on: bool) -> &mut Message {
        let open = self.messages.last().is_some_and(|last| {
            let silent = last.content.is_empty() && last.tool_calls.is_empty();
            last.role == Role::Assistant && (goes_on || silent)
        });
        if !open {
            self.messages.push(Message::assistant(""));
        }
        let last = self.messages.len() - 1;
        &mut self.messages[last]
    }
}

fn append(text: &mut String, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(more);
}

/// The text of a list of parts. What a tool returned may have others, of which the model is told.
fn parts(item: &Fields<'_>, name: &str, returned: bool) -> Result<String, ApiError> {
    let mut text = String::new();
    let path = item.path(name);
    for (index, part) in item.list(name)?.unwrap_or_default().iter().enumerate() {
        let part = Fields::of(part, &format!("{path}[{index}]"))?;
        match part.string("type")?.unwrap_or("input_text") {
            "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text" => {
                part.required("text")?;
                append(&mut text, part.string("text")?.unwrap_or_default());
            }
            "refusal" => append(&mut text, part.string("refusal")?.unwrap_or_default()),
            _ if returned => append(&mut text, NO_IMAGE),
            _ => {
                let problem =
                    "must be input_text or output_text: DeepSeek V4 Flash reads text only";
                return Err(part.error("type", problem));
            }
        }
    }
    Ok(text)
}
