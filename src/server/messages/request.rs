//! The body of a Messages request, read.

use serde_json::{Map, Value};

use crate::engine::Namespace;
use crate::prompt::{Conversation, Ending, Message, Role, Thinking, Tool, ToolCall};
use crate::server::app::{App, Caller};
use crate::server::fields::Fields;
use crate::server::{common, ApiError, Format, Input, Request, ToolChoice};

/// Messages of a conversation at most.
const MOST_MESSAGES: usize = 100_000;
/// What a line of attribution begins with, which some clients put before their instructions. It is
/// another one in each request.
const ATTRIBUTION: &str = "x-anthropic-";
/// What the model is told in place of an image that a tool has returned. The call cannot be taken
/// back, so to refuse it would end the conversation.
const NO_IMAGE: &str = "[an image, which this model cannot see]";

/// A Messages request.
pub struct Asked {
    /// What is wanted, in no dialect.
    pub request: Request,
    /// What the client calls the model.
    pub model: String,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether thinking blocks have text.
    pub shows_reasoning: bool,
    /// Whose cache may be used.
    pub namespace: Namespace,
}

impl Asked {
    /// Reads a body; to be answered, it must say how long the answer may be.
    ///
    /// # Errors
    /// A field that makes no sense, by name.
    pub fn read(
        body: &Value,
        app: &App,
        caller: &Caller,
        to_be_answered: bool,
    ) -> Result<Self, ApiError> {
        let fields = Fields::body(body)?;
        if fields.list("mcp_servers")?.is_some_and(|servers| !servers.is_empty()) {
            return Err(fields.error("mcp_servers", "this server connects to no others"));
        }
        let model = common::model(&fields, app)?;
        let max_tokens = fields.count("max_tokens", 0, usize::MAX)?;
        if to_be_answered {
            fields.required("max_tokens")?;
        }
        let (thinking, shows_reasoning) = thinking(&fields)?;
        let tools = tools(&fields)?;
        let (tool_choice, parallel_tool_calls) = tool_choice(&fields, &tools)?;
        let format = format(&fields)?;
        let response_schema = match &format {
            Format::JsonSchema(schema) => Some(schema.clone()),
            _ => None,
        };
        let mut messages = Vec::new();
        messages.extend(system(&fields)?);
        let ending = read_messages(&fields, &mut messages)?;
        let conversation = Conversation {
            messages,
            tools,
            thinking: thinking.or(model.thinking).unwrap_or(Thinking::Off),
            response_schema,
            ending,
        };
        let request = Request {
            input: Input::Chat(conversation),
            sampling: common::sampling(&fields, app)?,
            max_tokens,
            stop: common::stop(&fields, "stop_sequences")?,
            n: 1,
            logprobs: None,
            tool_choice,
            allowed_tools: None,
            parallel_tool_calls,
            format,
        };
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let namespace = common::namespace(&fields, caller)?;
        Ok(Self { request, model: model.name, stream, shows_reasoning, namespace })
    }
}

/// How hard to think, and whether to show it. Who does not ask for reasoning gets none, since an
/// answer's first block is then expected to be text.
fn thinking(fields: &Fields<'_>) -> Result<(Option<Thinking>, bool), ApiError> {
    let output = fields.fields("output_config")?;
    let effort = output.map(|output| common::effort(&output, "effort")).transpose()?.flatten();
    let Some(thinking) = fields.fields("thinking")? else { return Ok((effort, true)) };
    let words =
        [("enabled", true), ("adaptive", true), ("between_tools", true), ("disabled", false)];
    thinking.required("type")?;
    let on = thinking.word("type", &words)?.unwrap_or(true);
    thinking.count("budget_tokens", 0, usize::MAX)?;
    let shown =
        thinking.word("display", &[("summarized", true), ("full", true), ("omitted", false)])?;
    let how = match effort {
        _ if !on => Thinking::Off,
        None | Some(Thinking::Off) => Thinking::On,
        Some(effort) => effort,
    };
    Ok((Some(how), shown.unwrap_or(true)))
}

/// The tools that a client runs, in the shape that the template shows; others, which a server
/// would run, are passed over.
fn tools(fields: &Fields<'_>) -> Result<Vec<Tool>, ApiError> {
    let list = fields.list("tools")?.unwrap_or_default();
    let mut functions = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let tool = Fields::of(value, &format!("tools[{index}]"))?;
        let custom = matches!(tool.string("type")?, None | Some("custom"));
        if !custom && tool.value("input_schema").is_none() {
            continue;
        }
        tool.required("name")?;
        tool.fields("input_schema")?;
        let mut function = Map::new();
        for (ours, theirs) in
            [("name", "name"), ("description", "description"), ("parameters", "input_schema")]
        {
            if let Some(value) = tool.value(theirs) {
                function.insert(ours.to_owned(), value.clone());
            }
        }
        functions.push((index, function));
    }
    common::functions(functions)
}

