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
    route("/loads", get(loads));
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

/// How busy the server is, as gateways ask SGLang (which has one entry for each of its ranks).
async fn loads(State(app): State<App>) -> Response {
    let service = app.service();
    let (stats, limits) = (service.stats(), service.limits());
    let used = stats.reserved_bytes.saturating_add(stats.kept_bytes);
    let usage = (used as f64 / limits.kv_bytes.max(1) as f64).min(1.0);
    let token = service.bytes_per_token().max(1);
    let known = stats.cached_memory_tokens + stats.cached_disk_tokens;
    let rate = |part: u64, whole: f64| if whole > 0.0 { part as f64 / whole } else { 0.0 };
    let load = json!({
        "dp_rank": 0,
        "num_running_reqs": stats.running,
        "num_waiting_reqs": stats.waiting,
        "num_total_reqs": stats.running + stats.waiting,
        "max_running_requests": limits.parallel,
        // Memory is counted in bytes here; these are the tokens of one long sequence.
        "num_used_tokens": used / token,
        "max_total_num_tokens": limits.kv_bytes / token,
        "token_usage": usage,
        "cache_hit_rate": rate(known, stats.prompt_tokens as f64),
        "gen_throughput": rate(stats.generated_tokens, stats.step_time.as_secs_f64()),
        "utilization": stats.running as f64 / limits.parallel.max(1) as f64,
    });
    let body = json!({ "timestamp": now(), "dp_rank_count": 1, "loads": [load] });
    JsonResponse(body).into_response()
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
