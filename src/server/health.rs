//! How the server is: for load balancers, Prometheus and people.

use axum::extract::State;
use axum::http::{header, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::Json as JsonResponse;
use serde_json::json;

use super::app::{now, App, Caller, Route};
use super::{ApiError, Kind};

/// Adds the paths.
pub(super) fn routes(route: &mut Route<'_>) {
    route("/health", get(health));
    route("/metrics", get(metrics));
    route("/version", get(version));
    route("/server_info", get(server_info));
}

async fn health(State(app): State<App>) -> Response {
    let inner = &app.0;
    let (status, word) = match *inner.draining.borrow() {
        true => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        false => (StatusCode::OK, "ok"),
    };
    let stats = app.service().stats();
    let body = json!({
        "status": word,
        "running": stats.running,
        "waiting": stats.waiting,
    });
    (status, JsonResponse(body)).into_response()
}

async fn metrics(State(app): State<App>, caller: Caller) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match app.0.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(error) => caller.refuse(&ApiError::new(Kind::Server, error.to_string())),
    }
}

async fn version() -> Response {
    let version = env!("CARGO_PKG_VERSION");
    JsonResponse(json!({ "version": version, "name": "candle-ds4" })).into_response()
}

async fn server_info(State(app): State<App>) -> Response {
    let inner = &app.0;
    let config = app.service().config();
    JsonResponse(json!({
        "model": inner.settings.model,
        "model_path": inner.settings.model,
        "version": env!("CARGO_PKG_VERSION"),
        "context_length": app.service().context(),
        "max_model_len": app.service().context(),
        "max_running_requests": app.service().limits().parallel,
        "model_context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "system_fingerprint": inner.fingerprint,
        "uptime_seconds": now().saturating_sub(inner.created),
    }))
    .into_response()
}