fn tool_choice(fields: &Fields<'_>, tools: &[Tool]) -> Result<(ToolChoice, bool), ApiError> {
    let Some(choice) = fields.fields("tool_choice")? else { return Ok((ToolChoice::Auto, true)) };
    let parallel = !choice.boolean("disable_parallel_tool_use")?.unwrap_or(false);
    choice.required("type")?;
    let words = [("auto", 0), ("any", 1), ("tool", 2), ("none", 3)];
    let choice = match choice.word("type", &words)? {
        Some(1) => common::required_call(fields, tools)?,
        Some(2) => common::named_call(&choice, tools)?,
        Some(3) => ToolChoice::None,
        _ => ToolChoice::Auto,
    };
    Ok((choice, parallel))
}

/// The form of the answer, under its newer name and its older one.
fn format(fields: &Fields<'_>) -> Result<Format, ApiError> {
    let older = fields.fields("output_format")?;
    let newer = match fields.fields("output_config")? {
        Some(output) => output.fields("format")?,
        None => None,
    };
    let Some(format) = newer.or(older) else { return Ok(Format::Text) };
    format.required("type")?;
    format.word("type", &[("json_schema", ())])?;
    format.fields("schema")?;
    Ok(Format::JsonSchema(format.required("schema")?.clone()))
}

/// The instructions, without what changes from request to request: attribution is dropped, marks
/// for caching mean nothing here.
fn system(fields: &Fields<'_>) -> Result<Option<Message>, ApiError> {
    let blocks = match fields.value("system") {
        None => return Ok(None),
        Some(Value::String(text)) => vec![text.as_str()],
        Some(_) => texts(fields, "system")?,
    };
    let blocks = blocks.into_iter().map(without_attribution).filter(|text| !text.is_empty());
    let text = blocks.collect::<Vec<_>>().join("\n\n");
    Ok((!text.is_empty()).then(|| Message::system(text)))
}

fn without_attribution(mut text: &str) -> &str {
    while text.starts_with(ATTRIBUTION) {
        text = text.split_once('\n').map_or("", |(_, rest)| rest);
    }
    text
}

/// The texts of a list of text blocks.
fn texts<'v>(fields: &Fields<'v>, name: &str) -> Result<Vec<&'v str>, ApiError> {
    let path = fields.path(name);
    let list = fields.list(name)?.unwrap_or_default();
    let mut texts = Vec::with_capacity(list.len());
    for (index, block) in list.iter().enumerate() {
        let block = Fields::of(block, &format!("{path}[{index}]"))?;
        block.required("type")?;
        block.word("type", &[("text", ())])?;
        block.required("text")?;
        texts.extend(block.string("text")?);
    }
    Ok(texts)
}

fn read_messages(fields: &Fields<'_>, messages: &mut Vec<Message>) -> Result<Ending, ApiError> {
    let list = fields.list("messages")?.unwrap_or_default();
    if list.is_empty() {
        return Err(fields.error("messages", "must be a list of at least one message"));
    }
    if list.len() > MOST_MESSAGES {
        return Err(fields.error("messages", format!("has more than {MOST_MESSAGES} messages")));
    }
    for (index, value) in list.iter().enumerate() {
        let message = Fields::of(value, &format!("messages[{index}]"))?;
        message.required("role")?;
        let words =
            [("user", Role::User), ("assistant", Role::Assistant), ("system", Role::System)];
        let role = message.word("role", &words)?.unwrap_or(Role::User);
        let content = message.required("content")?;
        match (role, content) {
            // In place: moved to the front, it would change the beginning of every prompt.
            (Role::System, Value::String(text)) => messages.push(Message::system(text)),
            (Role::System, _) => {
                messages.push(Message::system(texts(&message, "content")?.join("\n\n")));
            }
            (Role::Assistant, Value::String(text)) => say(messages, text),
            (Role::Assistant, _) => {
                for_each_block(&message, |block| assistant_block(block, messages))?;
            }
            (_, Value::String(text)) => messages.push(Message::user(text)),
            _ => for_each_block(&message, |block| user_block(block, messages))?,
        }
    }
    let open = messages.last().is_some_and(|last| last.role == Role::Assistant);
    Ok(if open { Ending::Continue } else { Ending::Reply })
}

