//! `POST /v1/completions`: text that goes on where the prompt ends, without a template.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::Json as JsonResponse;
use serde_json::{json, Map, Value};

use super::app::{new_id, now, App, Caller, Route};
use super::body::Json;
use super::chat::{finish_reason, finite, usage};
use super::fields::Fields;
use super::sse::{self, Encode, Frames};
use super::{common, ApiError, Dialect, Event, Format, Input, Request, ToolChoice, Usage, Whole};
use crate::engine::{Namespace, TokenLogprob};
use crate::tokenizer::Tokenizer;

/// Tokens of an answer if the request does not say: OpenAI's number.
const DEFAULT_TOKENS: usize = 16;
/// Likeliest tokens that may be reported beside each chosen one.
const MOST_LOGPROBS: usize = 5;

/// Adds the paths.
pub(super) fn routes(route: &mut Route<'_>) {
    route("/completions", post(create));
}

async fn create(State(app): State<App>, caller: Caller, body: Json) -> Response {
    match answer(&app, &caller, &body).await {
        Ok(response) => response,
        Err(error) => caller.refuse(&blame_prompt(error)),
    }
}

/// The prompt has another name here.
fn blame_prompt(mut error: ApiError) -> ApiError {
    if error.param.as_deref() == Some("messages") {
        error.param = Some("prompt".to_owned());
    }
    error
}

async fn answer(app: &App, caller: &Caller, body: &Json) -> Result<Response, ApiError> {
    let tokenizer = app.service().tokenizer();
    let completion = Completion::read(&body.value, app, caller)?;
    let caller = Caller { namespace: completion.namespace, ..caller.clone() };
    let answers = app.ask(&caller, &completion.request, &body.memory, "call_").await?;
    let echo = match (&completion.request.input, completion.echo) {
        (Input::Text(text), true) => text.clone(),
        (Input::Tokens(ids), true) => tokenizer.decode(ids),
        _ => String::new(),
    };
    let head = Head {
        id: new_id("cmpl-"),
        created: now(),
        model: completion.model,
        fingerprint: app.0.fingerprint.clone(),
        tokenizer: Arc::clone(tokenizer),
        logprobs: completion.request.logprobs.is_some(),
    };
    if completion.stream {
        let pending = vec![Pending { echo, ..Pending::default() }; answers.count()];
        let include_usage = completion.include_usage;
        return Ok(sse::respond(app, answers, Chunks { head, include_usage, answers: pending }));
    }
    let wholes = answers.whole().await?;
    Ok(JsonResponse(head.whole(&echo, &wholes)).into_response())
}

/// A request for completions, read.
struct Completion {
    request: Request,
    model: String,
    namespace: Namespace,
    stream: bool,
    include_usage: bool,
    echo: bool,
}

impl Completion {
    fn read(body: &Value, app: &App, caller: &Caller) -> Result<Self, ApiError> {
        let fields = Fields::body(body)?;
        let model = common::model(&fields, app)?;
        let include_usage = match fields.fields("stream_options")? {
            Some(options) => options.boolean("include_usage")?.unwrap_or(false),
            None => false,
        };
        let echo = fields.boolean("echo")?.unwrap_or(false);
        let logprobs = fields.count("logprobs", 0, MOST_LOGPROBS)?;
        if echo && logprobs.is_some() {
            let problem = "cannot be had with echo: the prompt's tokens have no probabilities here";
            return Err(fields.error("logprobs", problem));
        }
        if fields.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            let problem = "DeepSeek V4 Flash writes on at the end, it does not fill in";
            return Err(fields.error("suffix", problem));
        }
        let most = app.0.settings.most_answers;
        let n = fields.count("n", 1, most)?.unwrap_or(1);
        if fields.count("best_of", 1, most)?.is_some_and(|best| best != n) {
            return Err(fields.error("best_of", "must be n: answers are not ranked here"));
        }
        let max_tokens = fields.count("max_tokens", 0, usize::MAX)?.unwrap_or(DEFAULT_TOKENS);
        let request = Request {
            input: prompt(&fields, app.service().tokenizer().vocab_size())?,
            sampling: common::sampling(&fields, app)?,
            max_tokens: Some(max_tokens),
            stop: common::stop(&fields, "stop")?,
            n,
            logprobs,
            allowed_tools: None,
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            format: Format::Text,
        };
        Ok(Self {
            request,
            model: model.name,
            namespace: common::namespace(&fields, caller)?,
            stream: fields.boolean("stream")?.unwrap_or(false),
            include_usage,
            echo,
        })
    }
}

