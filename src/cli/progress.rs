//! How far the prompt is: a bar that appears if it takes a while, and vanishes when it is done.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Waiting that needs no explanation.
const PATIENCE: Duration = Duration::from_millis(300);
/// Between two redraws without news: the time that is left goes on.
const TICK: Duration = Duration::from_millis(500);

/// A bar on standard error.
pub struct PrefillBar {
    bar: ProgressBar,
    /// Dropped to end the wait for [`PATIENCE`].
    wait: Option<mpsc::Sender<()>>,
    waiter: Option<JoinHandle<()>>,
}

impl PrefillBar {
    /// A bar that nobody sees yet; or ever, if it is not `wanted`.
    pub fn begin(wanted: bool) -> Self {
        let bar = ProgressBar::hidden();
        if let Ok(style) =
            ProgressStyle::with_template("reading {bar:30} {pos}/{len} tokens, {eta} left")
        {
            bar.set_style(style.progress_chars("━╸─"));
        }
        let (wait, waited) = mpsc::channel::<()>();
        let waiter = wanted.then(|| {
            let bar = bar.clone();
            std::thread::spawn(move || {
                if waited.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                    bar.enable_steady_tick(TICK);
                }
            })
        });
        Self { bar, wait: Some(wait), waiter }
    }

    /// `done` of `total` tokens are known.
    pub fn set(&self, done: usize, total: usize) {
        if self.bar.length() != Some(total as u64) {
            self.bar.set_length(total as u64);
            // What was known from the start says nothing about the speed.
            self.bar.set_position(done as u64);
            self.bar.reset_eta();
        } else {
            self.bar.set_position(done as u64);
        }
    }

    /// Wipes the bar.
    pub fn finish(&mut self) {
        self.wait = None;
        if let Some(waiter) = self.waiter.take() {
            // It cannot fail but by a panic, which has been reported then.
            let _ = waiter.join();
            self.bar.finish_and_clear();
        }
    }
}

impl Drop for PrefillBar {
    fn drop(&mut self) {
        self.finish();
    }
}
