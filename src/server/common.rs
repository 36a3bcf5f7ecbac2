//! Fields that several dialects have, with the same names and meanings.

use std::collections::HashMap;

use serde_json::{json, Map, Value};

use super::access::salted;
use super::app::{App, Caller};
use super::fields::Fields;
use super::stop::{LONGEST_STOP, MOST_STOPS};
use super::{ApiError, Kind, ToolChoice};
use crate::engine::Namespace;
use crate::prompt::{Thinking, Tool};
use crate::sample::Sampling;

/// Characters of a name (model, tool) at most.
const LONGEST_NAME: usize = 128;
/// Tokens that may have a bias at most.
const MOST_BIASES: usize = 1024;
/// Tools that may be declared at most.
const MOST_TOOLS: usize = 1024;

/// How tokens are chosen; what is not given is DeepSeek's recommendation, and another seed each
/// time.
///
/// # Errors
/// A field with a wrong type or out of range.
pub fn sampling(fields: &Fields<'_>, app: &App) -> Result<Sampling, ApiError> {
    let vocabulary = app.service().tokenizer().vocab_size();
    let default = Sampling::default();
    let seeds = i128::from(i64::MIN)..=i128::from(u64::MAX);
    let top_k = fields.integer("top_k", -1..=vocabulary as i128)?;
    let penalty = |name| fields.number(name, -2.0..=2.0);
    let repetition = fields.number("repetition_penalty", 0.01..=10.0)?;
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(default.temperature),
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(default.top_p),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(default.min_p),
        // vLLM's -1 is no limit.
        top_k: top_k.and_then(|k| usize::try_from(k).ok()).unwrap_or(default.top_k),
        repetition_penalty: repetition.map_or(default.repetition_penalty, |x| x as f32),
        frequency_penalty: penalty("frequency_penalty")?.unwrap_or_default() as f32,
        presence_penalty: penalty("presence_penalty")?.unwrap_or_default() as f32,
        logit_bias: logit_bias(fields, vocabulary)?,
        seed: match fields.integer("seed", seeds)? {
            // Negative seeds are seeds too.
            Some(seed) => seed as u64,
            None => rand::random(),
        },
    })
}

fn logit_bias(fields: &Fields<'_>, vocabulary: usize) -> Result<HashMap<u32, f32>, ApiError> {
    let Some(biases) = fields.fields("logit_bias")? else { return Ok(HashMap::new()) };
    if biases.object().len() > MOST_BIASES {
        return Err(fields.error("logit_bias", format!("has more than {MOST_BIASES} entries")));
    }
    let mut map = HashMap::new();
    for token in biases.object().keys() {
        let id = token.parse::<u32>().ok().filter(|id| (*id as usize) < vocabulary);
        let Some(id) = id else {
            let problem = format!("has a key that is no token id below {vocabulary}");
            return Err(fields.error("logit_bias", problem));
        };
        if let Some(bias) = biases.number(token, -100.0..=100.0)? {
            map.insert(id, bias as f32);
        }
    }
    Ok(map)
}

/// Texts that end an answer: a string or a list of strings. Empty ones are passed over.
///
/// # Errors
/// Something else, or too many, or too long ones.
pub fn stop(fields: &Fields<'_>, name: &str) -> Result<Vec<String>, ApiError> {
    let list = match fields.value(name) {
        None => return Ok(Vec::new()),
        Some(text @ Value::String(_)) => std::slice::from_ref(text),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(fields.error(name, "must be a string or a list of strings")),
    };
    if list.len() > MOST_STOPS {
        return Err(fields.error(name, format!("has more than {MOST_STOPS} entries")));
    }
    let mut texts = Vec::with_capacity(list.len());
    for text in list {
        match text {
            Value::String(text) if text.len() > LONGEST_STOP => {
                let problem = format!("has an entry of more than {LONGEST_STOP} bytes");
                return Err(fields.error(name, problem));
            }
            Value::String(text) if text.is_empty() => {}
            Value::String(text) => texts.push(text.clone()),
            _ => return Err(fields.error(name, "must be a string or a list of strings")),
        }
    }
    Ok(texts)
}

/// A model that a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// As the client wrote it: what the answer calls it.
    pub name: String,
    /// Some names say how to think.
    pub thinking: Option<Thinking>,
}

/// The model that a client wants. There is only one, so any name will do, unless the server was
/// told to be strict.
///
/// # Errors
/// The field is no string, or too long, or another model's name where that matters.
pub fn model(fields: &Fields<'_>, app: &App) -> Result<Model, ApiError> {
    let own = &app.0.settings.model;
    let name = fields.string("model")?.filter(|name| !name.is_empty()).unwrap_or(own);
    if name.chars().count() > LONGEST_NAME {
        let problem = format!("is longer than {LONGEST_NAME} characters");
        return Err(fields.error("model", problem));
    }
    if !app.has_model(name) && app.0.settings.strict_model {
        return Err(no_such_model(own));
    }
    Ok(Model { name: name.to_owned(), thinking: thinking_of(name) })
}