/// A text, a list of ids, or a list of one of these.
fn prompt(fields: &Fields<'_>, vocabulary: usize) -> Result<Input, ApiError> {
    let wrong = || {
        let problem = format!("must be one text, or one list of token ids below {vocabulary}");
        fields.error("prompt", problem)
    };
    let mut value = fields.required("prompt")?;
    if let Value::Array(list) = value {
        match list.as_slice() {
            [one @ (Value::String(_) | Value::Array(_))] => value = one,
            [Value::String(_) | Value::Array(_), ..] => {
                let problem = "has several prompts: send one request for each";
                return Err(fields.error("prompt", problem));
            }
            _ => {}
        }
    }
    match value {
        Value::String(text) => Ok(Input::Text(text.clone())),
        Value::Array(ids) => {
            let id = |id: &Value| {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                id.filter(|id| (*id as usize) < vocabulary).ok_or_else(wrong)
            };
            Ok(Input::Tokens(ids.iter().map(id).collect::<Result<_, _>>()?))
        }
        _ => Err(wrong()),
    }
}

/// What all objects of one response have in common.
struct Head {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    tokenizer: Arc<Tokenizer>,
    logprobs: bool,
}

impl Head {
    fn object(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }

    fn whole(&self, echo: &str, answers: &[Whole]) -> Value {
        let choices = answers.iter().enumerate().map(|(index, answer)| {
            let finish = answer.end.as_ref().map(|end| finish_reason(&end.finish));
            let mut offset = echo.chars().count();
            let logprobs = match self.logprobs {
                true => logprobs(&self.tokenizer, &answer.logprobs, &mut offset),
                false => Value::Null,
            };
            json!({
                "index": index,
                "text": format!("{echo}{}", answer.text),
                "logprobs": logprobs,
                "finish_reason": finish,
            })
        });
        let choices: Vec<Value> = choices.collect();
        let mut object = self.object(choices.into());
        let usages: Vec<Usage> = answers.iter().map(|answer| answer.usage).collect();
        object["usage"] = usage(&usages);
        object
    }
}

/// Probabilities of tokens; `offset` counts the characters before them.
fn logprobs(
    tokenizer: &Tokenizer,
    tokens: &[(TokenLogprob, Vec<TokenLogprob>)],
    offset: &mut usize,
) -> Value {
    let (mut texts, mut chosen, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for (token, top) in tokens {
        let bytes = tokenizer.token_bytes(token.token).unwrap_or_default();
        offsets.push(*offset);
        // A character counts where it begins, if it is spread over several tokens.
        *offset += bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
        texts.push(spelled(bytes));
        chosen.push(finite(token.logprob));
        let top = top.iter().map(|other| {
            let bytes = tokenizer.token_bytes(other.token).unwrap_or_default();
            (spelled(bytes), finite(other.logprob))
        });
        tops.push(Value::Object(top.collect::<Map<String, Value>>()));
    }
    json!({
        "tokens": texts, "token_logprobs": chosen, "top_logprobs": tops, "text_offset": offsets,
    })
}

/// The text of a token; a part of a character as OpenAI spells it.
fn spelled(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let bytes: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{bytes}")
        }
    }
}

/// Chunks.
struct Chunks {
    head: Head,
    include_usage: bool,
    answers: Vec<Pending>,
}

/// What is to be told of an answer with the next text.
#[derive(Clone, Default)]
struct Pending {
    echo: String,
    logprobs: Option<Value>,
    offset: usize,
    usage: Usage,
}

impl Chunks {
    fn chunk(&mut self, answer: usize, text: &str, finish: Option<&str>, frames: &mut Frames) {
        let logprobs = self.answers.get_mut(answer).and_then(|answer| answer.logprobs.take());
        let choice = json!({
            "index": answer, "text": text, "logprobs": logprobs, "finish_reason": finish,
        });
        let mut chunk = self.head.object(json!([choice]));
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        frames.data(&chunk);
    }
}

impl Encode for Chunks {
    fn event(&mut self, answer: usize, event: Event, frames: &mut Frames) {
        let Some(pending) = self.answers.get_mut(answer) else { return };
        match event {
            Event::Begin(_) => {
                let echo = std::mem::take(&mut pending.echo);
                pending.offset = echo.chars().count();
                if !echo.is_empty() {
                    self.chunk(answer, &echo, None, frames);
                }
            }
            Event::Logprobs(tokens) => {
                let tokenizer = &self.head.tokenizer;
                pending.logprobs = Some(logprobs(tokenizer, &tokens, &mut pending.offset));
            }
            Event::Text(text) => self.chunk(answer, &text, None, frames),
            Event::End(end) => {
                pending.usage = end.usage;
                self.chunk(answer, "", Some(finish_reason(&end.finish)), frames);
            }
            // A text without a template has no reasoning and no calls.
            _ => {}
        }
    }

    fn error(&mut self, error: &ApiError, frames: &mut Frames) {
        frames.data(&error.body(Dialect::OpenAi, ""));
    }

    fn close(&mut self, frames: &mut Frames) {
        if self.include_usage {
            let mut chunk = self.head.object(json!([]));
            let usages: Vec<Usage> = self.answers.iter().map(|answer| answer.usage).collect();
            chunk["usage"] = usage(&usages);
            frames.data(&chunk);
        }
        frames.done();
    }
}
