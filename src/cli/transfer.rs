//! How a download looks: a bar, a line now and then, or JSON.

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::hub::{Event, Selection};
use crate::size::Size;

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Time between two progress events in JSON.
const JSON_EVERY: Duration = Duration::from_secs(1);

/// Shows events. JSON goes to the output, everything else to standard error.
pub(super) struct Display<'a> {
    kind: Kind,
    out: &'a mut dyn Write,
    pace: Pace,
    /// The first failure to write, told at the end.
    failed: Option<std::io::Error>,
}

enum Kind {
    Bar(Option<ProgressBar>),
    Lines,
    Json,
}

/// Rate since the last thing shown.
#[derive(Default)]
struct Pace {
    last: Option<(Instant, u64)>,
}

impl Pace {
    /// Bytes a second since the last call that gave a number; nothing until `every` has passed.
    fn tick(&mut self, now: Instant, done: u64, every: Duration) -> Option<f64> {
        let Some((then, before)) = self.last else {
            self.last = Some((now, done));
            return None;
        };
        let passed = now.saturating_duration_since(then);
        if passed < every {
            return None;
        }
        self.last = Some((now, done));
        Some(done.saturating_sub(before) as f64 / passed.as_secs_f64())
    }
}

impl<'a> Display<'a> {
    /// For a terminal on standard error or for none, or as JSON on `out`.
    pub fn new(json: bool, terminal: bool, out: &'a mut dyn Write) -> Self {
        let kind = match (json, terminal) {
            (true, _) => Kind::Json,
            (_, true) => Kind::Bar(None),
            _ => Kind::Lines,
        };
        Self { kind, out, pace: Pace::default(), failed: None }
    }

    /// The file to be fetched is known.
    pub fn selected(&mut self, selection: &Selection) -> std::io::Result<()> {
        let Kind::Json = self.kind else { return Ok(()) };
        let event = json!({
            "event": "selected",
            "repo": selection.repo.as_str(),
            "revision": selection.revision,
            "commit": selection.commit,
            "file": selection.file.path,
            "size": selection.file.size,
            "sha256": selection.file.sha256,
            "older": selection.older,
        });
        writeln!(self.out, "{event}")
    }

    /// Shows one event.
    pub fn event(&mut self, event: &Event) {
        match (&mut self.kind, event) {
            (Kind::Json, event) => self.json(event),
            (Kind::Bar(bar), Event::Progress { done, verified, total }) => {
                let bar = bar.get_or_insert_with(|| new_bar(*done, *total));
                bar.set_position(*done);
                if done == total && verified < total {
                    let percent = verified.saturating_mul(100) / (*total).max(1);
                    bar.set_message(format!("checking {percent} %"));
                }
            }
            (Kind::Lines, Event::Progress { done, verified, total }) => {
                if let Some(rate) = self.pace.tick(Instant::now(), *done, LINE_EVERY) {
                    eprintln!("{}", line(*done, *verified, *total, rate));
                }
            }
            (Kind::Bar(Some(bar)), other) => bar.println(words(other)),
            (_, other) => eprintln!("{}", words(other)),
        }
    }

    fn json(&mut self, event: &Event) {
        let value = match event {
            Event::Progress { done, verified, total } => {
                let rate = self.pace.tick(Instant::now(), *done, JSON_EVERY);
                let Some(rate) = rate.or((verified == total).then_some(0.0)) else { return };
                json!({
                    "event": "progress",
                    "done": done,
                    "verified": verified,
                    "total": total,
                    "bytes_per_second": rate as u64,
                    "eta_seconds": eta(*done, *total, rate).map(|eta| eta.as_secs()),
                })
            }
            Event::Waiting { lock } => json!({"event": "waiting", "lock": lock}),
            Event::Resuming { done, total } => {
                json!({"event": "resuming", "done": done, "total": total})
            }
            Event::Retrying { url, reason, wait } => json!({
                "event": "retrying",
                "url": url,
                "reason": reason,
                "wait_seconds": wait.as_secs_f64(),
            }),
            Event::Rejected { pieces } => json!({"event": "rejected", "pieces": pieces}),
        };
        // A reader that sees each event at once is what the option is for.
        let written = writeln!(self.out, "{value}").and_then(|()| self.out.flush());
        if let Err(error) = written {
            self.failed.get_or_insert(error);
        }
    }

