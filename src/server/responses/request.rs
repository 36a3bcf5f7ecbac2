//! The body of a Responses request, read.

use serde_json::{Map, Value};

use super::item::Reader;
use crate::engine::Namespace;
use crate::prompt::{Conversation, Ending, Message, Thinking, Tool};
use crate::server::app::{App, Caller};
use crate::server::fields::Fields;
use crate::server::{common, ApiError, Format, Input, Request, ToolChoice};

/// Items of an input at most.
const MOST_ITEMS: usize = 100_000;
/// Likeliest tokens that may be reported beside each chosen one.
const MOST_LOGPROBS: usize = 20;
/// What [`include`](Echo) calls the reasoning that a client keeps without reading it.
const ENCRYPTED_REASONING: &str = "reasoning.encrypted_content";
/// What it calls probabilities.
const LOGPROBS: &str = "message.output_text.logprobs";

/// A Responses request.
pub struct Asked {
    /// What is wanted, in no dialect.
    pub request: Request,
    /// Whose cache may be used.
    pub namespace: Namespace,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// What the response repeats of it.
    pub echo: Echo,
}

/// What a response repeats of its request.
#[derive(Clone, Debug)]
pub struct Echo {
    /// The body's fields.
    pub body: Map<String, Value>,
    /// What the client calls the model.
    pub model: String,
    /// The temperature that holds.
    pub temperature: f64,
    /// The top-p that holds.
    pub top_p: f64,
    /// Whether there may be several calls.
    pub parallel_tool_calls: bool,
    /// Whether the client may refer to items later.
    pub store: bool,
    /// A summary of the reasoning is wanted: it is the reasoning itself.
    pub summary: bool,
    /// The reasoning is wanted as something to send back.
    pub encrypted: bool,
}

impl Asked {
    /// Reads a body.
    ///
    /// # Errors
    /// A field that makes no sense, by name.
    pub fn read(body: &Value, app: &App, caller: &Caller) -> Result<Self, ApiError> {
        let fields = Fields::body(body)?;
        refuse(&fields)?;
        let namespace = common::namespace(&fields, caller)?;
        let model = common::model(&fields, app)?;
        let reasoning = fields.fields("reasoning")?;
        let summary = match &reasoning {
            Some(reasoning) => {
                let older = reasoning.string("generate_summary")?;
                reasoning.string("summary")?.or(older).is_some_and(|summary| summary != "none")
            }
            None => false,
        };
        let include = include(&fields)?;
        let tools = tools(&fields)?;
        let (tool_choice, allowed_tools) = tool_choice(&fields, &tools)?;
        let format = format(&fields)?;
        let response_schema = match &format {
            Format::JsonSchema(schema) => Some(schema.clone()),
            _ => None,
        };
        let thinking = common::thinking(&fields)?.or(model.thinking).unwrap_or(Thinking::On);
        let top = fields.count("top_logprobs", 0, MOST_LOGPROBS)?;
        let logprobs = include.contains(&LOGPROBS) || top.is_some_and(|top| top > 0);
        let parallel_tool_calls = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
        let sampling = common::sampling(&fields, app)?;
        fields.fields("metadata")?;
        for name in ["user", "prompt_cache_key", "safety_identifier", "service_tier", "truncation"]
        {
            fields.string(name)?;
        }
        let echo = Echo {
            body: fields.object().clone(),
            model: model.name,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            parallel_tool_calls,
            store: fields.boolean("store")?.unwrap_or(true),
            summary,
            encrypted: include.contains(&ENCRYPTED_REASONING),
        };
        let messages = messages(&fields, app, namespace)?;
        let conversation =
            Conversation { messages, tools, thinking, response_schema, ending: Ending::Reply };
        let request = Request {
            input: Input::Chat(conversation),
            sampling,
            max_tokens: fields.count("max_output_tokens", 0, usize::MAX)?,
            stop: common::stop(&fields, "stop")?,
            n: 1,
            logprobs: logprobs.then_some(top.unwrap_or(0)),
            tool_choice,
            allowed_tools,
            parallel_tool_calls,
            format,
        };
        let stream = fields.boolean("stream")?.unwrap_or(false);
        Ok(Self { request, namespace, stream, echo })
    }
}

