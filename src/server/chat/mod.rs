//! `POST /v1/chat/completions`: OpenAI's chat dialect, with DeepSeek's additions.

pub(super) mod encode;
mod request;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::Json as JsonResponse;

use super::app::{new_id, now, App, Caller, Route};
use super::body::Json;
use super::{sse, ApiError};
use encode::{whole, Chunks, Head};
pub(super) use request::Chat;

pub(super) use encode::{finish_reason, finite, usage};

/// What the ids of calls begin with.
const CALL: &str = "call_";

/// Adds the paths.
pub(super) fn routes(route: &mut Route<'_>) {
    route("/chat/completions", post(create));
}

async fn create(State(app): State<App>, caller: Caller, body: Json) -> Response {
    match answer(&app, &caller, &body).await {
        Ok(response) => response,
        Err(error) => caller.refuse(&error),
    }
}

async fn answer(app: &App, caller: &Caller, body: &Json) -> Result<Response, ApiError> {
    let chat = Chat::read(&body.value, app, caller)?;
    let caller = Caller { namespace: chat.namespace, ..caller.clone() };
    let answers = app.ask(&caller, &chat.request, &body.memory, CALL).await?;
    let head = Head {
        id: new_id("chatcmpl-"),
        created: now(),
        model: chat.model,
        fingerprint: app.0.fingerprint.clone(),
        tokenizer: app.service().tokenizer().clone(),
        logprobs: chat.request.logprobs.is_some(),
    };
    if chat.stream {
        let chunks = Chunks::new(head, answers.count(), chat.include_usage);
        return Ok(sse::respond(app, answers, chunks));
    }
    let wholes = answers.whole().await?;
    Ok(JsonResponse(whole(&head, &wholes)).into_response())
}
