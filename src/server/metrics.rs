//! Numbers for Prometheus, under vLLM's names where it has one, so that its dashboards, gateways
//! and autoscalers work unchanged.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{text::encode, DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::{Finish, Usage};
use crate::cache::store::Store;
use crate::engine::Service;

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
    /// Open connections.
    pub connections: Gauge,
    /// Threads that read what clients sent.
    pub readers: Gauge,
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
    /// Requests whose handler panicked.
    pub panics: Counter,
    /// Connections that were turned away because there were too many.
    pub turned_away: Counter,
}

impl Metrics {
    /// Nothing has happened yet.
    pub fn new(model: &str, service: &Service) -> Self {
        let mut registry = Registry::default();
        let metrics = Self {
            connections: Gauge::default(),
            readers: Gauge::default(),
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
        r.register_collector(Box::new(Engine { service: service.clone() }));
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
        let help = "Threads that read what clients sent";
        r.register("ds4_http_readers", help, m.readers.clone());
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

/// What the engine counts itself, asked for when somebody wants to know.
struct Engine {
    service: Service,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

impl Collector for Engine {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let stats = self.service.stats();
        let used = stats.reserved_bytes.saturating_add(stats.kept_bytes) as f64;
        let part = used / self.service.limits().kv_bytes.max(1) as f64;
        let limit = self.service.limits().kv_bytes as f64;
        let store = self.service.store().map(Store::stats);
        let mut gauges = vec![
            ("vllm:num_requests_waiting", "Answers that wait", stats.waiting as f64),
            ("vllm:num_requests_running", "Answers that are worked on", stats.running as f64),
            ("vllm:kv_cache_usage_perc", "Used part of the memory for sequences, 0 to 1", part),
            ("ds4_engine_paused", "Answers whose readers lag behind", stats.paused as f64),
            ("ds4_cache_limit_bytes", "Bytes that sequences may take in memory", limit),
            ("ds4_cache_reserved_bytes", "Bytes of running answers", stats.reserved_bytes as f64),
            ("ds4_cache_kept_bytes", "Bytes kept for prompts to come", stats.kept_bytes as f64),
            ("ds4_cache_frontiers", "Points prompts can start from", stats.frontiers as f64),
        ];
        let mut counters = vec![
            ("ds4_engine_jobs", "Answers that have ended", stats.ended as f64),
            ("ds4_engine_jobs_failed", "Answers that failed", stats.failed as f64),
            ("ds4_engine_jobs_cancelled", "Answers nobody waited for", stats.cancelled as f64),
            ("ds4_engine_steps", "Forward passes", stats.steps as f64),
            ("ds4_engine_step_tokens", "Tokens of forward passes", stats.step_tokens as f64),
            ("ds4_engine_step_seconds", "Time of forward passes", stats.step_time.as_secs_f64()),
            (
                "ds4_engine_prefix_waits",
                "Answers that waited for another's prefix",
                stats.prefix_waits as f64,
            ),
            (
                "ds4_cache_memory_hit_tokens",
                "Prompt tokens found in memory",
                stats.cached_memory_tokens as f64,
            ),
            (
                "ds4_cache_disk_hit_tokens",
                "Prompt tokens found on disk",
                stats.cached_disk_tokens as f64,
            ),
            ("ds4_cache_evicted", "Points dropped for lack of room", stats.evicted as f64),
        ];
        if let Some(store) = store {
            gauges.extend([
                ("ds4_store_bytes", "Bytes of usable files on disk", store.bytes as f64),
                ("ds4_store_pages", "Pages on disk", store.pages as f64),
                ("ds4_store_frontiers", "Points on disk to start from", store.frontiers as f64),
            ]);
            counters.extend([
                ("ds4_store_lookups", "Lookups on disk", store.lookups as f64),
                ("ds4_store_hits", "Lookups that found something", store.hits as f64),
                ("ds4_store_hit_tokens", "Tokens of states read", store.hit_tokens as f64),
                ("ds4_store_saves", "States written", store.saves as f64),
                ("ds4_store_saves_failed", "States the disk refused", store.saves_skipped as f64),
                (
                    "ds4_store_saves_skipped",
                    "States not written: the disk refused, or is slower than the engine",
                    stats.saves_skipped as f64,
                ),
                ("ds4_store_written_bytes", "Bytes written", store.bytes_written as f64),
                ("ds4_store_pages_written", "Pages written", store.pages_written as f64),
                ("ds4_store_pages_shared", "Pages there already", store.pages_shared as f64),
                ("ds4_store_evicted", "Points removed to make room", store.evicted as f64),
                ("ds4_store_quarantined", "Damaged files", store.quarantined as f64),
                ("ds4_store_read_errors", "Reads the system refused", store.read_errors as f64),
            ]);
        }
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            let kind = counter.metric_type();
            counter.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        Ok(())
    }
}