fn for_each_block<'v>(
    message: &Fields<'v>,
    mut read: impl FnMut(&Fields<'v>) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let path = message.path("content");
    for (index, block) in message.list("content")?.unwrap_or_default().iter().enumerate() {
        let block = Fields::of(block, &format!("{path}[{index}]"))?;
        block.required("type")?;
        read(&block)?;
    }
    Ok(())
}

/// The assistant's message that is being put together.
fn assistant(messages: &mut Vec<Message>) -> Option<&mut Message> {
    if messages.last().is_none_or(|last| last.role != Role::Assistant) {
        messages.push(Message::assistant(""));
    }
    messages.last_mut()
}

fn append(text: &mut String, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(more);
}

fn say(messages: &mut Vec<Message>, text: &str) {
    if let Some(message) = assistant(messages) {
        append(&mut message.content, text);
    }
}

fn assistant_block(block: &Fields<'_>, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    match block.string("type")?.unwrap_or_default() {
        "text" => {
            block.required("text")?;
            say(messages, block.string("text")?.unwrap_or_default());
        }
        "thinking" => {
            let (text, signature) = (block.string("thinking")?, block.string("signature")?);
            if let Some(message) = assistant(messages) {
                append(message.reasoning.get_or_insert_default(), text.unwrap_or_default());
                let signature = signature.filter(|signature| !signature.is_empty());
                message.replay = message.replay.take().or(signature.map(str::to_owned));
            }
        }
        "tool_use" => {
            block.required("id")?;
            block.required("name")?;
            let id = block.string("id")?.unwrap_or_default();
            let name = block.string("name")?.unwrap_or_default();
            common::check_name(block, "name", name)?;
            block.fields("input")?;
            let arguments = block.value("input").map_or_else(|| "{}".to_owned(), Value::to_string);
            let call = ToolCall { id: id.to_owned(), name: name.to_owned(), arguments };
            if let Some(message) = assistant(messages) {
                message.tool_calls.push(call);
            }
        }
        // Reasoning of another server, which only it can read, and what other servers' tools did.
        _ => {}
    }
    Ok(())
}

fn user_block(block: &Fields<'_>, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    match block.string("type")?.unwrap_or_default() {
        "text" => {
            block.required("text")?;
            messages.push(Message::user(block.string("text")?.unwrap_or_default()));
        }
        "tool_result" => {
            block.required("tool_use_id")?;
            let id = block.string("tool_use_id")?.unwrap_or_default();
            let failed = block.boolean("is_error")?.unwrap_or(false);
            let mut content = match block.value("content") {
                None => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(_) => result(block)?,
            };
            if failed && !content.trim_start().to_lowercase().starts_with("error") {
                content.insert_str(0, "Error: ");
            }
            messages.push(Message::tool(id, content));
        }
        "document" => messages.push(Message::user(document(block)?)),
        other => {
            let problem = match other {
                "image" => "is image: DeepSeek V4 Flash reads text only",
                _ => "must be text, tool_result or document: DeepSeek V4 Flash reads text only",
            };
            return Err(block.error("type", problem));
        }
    }
    Ok(())
}

/// What a tool has returned, as text.
fn result(block: &Fields<'_>) -> Result<String, ApiError> {
    let mut result = String::new();
    for_each_block(block, |part| {
        match part.string("type")?.unwrap_or_default() {
            "text" => append(&mut result, part.string("text")?.unwrap_or_default()),
            "image" => append(&mut result, NO_IMAGE),
            "document" => append(&mut result, &document(part)?),
            "tool_reference" => append(&mut result, part.string("tool_name")?.unwrap_or_default()),
            "search_result" => {
                append(&mut result, part.string("title")?.unwrap_or_default());
                append(&mut result, &texts(part, "content")?.join("\n\n"));
            }
            _ => {
                let problem = "must be text, image, document, search_result or tool_reference";
                return Err(part.error("type", problem));
            }
        }
        Ok(())
    })?;
    Ok(result)
}

/// A document that is text.
fn document(block: &Fields<'_>) -> Result<String, ApiError> {
    block.required("source")?;
    let Some(source) = block.fields("source")? else { return Ok(String::new()) };
    source.required("type")?;
    let mut text = block.string("title")?.unwrap_or_default().to_owned();
    match source.string("type")?.unwrap_or_default() {
        "text" => append(&mut text, source.string("data")?.unwrap_or_default()),
        "content" => match source.value("content") {
            Some(Value::String(content)) => append(&mut text, content),
            _ => append(&mut text, &texts(&source, "content")?.join("\n\n")),
        },
        _ => {
            let problem = "must be text or content: DeepSeek V4 Flash reads text only";
            return Err(source.error("type", problem));
        }
    }
    Ok(text)
}
