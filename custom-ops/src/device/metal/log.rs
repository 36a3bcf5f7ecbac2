//! What was launched: for counting, on a machine where nothing can be timed.

use std::cell::RefCell;

/// One launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// The kernel's name.
    pub kernel: String,
    /// Threadgroups.
    pub groups: [u32; 3],
    /// Threads of each.
    pub threads: usize,
    /// Bytes of weights that it reads, each counted once however many threads load it.
    pub weight_bytes: usize,
}

thread_local! {
    static LOG: RefCell<Option<Vec<Dispatch>>> = const { RefCell::new(None) };
}

/// Runs `f` and returns with its result what this thread launched meanwhile. Not to be nested.
pub fn record<R>(f: impl FnOnce() -> R) -> (R, Vec<Dispatch>) {
    LOG.set(Some(Vec::new()));
    let result = f();
    (result, LOG.take().unwrap_or_default())
}

pub(super) fn note(kernel: &str, groups: [u32; 3], threads: usize, weight_bytes: usize) {
    LOG.with_borrow_mut(|log| {
        if let Some(log) = log {
            log.push(Dispatch { kernel: kernel.to_owned(), groups, threads, weight_bytes });
        }
    });
}
