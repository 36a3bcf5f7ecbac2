//! The body of a chat request, read.

use serde_json::Value;

use crate::engine::Namespace;
use crate::prompt::{Conversation, Ending, Message, Role, Thinking, Tool, ToolCall};
use crate::server::app::{App, Caller};
use crate::server::fields::Fields;
use crate::server::{common, ApiError, Format, Input, Request, ToolChoice};

/// Messages of a conversation at most.
const MOST_MESSAGES: usize = 100_000;
/// Likeliest tokens that may be reported beside each chosen one.
const MOST_LOGPROBS: usize = 20;

/// A chat request.
pub struct Chat {
    /// What is wanted, in no dialect.
    pub request: Request,
    /// What the client calls the model.
    pub model: String,
    /// Whose cache may be used.
    pub namespace: Namespace,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
}

impl Chat {
    /// Reads a body.
    ///
    /// # Errors
    /// A field that makes no sense, by name.
    pub fn read(body: &Value, app: &App, caller: &Caller) -> Result<Self, ApiError> {
        let fields = Fields::body(body)?;
        refuse(&fields)?;
        let model = common::model(&fields, app)?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let include_usage = match fields.fields("stream_options")? {
            Some(options) => options.boolean("include_usage")?.unwrap_or(false),
            None => false,
        };
        let tools = common::tools(&fields)?;
        let (tool_choice, allowed_tools) = tool_choice(&fields, &tools)?;
        let format = format(&fields)?;
        let response_schema = match &format {
            Format::JsonSchema(schema) => Some(schema.clone()),
            _ => None,
        };
        let (messages, ending) = messages(&fields)?;
        let thinking = common::thinking(&fields)?.or(model.thinking).unwrap_or(Thinking::On);
        let most = app.0.settings.most_answers;
        // The older name stays valid, the newer one wins.
        let older = fields.count("max_tokens", 1, usize::MAX)?;
        let newer = fields.count("max_completion_tokens", 1, usize::MAX)?;
        let request = Request {
            input: Input::Chat(Conversation { messages, tools, thinking, response_schema, ending }),
            sampling: common::sampling(&fields, app)?,
            max_tokens: newer.or(older),
            stop: common::stop(&fields, "stop")?,
            n: fields.count("n", 1, most)?.unwrap_or(1),
            logprobs: logprobs(&fields)?,
            tool_choice,
            allowed_tools,
            parallel_tool_calls: fields.boolean("parallel_tool_calls")?.unwrap_or(true),
            format,
        };
        let namespace = common::namespace(&fields, caller)?;
        Ok(Self { request, model: model.name, namespace, stream, include_usage })
    }
}

/// Refuses what would have to change the answer, and cannot.
fn refuse(fields: &Fields<'_>) -> Result<(), ApiError> {
    for name in ["functions", "function_call"] {
        let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
        if fields.value(name).is_some_and(|value| !empty(value)) {
            let problem = "is no longer spoken: use tools and tool_choice";
            return Err(fields.error(name, problem));
        }
    }
    for name in ["audio", "web_search_options"] {
        if fields.value(name).is_some() {
            return Err(fields.error(name, "DeepSeek V4 Flash reads and writes text only"));
        }
    }
    let modalities = fields.list("modalities")?.unwrap_or_default();
    if modalities.iter().any(|modality| modality != "text") {
        let problem = "must be [\"text\"]: DeepSeek V4 Flash reads and writes text only";
        return Err(fields.error("modalities", problem));
    }
    Ok(())
}

fn logprobs(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0, MOST_LOGPROBS)?;
    if top.is_some_and(|top| top > 0) && !wanted {
        return Err(fields.error("top_logprobs", "needs \"logprobs\": true"));
    }
    Ok(wanted.then_some(top.unwrap_or(0)))
}

fn messages(fields: &Fields<'_>) -> Result<(Vec<Message>, Ending), ApiError> {
    let list = fields.list("messages")?.unwrap_or_default();
    if list.is_empty() {
        return Err(fields.error("messages", "must be a list of at least one message"));
    }
    if list.len() > MOST_MESSAGES {
        let problem = format!("has more than {MOST_MESSAGES} messages");
        return Err(fields.error("messages", problem));
    }
    let mut messages = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        messages.push(message(value, &format!("messages[{index}]"))?);
    }
    let mut continues = fields.boolean("continue_final_message")?.unwrap_or(false);
    if let Some(last) = list.len().checked_sub(1) {
        // DeepSeek's own name for it.
        let last = Fields::of(&list[last], &format!("messages[{last}]"))?;
        continues |= last.boolean("prefix")?.unwrap_or(false);
    }
    Ok((messages, if continues { Ending::Continue } else { Ending::Reply }))
}