    /// Ends the bar.
    ///
    /// # Errors
    /// An event could not be written.
    pub fn finish(self) -> std::io::Result<()> {
        if let Kind::Bar(Some(bar)) = self.kind {
            bar.finish_with_message("done");
        }
        self.failed.map_or(Ok(()), Err)
    }
}

fn new_bar(done: u64, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
    let template = "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta} {msg}";
    // A template that the library does not read leaves its own default.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    // What an earlier run fetched is no part of this one's rate.
    let bar = bar.with_position(done);
    bar.reset_eta();
    bar
}

fn line(done: u64, verified: u64, total: u64, rate: f64) -> String {
    let percent = |part: u64| part as f64 * 100.0 / total.max(1) as f64;
    if done == total {
        return format!("checking {:.1} % of {}", percent(verified), Size(total));
    }
    let eta = eta(done, total, rate).map_or("unknown".to_string(), |eta| {
        let minutes = eta.as_secs().div_ceil(60);
        format!("{} h {:02} min", minutes / 60, minutes % 60)
    });
    format!(
        "{} of {} ({:.1} %), {}/s, ETA {eta}",
        Size(done),
        Size(total),
        percent(done),
        Size(rate as u64)
    )
}

/// Time left at this rate; nothing when nothing moves.
fn eta(done: u64, total: u64, rate: f64) -> Option<Duration> {
    let seconds = total.saturating_sub(done) as f64 / rate;
    Duration::try_from_secs_f64(seconds).ok()
}

fn words(event: &Event) -> String {
    match event {
        Event::Waiting { lock } => {
            format!("another process is fetching the same file; waiting for {}", lock.display())
        }
        Event::Resuming { done, total } => {
            format!("going on at {} of {}", Size(*done), Size(*total))
        }
        Event::Retrying { url, reason, wait } => {
            format!("{url}: {reason}; trying again in {:.1} s", wait.as_secs_f64())
        }
        Event::Rejected { pieces } => {
            format!("{pieces} pieces were not on the disk as recorded; fetching them again")
        }
        Event::Progress { done, total, .. } => format!("{} of {}", Size(*done), Size(*total)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_rate_and_time_left() {
        let line = line(20 << 30, 19 << 30, 80 << 30, (100 << 20) as f64);
        assert_eq!(line, "20.0 GiB of 80.0 GiB (25.0 %), 100.0 MiB/s, ETA 0 h 11 min");
        assert!(super::line(0, 0, 10, 0.0).ends_with("ETA unknown"));
        assert_eq!(super::line(10, 5, 10, 0.0), "checking 50.0 % of 10 B");
    }

    #[test]
    fn the_rate_is_that_since_the_last_line() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let after = |s| start + Duration::from_secs(s);
        assert_eq!(pace.tick(start, 5_000, LINE_EVERY), None, "bytes found are no rate");
        assert_eq!(pace.tick(after(9), 6_000, LINE_EVERY), None);
        assert_eq!(pace.tick(after(10), 15_000, LINE_EVERY), Some(1_000.0));
        assert_eq!(pace.tick(after(20), 15_000, LINE_EVERY), Some(0.0));
    }

    #[test]
    fn every_json_line_is_an_object_with_an_event() {
        let mut out = Vec::new();
        let mut display = Display::new(true, true, &mut out);
        let (done, total) = (1, 2);
        for event in [
            Event::Resuming { done, total },
            Event::Progress { done, verified: 1, total },
            Event::Progress { done: 2, verified: 2, total },
            Event::Rejected { pieces: 1 },
        ] {
            display.event(&event);
        }
        display.finish().unwrap();
        let events: Vec<String> = String::from_utf8(out)
            .unwrap()
            .lines()
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                value["event"].as_str().unwrap().to_string()
            })
            .collect();
        assert_eq!(events, ["resuming", "progress", "rejected"]);
    }
}