/// What is said of a model that is not here.
pub fn no_such_model(own: &str) -> ApiError {
    let message = format!("no such model; this server has {own:?} (see /v1/models)");
    let error =
        ApiError { param: Some("model".to_owned()), ..ApiError::new(Kind::NotFound, message) };
    error.with_code("model_not_found")
}

/// DeepSeek's hosted models that are one model with and without thinking.
pub const THINKING_ALIASES: [(&str, Thinking); 2] =
    [("deepseek-chat", Thinking::Off), ("deepseek-reasoner", Thinking::On)];

fn thinking_of(name: &str) -> Option<Thinking> {
    let alias = THINKING_ALIASES.iter().find(|(alias, _)| *alias == name);
    alias.map(|(_, thinking)| *thinking)
}

/// How hard to think, in every spelling that clients of chat completions have:
/// `reasoning_effort`, `reasoning: {effort, enabled}`, `thinking: {type}` or a boolean,
/// `enable_thinking`, `think`, and `chat_template_kwargs` with any of them. A switch that says no
/// wins over an effort.
///
/// # Errors
/// A value that none of them has.
pub fn thinking(fields: &Fields<'_>) -> Result<Option<Thinking>, ApiError> {
    let mut switch = switches(fields)?;
    let mut effort = effort(fields, "reasoning_effort")?;
    if let Some(reasoning) = fields.fields("reasoning")? {
        let enabled = reasoning.boolean("enabled")?;
        switch = switch.or(enabled);
        effort = effort.or(self::effort(&reasoning, "effort")?);
    }
    if let Some(arguments) = fields.fields("chat_template_kwargs")? {
        switch = switch.or(switches(&arguments)?);
        effort = effort.or(self::effort(&arguments, "reasoning_effort")?);
    }
    Ok(match (switch, effort) {
        (Some(false), _) => Some(Thinking::Off),
        (Some(true), None | Some(Thinking::Off)) => Some(Thinking::On),
        (_, effort) => effort,
    })
}

/// `none`, `minimal` … `max`, in a field of this name.
///
/// # Errors
/// Another word, or no word.
pub fn effort(fields: &Fields<'_>, name: &str) -> Result<Option<Thinking>, ApiError> {
    let Some(word) = fields.string(name)? else { return Ok(None) };
    let effort = word.parse().map_err(|_| {
        let words = "must be none, minimal, low, medium, high, xhigh or max";
        fields.error(name, words)
    })?;
    Ok(Some(effort))
}

fn switches(fields: &Fields<'_>) -> Result<Option<bool>, ApiError> {
    let mut switch = match fields.value("thinking") {
        Some(Value::Object(_)) => {
            let words =
                [("enabled", true), ("adaptive", true), ("auto", true), ("disabled", false)];
            let thinking = fields.fields("thinking")?;
            thinking.map(|thinking| thinking.word("type", &words)).transpose()?.flatten()
        }
        _ => fields.boolean("thinking")?,
    };
    switch = switch.or(fields.boolean("enable_thinking")?);
    Ok(match fields.value("think") {
        // Ollama has efforts here too.
        Some(Value::String(_)) => switch.or(effort(fields, "think")?.map(Thinking::is_on)),
        _ => switch.or(fields.boolean("think")?),
    })
}

/// Whose cache may be used: the key's, or, within that, the one that the client's `cache_salt`
/// names.
///
/// # Errors
/// A salt that is no string.
pub fn namespace(fields: &Fields<'_>, caller: &Caller) -> Result<Namespace, ApiError> {
    let salt = fields.string("cache_salt")?.filter(|salt| !salt.is_empty());
    Ok(salt.map_or(caller.namespace, |salt| salted(caller.namespace, salt)))
}

/// OpenAI's list of function tools in a field called `tools`.
///
/// # Errors
/// Something else, a tool of another type, or a name that no call could have.
pub fn tools(fields: &Fields<'_>) -> Result<Vec<Tool>, ApiError> {
    let list = fields.list("tools")?.unwrap_or_default();
    if list.len() > MOST_TOOLS {
        return Err(fields.error("tools", format!("has more than {MOST_TOOLS} entries")));
    }
    let mut tools = Vec::with_capacity(list.len());
    for (index, value) in list.iter().enumerate() {
        let path = format!("tools[{index}]");
        let tool: Tool = serde_json::from_value(value.clone())
            .map_err(|error| ApiError::field(&path, format!("{path}: {error}")))?;
        let function = Fields::of(value, &path)?.fields("function")?;
        if let Some(function) = &function {
            check_name(function, "name", tool.name())?;
            function.string("description")?;
            function.fields("parameters")?;
        }
        if tools.iter().any(|other: &Tool| other.name() == tool.name()) {
            let problem = "is the name of two tools";
            return Err(ApiError::field(
                format!("{path}.function.name"),
                format!("{path}.function.name: {problem}"),
            ));
        }
        tools.push(tool);
    }
    Ok(tools)
}

