//! What was measured, as a table, as words and as JSON.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{json, Value};

use super::rate;
use crate::model::Model;
use crate::ops::device::Class;

/// The columns of ds4-bench, and ours after them.
pub const COLUMNS: &str =
    "ctx_tokens,prefill_tokens,prefill_tps,gen_tokens,gen_tps,kvcache_bytes,gen_bandwidth_share";

/// Everything.
pub struct Report {
    pub device: String,
    pub batch: usize,
    /// Bytes that a copy reads and writes each second.
    pub copy_rate: f64,
    pub rows: Vec<Row>,
    pub profile: Vec<Class>,
}

/// One context.
#[derive(Clone, Debug)]
pub struct Row {
    /// Tokens from which decoding went on.
    pub ctx_tokens: usize,
    /// Of these, the ones read since the row before.
    pub prefill_tokens: usize,
    /// The time for them.
    pub prefill: Duration,
    /// How many sequences generated.
    pub sequences: usize,
    /// Tokens that each generated.
    pub gen_tokens: usize,
    /// The time for all of them.
    pub decode: Duration,
    /// Bytes of all sequences' caches.
    pub kvcache_bytes: usize,
    /// Bytes of weights and rows that a step had to read.
    pub step_bytes: u64,
}

impl Row {
    /// Tokens read per second.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prefill_tokens, self.prefill)
    }

    /// Tokens generated per second, by all sequences together.
    pub fn decode_rate(&self) -> f64 {
        rate(self.gen_tokens * self.sequences, self.decode)
    }

    /// Bytes that decoding had to read per second, as a share of what a copy moves.
    pub fn share(&self, copy_rate: f64) -> f64 {
        rate(self.gen_tokens, self.decode) * self.step_bytes as f64 / copy_rate
    }

    pub fn csv(&self, copy_rate: f64) -> String {
        format!(
            "{},{},{:.2},{},{:.2},{},{:.4}",
            self.ctx_tokens,
            self.prefill_tokens,
            self.prefill_rate(),
            self.gen_tokens,
            self.decode_rate(),
            self.kvcache_bytes,
            self.share(copy_rate)
        )
    }

    pub fn words(&self, copy_rate: f64) -> String {
        let of = match self.sequences {
            1 => String::new(),
            n => format!(" by {n} sequences"),
        };
        format!(
            "at {} tokens: {:.1} tok/s read, {:.1} tok/s generated{of} ({:.0} % of a copy's bandwidth)",
            self.ctx_tokens,
            self.prefill_rate(),
            self.decode_rate(),
            100.0 * self.share(copy_rate)
        )
    }
}

impl Report {
    pub fn new(model: &Model, batch: usize, copy_rate: f64) -> Self {
        let device = format!("{:?}", model.device().location());
        Self { device, batch, copy_rate, rows: Vec::new(), profile: Vec::new() }
    }

    pub fn json(&self, profiled_steps: usize) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "ctx_tokens": row.ctx_tokens,
                    "prefill_tokens": row.prefill_tokens,
                    "prefill_tps": row.prefill_rate(),
                    "gen_tokens": row.gen_tokens,
                    "gen_tps": row.decode_rate(),
                    "kvcache_bytes": row.kvcache_bytes,
                    "step_bytes": row.step_bytes,
                    "gen_bandwidth_share": row.share(self.copy_rate),
                })
            })
            .collect();
        let classes: Vec<Value> = self
            .profile
            .iter()
            .map(|class| {
                json!({
                    "name": class.name,
                    "calls": per(class.calls as f64, profiled_steps),
                    "us": per(class.time.as_secs_f64() * 1e6, profiled_steps),
                    "gb_s": bytes_per_second(class) / 1e9,
                })
            })
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "device": self.device,
            "batch": self.batch,
            "copy_gb_s": self.copy_rate / 1e9,
            "rows": rows,
            "profile": classes,
        })
    }

    /// One line for each class of launch of one step.
    pub fn profile_table(&self, steps: usize) -> String {
        let all: f64 = self.profile.iter().map(|class| class.time.as_secs_f64()).sum();
        let width = self.profile.iter().map(|class| class.name.len()).max().unwrap_or(0).max(5);
        let mut table = format!(
            "{:width$}  {:>5}  {:>10}  {:>6}  {:>8}\n",
            "class", "calls", "µs/step", "%", "GB/s"
        );
        for class in &self.profile {
            let seconds = class.time.as_secs_f64();
            let rate = match class.bytes {
                0 => "-".to_owned(),
                _ => format!("{:.1}", bytes_per_second(class) / 1e9),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "{:width$}  {:>5.0}  {:>10.1}  {:>6.1}  {rate:>8}",
                class.name,
                per(class.calls as f64, steps),
                per(seconds * 1e6, steps),
                100.0 * seconds / all.max(f64::MIN_POSITIVE),
            );
        }
        let _ = write!(table, "{:width$}  {:>5}  {:>10.1}", "all", "", per(all * 1e6, steps));
        table
    }
}

fn per(value: f64, steps: usize) -> f64 {
    value / steps.max(1) as f64
}

fn bytes_per_second(class: &Class) -> f64 {
    class.bytes as f64 / class.time.as_secs_f64().max(1e-9)
}
