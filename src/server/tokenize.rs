//! `POST /tokenize` and `POST /detokenize`, in the shapes of llama.cpp and vLLM at once.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::Json as JsonResponse;
use serde_json::{json, Value};

use super::app::{App, Caller, Route};
use super::body::Json;
use super::chat::Chat;
use super::fields::Fields;
use super::ApiError;

/// Adds the paths.
pub(super) fn routes(route: &mut Route<'_>) {
    route("/tokenize", post(tokenize));
    route("/detokenize", post(detokenize));
}

async fn tokenize(State(app): State<App>, caller: Caller, body: Json) -> Response {
    match ids(&app, &caller, &body).await {
        Ok(value) => JsonResponse(value).into_response(),
        Err(error) => caller.refuse(&error),
    }
}

async fn ids(app: &App, caller: &Caller, body: &Json) -> Result<Value, ApiError> {
    let fields = Fields::body(&body.value)?;
    let tokenizer = app.service().tokenizer();
    // llama.cpp's field is a text as it stands, vLLM's a prompt as it is completed.
    let (text, special) = match (fields.string("content")?, fields.string("prompt")?) {
        (Some(text), _) => (Some(text), false),
        (None, text) => (text, true),
    };
    let ids = match text {
        Some(text) => {
            let given = fields.boolean("add_special")?.or(fields.boolean("add_special_tokens")?);
            let bos = given.unwrap_or(special).then_some(tokenizer.control().bos);
            let (tokenizer, text) = (tokenizer.clone(), text.to_owned());
            let reading = app.0.readers.read(&body.memory, move || {
                let mut ids: Vec<u32> = bos.into_iter().collect();
                tokenizer.encode_into(&text, &mut ids);
                ids
            });
            reading.await?
        }
        None if fields.value("messages").is_some() => {
            let chat = Chat::read(&body.value, app, caller)?;
            let caller = Caller { namespace: chat.namespace, ..caller.clone() };
            app.prompt(&caller, &chat.request, &body.memory).await?.ids
        }
        None => {
            let problem = "is missing: give content, prompt or messages";
            return Err(fields.error("content", problem));
        }
    };
    let piece = |id: &u32| {
        let bytes = tokenizer.token_bytes(*id).unwrap_or_default();
        match std::str::from_utf8(bytes) {
            Ok(text) => Value::from(text),
            Err(_) => Value::from(bytes),
        }
    };
    let mut answer = json!({ "count": ids.len(), "max_model_len": app.service().context() });
    if fields.boolean("with_pieces")?.unwrap_or(false) {
        let tokens = ids.iter().map(|id| json!({ "id": id, "piece": piece(id) }));
        answer["tokens"] = tokens.collect::<Vec<Value>>().into();
    } else {
        answer["tokens"] = ids.clone().into();
    }
    if fields.boolean("return_token_strs")?.unwrap_or(false) {
        let texts = ids.iter().map(|id| {
            String::from_utf8_lossy(tokenizer.token_bytes(*id).unwrap_or_default()).into_owned()
        });
        answer["token_strs"] = texts.collect::<Vec<String>>().into();
    }
    Ok(answer)
}

async fn detokenize(State(app): State<App>, caller: Caller, body: Json) -> Response {
    let inner = app.clone();
    let reading = app.0.readers.read(&body.memory, move || text(&inner, &body.value));
    match reading.await.flatten() {
        Ok(text) => JsonResponse(json!({ "content": text, "prompt": text })).into_response(),
        Err(error) => caller.refuse(&error),
    }
}

fn text(app: &App, body: &Value) -> Result<String, ApiError> {
    let fields = Fields::body(body)?;
    let tokenizer = app.service().tokenizer();
    let vocabulary = tokenizer.vocab_size();
    fields.required("tokens")?;
    let mut ids = Vec::new();
    for id in fields.list("tokens")?.unwrap_or_default() {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        match id.filter(|id| (*id as usize) < vocabulary) {
            Some(id) => ids.push(id),
            None => {
                let problem = format!("must be a list of token ids below {vocabulary}");
                return Err(fields.error("tokens", problem));
            }
        }
    }
    Ok(tokenizer.decode(&ids))
}