/// Refuses what needs a memory of conversations, or somebody else's prompts.
fn refuse(fields: &Fields<'_>) -> Result<(), ApiError> {
    for name in ["previous_response_id", "conversation"] {
        if fields.value(name).is_some() {
            let problem = "is not known: this server keeps no conversations; send all items of it \
                           as input instead";
            let error = fields.error(name, problem);
            return Err(error.with_code("previous_response_not_found"));
        }
    }
    if fields.value("prompt").is_some() {
        return Err(fields.error("prompt", "this server keeps no prompts: send it as input"));
    }
    if fields.boolean("background")?.unwrap_or(false) {
        return Err(fields.error("background", "this server answers at once only"));
    }
    Ok(())
}

fn include<'v>(fields: &Fields<'v>) -> Result<Vec<&'v str>, ApiError> {
    let list = fields.list("include")?.unwrap_or_default();
    // What else clients want included comes from tools that only OpenAI runs.
    Ok(list.iter().filter_map(Value::as_str).collect())
}

/// The functions among the tools; others, which only OpenAI or the client's own vendor knows, are
/// passed over.
fn tools(fields: &Fields<'_>) -> Result<Vec<Tool>, ApiError> {
    let list = fields.list("tools")?.unwrap_or_default();
    let mut functions = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let tool = Fields::of(value, &format!("tools[{index}]"))?;
        tool.required("type")?;
        if tool.string("type")? != Some("function") {
            continue;
        }
        tool.required("name")?;
        tool.fields("parameters")?;
        tool.boolean("strict")?;
        let mut function = Map::new();
        for name in ["name", "description", "parameters", "strict"] {
            if let Some(value) = tool.value(name) {
                function.insert(name.to_owned(), value.clone());
            }
        }
        functions.push((index, function));
    }
    common::functions(functions)
}

/// Whether and which tools must be called, and which may be.
fn tool_choice(
    fields: &Fields<'_>,
    tools: &[Tool],
) -> Result<(ToolChoice, Option<Vec<String>>), ApiError> {
    let choice = match fields.value("tool_choice") {
        None => ToolChoice::Auto,
        Some(value @ Value::Object(_)) => {
            let choice = Fields::of(value, "tool_choice")?;
            choice.required("type")?;
            match choice.word("type", &[("function", false), ("allowed_tools", true)])? {
                Some(true) => {
                    let (choice, names) = common::allowed_tools(&choice, tools)?;
                    return Ok((choice, Some(names)));
                }
                _ => common::named_call(&choice, tools)?,
            }
        }
        Some(_) => {
            match fields.word("tool_choice", &[("auto", 0), ("none", 1), ("required", 2)])? {
                Some(1) => ToolChoice::None,
                Some(2) => common::required_call(fields, tools)?,
                _ => ToolChoice::Auto,
            }
        }
    };
    Ok((choice, None))
}

fn format(fields: &Fields<'_>) -> Result<Format, ApiError> {
    let format = match fields.fields("text")? {
        Some(text) => text.fields("format")?,
        None => None,
    };
    let Some(format) = format else { return Ok(Format::Text) };
    format.required("type")?;
    match format.word("type", &[("text", 0), ("json_object", 1), ("json_schema", 2)])? {
        Some(1) => Ok(Format::JsonObject),
        Some(2) => {
            format.string("name")?;
            format.boolean("strict")?;
            format.fields("schema")?;
            Ok(Format::JsonSchema(format.required("schema")?.clone()))
        }
        _ => Ok(Format::Text),
    }
}

fn messages(
    fields: &Fields<'_>,
    app: &App,
    namespace: Namespace,
) -> Result<Vec<Message>, ApiError> {
    let mut reader = Reader::new(&app.0.kept, namespace);
    match fields.value("instructions") {
        Some(Value::Array(items)) => reader.items(items, "instructions")?,
        _ => reader.system(fields.string("instructions")?.unwrap_or_default()),
    }
    match fields.value("input") {
        // Some clients probe with it.
        None => {}
        Some(Value::String(text)) => reader.user(text),
        Some(_) => {
            let items = fields.list("input")?.unwrap_or_default();
            if items.len() > MOST_ITEMS {
                return Err(fields.error("input", format!("has more than {MOST_ITEMS} items")));
            }
            reader.items(items, "input")?;
        }
    }
    Ok(reader.finish())
}
