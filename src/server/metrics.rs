//! Numbers for Prometheus, under vLLM's names where it has one, so that its dashboards, gateways
//! and autoscalers work unchanged.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{text::encode, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::{Finish, Usage};

/// Seconds to the first token: from a cached prompt on a GPU to a long one on a CPU.
const FIRST_TOKEN: [f64; 18] = [
    0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
];
/// Seconds between tokens.
const BETWEEN_TOKENS: [f64; 14] =
    [0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.2, 0.4, 1.0, 2.5, 10.0];
/// Seconds of an answer.
const WHOLE: [f64; 14] =
    [0.1, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 480.0, 1920.0, 7680.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FinishLabel {
    finished_reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabel {
    route: String,
    method: String,
    status: u16,
}

/// What is counted.
pub struct Metrics {
    registry: Registry,
    /// Answers whose prompt has not begun to be read.
    pub waiting: Gauge,
    /// Answers that are being worked on.
    pub running: Gauge,
    /// Open connections.
    pub connections: Gauge,
    prompt: Counter,
    generated: Counter,
    reasoning: Counter,
    queried: Counter,
    hits: Counter,
    finished: Family<FinishLabel, Counter>,
    requests: Family<RequestLabel, Counter>,
    first_token: Histogram,
    between_tokens: Histogram,
    whole: Histogram,
    kv_usage: Gauge<f64, AtomicU64>,
    /// Requests whose handler panicked.
    pub panics: Counter,
    /// Connections that were turned away because there were too many.
    pub turned_away: Counter,
}

impl Metrics {
    /// Nothing has happened yet.
    pub fn new(model: &str) -> Self {
        let mut registry = Registry::default();
        let metrics = Self {
            waiting: Gauge::default(),
            running: Gauge::default(),
            connections: Gauge::default(),
            prompt: Counter::default(),
            generated: Counter::default(),
            reasoning: Counter::default(),
            queried: Counter::default(),
            hits: Counter::default(),
            finished: Family::default(),
            requests: Family::default(),
            first_token: Histogram::new(FIRST_TOKEN),
            between_tokens: Histogram::new(BETWEEN_TOKENS),
            whole: Histogram::new(WHOLE),
            kv_usage: Gauge::default(),
            panics: Counter::default(),
            turned_away: Counter::default(),
            registry: Registry::default(),
        };
        let build = Info::new(vec![
            ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("model".to_owned(), model.to_owned()),
        ]);
        registry.register("ds4_build", "The program and its model", build);
        let m = &metrics;
        let label = ("model_name".into(), model.to_owned().into());
        let r = registry.sub_registry_with_label(label);
        r.register("vllm:num_requests_waiting", "Answers waiting", m.waiting.clone());
        r.register("vllm:num_requests_running", "Answers running", m.running.clone());
        r.register(
            "vllm:kv_cache_usage_perc",
            "Used part of the cache, 0 to 1",
            m.kv_usage.clone(),
        );
        r.register("vllm:prompt_tokens", "Prompt tokens", m.prompt.clone());
        r.register("vllm:generation_tokens", "Generated tokens", m.generated.clone());
        r.register("vllm:prefix_cache_queries", "Prompt tokens looked up", m.queried.clone());
        r.register("vllm:prefix_cache_hits", "Prompt tokens found in a cache", m.hits.clone());
        r.register("vllm:request_success", "Answers that ended", m.finished.clone());
        let help = "Seconds from a request to its first token";
        r.register("vllm:time_to_first_token_seconds", help, m.first_token.clone());
        let help = "Seconds between tokens";
        r.register("vllm:inter_token_latency_seconds", help, m.between_tokens.clone());
        let help = "Seconds from a request to its last token";
        r.register("vllm:e2e_request_latency_seconds", help, m.whole.clone());
        r.register("ds4_reasoning_tokens", "Generated tokens of reasoning", m.reasoning.clone());
        r.register("ds4_http_requests", "HTTP requests answered", m.requests.clone());
        r.register("ds4_http_connections", "Open connections", m.connections.clone());
        r.register("ds4_http_panics", "Requests whose handler panicked", m.panics.clone());
        let help = "Connections turned away, being too many";
        r.register("ds4_http_turned_away", help, m.turned_away.clone());
        Self { registry, ..metrics }
    }

    /// A request was answered.
    pub fn request(&self, route: &str, method: &str, status: u16) {
        let label = RequestLabel { route: route.to_owned(), method: method.to_owned(), status };
        self.requests.get_or_create(&label).inc();
    }

    /// The prompt of an answer was read.
    pub fn prefilled(&self, usage: Usage) {
        self.prompt.inc_by(usage.prompt as u64);
        self.queried.inc_by(usage.prompt as u64);
        self.hits.inc_by(usage.cached as u64);
    }

    /// The first token came this long after the request.
    pub fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// A token came this long after the one before.
    pub fn next_token(&self, after: Duration) {
        self.between_tokens.observe(after.as_secs_f64());
    }

    /// An answer ended; without a finish, it was broken off or failed.
    pub fn ended(&self, finish: Option<&Finish>, usage: Usage, after: Duration) {
        self.generated.inc_by(usage.completion as u64);
        self.reasoning.inc_by(usage.reasoning as u64);
        let finished_reason = match finish {
            Some(Finish::Stop | Finish::StopText(_)) => "stop",
            Some(Finish::Length | Finish::Context) => "length",
            Some(Finish::ToolCalls) => "tool_calls",
            None => "abort",
        };
        self.finished.get_or_create(&FinishLabel { finished_reason }).inc();
        if finish.is_some() {
            self.whole.observe(after.as_secs_f64());
        }
    }

    /// The used part of the memory for caches, 0 to 1.
    pub fn kv_usage(&self, part: f64) {
        self.kv_usage.set(part);
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// None that a string can have.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
