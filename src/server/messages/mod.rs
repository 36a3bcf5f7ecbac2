//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's dialect.

mod encode;
mod request;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::Json as JsonResponse;
use serde_json::json;

use super::app::{new_id, App, Caller, Route};
use super::body::Json;
use super::{sse, ApiError};
use encode::{whole, Blocks, Head};
use request::Asked;

/// What the ids of calls begin with.
const CALL: &str = "toolu_";

/// Adds the paths.
pub(super) fn routes(route: &mut Route<'_>) {
    route("/messages", post(create));
    route("/messages/count_tokens", post(count));
}

async fn create(State(app): State<App>, caller: Caller, body: Json) -> Response {
    match answer(&app, &caller, &body).await {
        Ok(response) => response,
        Err(error) => caller.refuse(&error),
    }
}

async fn answer(app: &App, caller: &Caller, body: &Json) -> Result<Response, ApiError> {
    let asked = Asked::read(&body.value, app, caller, true)?;
    let caller = Caller { namespace: asked.namespace, ..caller.clone() };
    let answers = app.ask(&caller, &asked.request, &body.memory, CALL).await?;
    let head = Head {
        id: new_id("msg_"),
        model: asked.model,
        request_id: caller.request_id,
        shows_reasoning: asked.shows_reasoning,
    };
    if asked.stream {
        return Ok(sse::respond(app, answers, Blocks::new(head)));
    }
    let answer = answers.whole().await?.into_iter().next().unwrap_or_default();
    Ok(JsonResponse(whole(&head, &answer)).into_response())
}

async fn count(State(app): State<App>, caller: Caller, body: Json) -> Response {
    let counted = async {
        let asked = Asked::read(&body.value, &app, &caller, false)?;
        let caller = Caller { namespace: asked.namespace, ..caller.clone() };
        Ok(app.prompt(&caller, &asked.request, &body.memory).await?.ids.len())
    };
    match counted.await {
        Ok(tokens) => JsonResponse(json!({ "input_tokens": tokens })).into_response(),
        Err(error) => caller.refuse(&error),
    }
}

#[cfg(test)]
mod tests;
