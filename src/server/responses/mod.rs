//! `POST /v1/responses` and `/v1/responses/input_tokens`: OpenAI's Responses dialect.
//!
//! Nothing is stored but for what the model wrote, for a while and in memory, so that clients can
//! refer to it by its item's id; a conversation is sent in full each time.

mod encode;
mod item;
mod kept;
mod request;
mod resource;

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::Json as JsonResponse;
use serde_json::json;

use super::app::{new_id, now, App, Caller, Route};
use super::body::Json;
use super::{sse, ApiError};
use encode::Items;
pub use kept::Kept;
use request::Asked;
use resource::Resource;

/// What the ids of calls begin with.
const CALL: &str = "call_";

/// Adds the paths.
pub(super) fn routes(route: &mut Route<'_>) {
    route("/responses", post(create));
    route("/responses/input_tokens", post(count));
}

async fn create(State(app): State<App>, caller: Caller, body: Json) -> Response {
    match answer(&app, &caller, &body).await {
        Ok(response) => response,
        Err(error) => caller.refuse(&blame_input(error)),
    }
}

/// The messages have another name here.
fn blame_input(mut error: ApiError) -> ApiError {
    if error.param.as_deref() == Some("messages") {
        error.param = Some("input".to_owned());
    }
    error
}

async fn answer(app: &App, caller: &Caller, body: &Json) -> Result<Response, ApiError> {
    let Asked { request, namespace, stream, echo } = Asked::read(&body.value, app, caller)?;
    let caller = Caller { namespace, ..caller.clone() };
    let answers = app.ask(&caller, &request, &body.memory, CALL).await?;
    let resource = Resource {
        id: new_id("resp_"),
        created: now(),
        tokenizer: Arc::clone(app.service().tokenizer()),
        kept: echo.store.then(|| (Arc::clone(&app.0.kept), namespace)),
        echo,
    };
    let mut items = Items::new(resource);
    if stream {
        return Ok(sse::respond(app, answers, items));
    }
    let whole = answers.whole().await?.into_iter().next().unwrap_or_default();
    Ok(JsonResponse(items.whole(whole)).into_response())
}

async fn count(State(app): State<App>, caller: Caller, body: Json) -> Response {
    let counted = async {
        let asked = Asked::read(&body.value, &app, &caller)?;
        let caller = Caller { namespace: asked.namespace, ..caller.clone() };
        Ok(app.prompt(&caller, &asked.request, &body.memory).await?.ids.len())
    };
    match counted.await {
        Ok(tokens) => {
            let body = json!({ "object": "response.input_tokens", "input_tokens": tokens });
            JsonResponse(body).into_response()
        }
        Err(error) => caller.refuse(&blame_input(error)),
    }
}

#[cfg(test)]
mod tests;