/// Refuses the name of a tool that the syntax of calls cannot hold.
///
/// # Errors
/// Names the field.
pub fn check_name(fields: &Fields<'_>, field: &str, name: &str) -> Result<(), ApiError> {
    let fits = (1..=LONGEST_NAME).contains(&name.chars().count());
    let strange = |character: char| character.is_control() || "\"<>｜".contains(character);
    if fits && !name.chars().any(strange) {
        return Ok(());
    }
    let problem = format!(
        "a tool's name has 1 to {LONGEST_NAME} characters and no quotes, angle brackets or \
         control characters"
    );
    Err(fields.error(field, problem))
}

/// Function tools by their place in the request and what the template shows of them.
///
/// # Errors
/// Names that no call could have, or that are given twice.
pub fn functions(functions: Vec<(usize, Map<String, Value>)>) -> Result<Vec<Tool>, ApiError> {
    let mut tools: Vec<Tool> = Vec::with_capacity(functions.len());
    for (index, function) in functions {
        let path = format!("tools[{index}]");
        if tools.len() == MOST_TOOLS {
            return Err(ApiError::field(
                "tools",
                format!("tools: has more than {MOST_TOOLS} entries"),
            ));
        }
        let function = Value::Object(function);
        let fields = Fields::of(&function, &path)?;
        fields.required("name")?;
        let name = fields.string("name")?.unwrap_or_default();
        check_name(&fields, "name", name)?;
        fields.string("description")?;
        if tools.iter().any(|other| other.name() == name) {
            return Err(fields.error("name", "is the name of two tools"));
        }
        let wire = json!({ "type": "function", "function": function });
        let tool = serde_json::from_value(wire);
        tools.push(tool.map_err(|error| ApiError::field(&path, format!("{path}: {error}")))?);
    }
    Ok(tools)
}

/// The choice of at least one call.
///
/// # Errors
/// There is nothing to call.
pub fn required_call(fields: &Fields<'_>, tools: &[Tool]) -> Result<ToolChoice, ApiError> {
    if tools.is_empty() {
        return Err(fields.error("tool_choice", "requires a call, but there are no tools"));
    }
    Ok(ToolChoice::Required)
}

/// The choice of the tool that a field called `name` names.
///
/// # Errors
/// There is none of that name.
pub fn named_call(choice: &Fields<'_>, tools: &[Tool]) -> Result<ToolChoice, ApiError> {
    choice.required("name")?;
    let name = choice.string("name")?.unwrap_or_default();
    if !tools.iter().any(|tool| tool.name() == name) {
        return Err(choice.error("name", "is none of the tools"));
    }
    Ok(ToolChoice::Named(name.to_owned()))
}

/// The tools that `mode` and `tools` of an `allowed_tools` choice allow: whether one of them must
/// be called, and their names.
///
/// # Errors
/// A function that is none of the tools, or a call that is required of nothing.
pub fn allowed_tools(
    allowed: &Fields<'_>,
    tools: &[Tool],
) -> Result<(ToolChoice, Vec<String>), ApiError> {
    let list = allowed.list("tools")?.unwrap_or_default();
    let mut names = Vec::with_capacity(list.len());
    for (index, entry) in list.iter().enumerate() {
        let entry = Fields::of(entry, &format!("{}[{index}]", allowed.path("tools")))?;
        // Others are tools that only OpenAI runs: they are passed over here as there.
        if entry.string("type")?.is_some_and(|kind| kind != "function") {
            continue;
        }
        // Chat completions wrap the name once more.
        let function = entry.fields("function")?;
        let function = function.as_ref().unwrap_or(&entry);
        function.required("name")?;
        let name = function.string("name")?.unwrap_or_default();
        if !tools.iter().any(|tool| tool.name() == name) {
            return Err(function.error("name", "is none of the tools"));
        }
        names.push(name.to_owned());
    }
    let required = allowed.word("mode", &[("auto", false), ("required", true)])?.unwrap_or(false);
    match (required, names.is_empty()) {
        (true, true) => Err(allowed.error("tools", "allows none, but a call is required")),
        (true, false) => Ok((ToolChoice::Required, names)),
        (false, _) => Ok((ToolChoice::Auto, names)),
    }
}
