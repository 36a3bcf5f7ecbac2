//! How far a long job is: a bar on a terminal, a line every ten seconds elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Between two lines where there is no terminal.
const PAUSE: Duration = Duration::from_secs(10);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes written.
    Bytes,
    /// Tokens read.
    Tokens,
}

/// A job's progress on standard error.
pub struct Meter {
    bar: ProgressBar,
    terminal: bool,
    unit: Unit,
    began: Instant,
    said: Instant,
    /// What was done before this job began.
    before: Option<u64>,
}

impl Meter {
    /// Nothing done yet. `terminal` says whether standard error is one.
    pub fn begin(unit: Unit, terminal: bool) -> Self {
        let bar = ProgressBar::hidden();
        let template = match unit {
            Unit::Bytes => "{bar:24} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left, {msg}",
            Unit::Tokens => "{bar:24} {pos}/{len} tokens, {per_sec}, {eta} left",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        if terminal {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        let now = Instant::now();
        Self { bar, terminal, unit, began: now, said: now, before: None }
    }

    /// So much of so much is done, and this is in work.
    pub fn set(&mut self, done: u64, total: u64, what: &str) {
        if self.before.is_none() {
            // What an earlier run has done says nothing about the speed of this one.
            self.before = Some(done);
            self.bar.set_length(total);
            self.bar.set_position(done);
            self.bar.reset_eta();
        }
        self.bar.set_message(what.to_owned());
        self.bar.set_position(done);
        if !self.terminal && self.said.elapsed() >= PAUSE {
            self.said = Instant::now();
            eprintln!("{}", self.line(done, total, what, self.began.elapsed()));
        }
    }

    /// One line about the state.
    fn line(&self, done: u64, total: u64, what: &str, since: Duration) -> String {
        let seconds = since.as_secs_f64().max(1e-3);
        let rate = done.saturating_sub(self.before.unwrap_or(0)) as f64 / seconds;
        let percent = 100.0 * done as f64 / total.max(1) as f64;
        let left = total.saturating_sub(done) as f64 / rate.max(1e-9);
        let (rate, unit) = match self.unit {
            Unit::Bytes => (rate / 1e6, "MB/s"),
            Unit::Tokens => (rate, "tokens/s"),
        };
        let left = if left < 1e8 { format!("{left:.0} s left") } else { "stalled".to_owned() };
        let what = if what.is_empty() { String::new() } else { format!(", {what}") };
        format!("{percent:.1} %, {rate:.1} {unit}, {left}{what}")
    }

    /// Wipes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_only_what_this_run_has_done() {
        let mut meter = Meter::begin(Unit::Bytes, false);
        meter.set(400_000_000, 1_000_000_000, "a");
        let line = meter.line(500_000_000, 1_000_000_000, "blk.3", Duration::from_secs(10));
        assert_eq!(line, "50.0 %, 10.0 MB/s, 50 s left, blk.3");
        let line = meter.line(400_000_000, 1_000_000_000, "", Duration::from_secs(10));
        assert_eq!(line, "40.0 %, 0.0 MB/s, stalled");
    }
}
