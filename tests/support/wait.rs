//! Waiting for what must come, however slow the machine is.

use std::time::{Duration, Instant};

/// Longer than anything that works takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until something is so; `what` is said when it never is.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "after {PATIENCE:?} still not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