fn message(value: &Value, path: &str) -> Result<Message, ApiError> {
    let fields = Fields::of(value, path)?;
    let role = fields.required("role")?;
    let known = role.as_str().and_then(|role| role.parse::<Role>().ok());
    let Some(role) = known else {
        let problem = "must be system, developer, user, assistant or tool";
        return Err(fields.error("role", problem));
    };
    let blamed = |error: serde_json::Error| {
        let message = error.to_string();
        let field = if message.contains("content") { fields.path("content") } else { path.into() };
        ApiError::field(field, format!("{path}: {message}"))
    };
    for name in ["reasoning_content", "reasoning", "tool_call_id"] {
        fields.string(name)?;
    }
    for (index, call) in fields.list("tool_calls")?.unwrap_or_default().iter().enumerate() {
        let path = format!("{}[{index}]", fields.path("tool_calls"));
        let call = Fields::of(call, &path)?;
        call.string("id")?;
        let function = call.fields("function")?;
        let Some(function) = function else {
            return Err(call.error("function", "must be an object with a name and arguments"));
        };
        function.string("name")?;
        check_called_name(&function)?;
    }
    let mut message: Message = serde_json::from_value(value.clone()).map_err(blamed)?;
    // OpenAI's newer word for it; DeepSeek's template means something else by it.
    if role == Role::Developer {
        message.role = Role::System;
    }
    if let Some(call) = fields.fields("function_call")? {
        check_called_name(&call)?;
        let name = call.string("name")?.unwrap_or_default().to_owned();
        let arguments = call.string("arguments")?.unwrap_or_default().to_owned();
        message.tool_calls.push(ToolCall { id: String::new(), name, arguments });
    }
    Ok(message)
}

fn check_called_name(function: &Fields<'_>) -> Result<(), ApiError> {
    let name = function.required("name")?.as_str().unwrap_or_default();
    common::check_name(function, "name", name)
}

/// Whether and which tools must be called, and which may be.
fn tool_choice(
    fields: &Fields<'_>,
    tools: &[Tool],
) -> Result<(ToolChoice, Option<Vec<String>>), ApiError> {
    let choice = match fields.value("tool_choice") {
        None => ToolChoice::Auto,
        Some(Value::String(word)) => match word.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" | "any" => common::required_call(fields, tools)?,
            _ => {
                let problem = "must be auto, none, required, or an object that names a function";
                return Err(fields.error("tool_choice", problem));
            }
        },
        Some(value) => {
            let choice = Fields::of(value, "tool_choice")?;
            match choice.word("type", &[("function", false), ("allowed_tools", true)])? {
                Some(true) => {
                    let allowed = choice.required("allowed_tools")?;
                    let allowed = Fields::of(allowed, "tool_choice.allowed_tools")?;
                    let (choice, names) = common::allowed_tools(&allowed, tools)?;
                    return Ok((choice, Some(names)));
                }
                _ => {
                    let function = choice.required("function")?;
                    let function = Fields::of(function, "tool_choice.function")?;
                    common::named_call(&function, tools)?
                }
            }
        }
    };
    Ok((choice, None))
}

fn format(fields: &Fields<'_>) -> Result<Format, ApiError> {
    let Some(format) = fields.fields("response_format")? else { return Ok(Format::Text) };
    let words = [("text", 0), ("json_object", 1), ("json_schema", 2)];
    format.required("type")?;
    match format.word("type", &words)? {
        Some(1) => Ok(Format::JsonObject),
        Some(2) => {
            let schema = format.required("json_schema")?;
            let schema = Fields::of(schema, "response_format.json_schema")?;
            schema.string("name")?;
            schema.boolean("strict")?;
            schema.fields("schema")?;
            Ok(Format::JsonSchema(schema.required("schema")?.clone()))
        }
        _ => Ok(Format::Text),
    }
}
