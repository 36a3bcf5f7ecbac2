//! What the store has done since it was opened, and warnings that do not flood.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time from one warning to the next.
const WARNING_PERIOD: Duration = Duration::from_secs(60);

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts that only grow.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub $name: AtomicU64,)*
        }

        /// What a store has done since it was opened, and what it holds.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
            /// Bytes of files that can be used.
            pub bytes: u64,
            /// Pages that can be used.
            pub pages: u64,
            /// Frontiers that can be used.
            pub frontiers: u64,
        }

        impl Counters {
            /// The counts now.
            pub fn stats(&self) -> Stats {
                Stats {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                    ..Stats::default()
                }
            }
        }
    };
}

counters! {
    /// Lookups.
    lookups,
    /// Lookups that found something.
    hits,
    /// Tokens of the frontiers that were read.
    hit_tokens,
    /// Saves that wrote something, or had nothing to write.
    saves,
    /// Saves that were skipped.
    saves_skipped,
    /// Bytes written by saves.
    bytes_written,
    /// Pages written by saves.
    pages_written,
    /// Pages that saves found written already.
    pages_shared,
    /// Frontiers removed to make room.
    evicted,
    /// Damaged files taken out of use.
    quarantined,
    /// Reads that the system refused.
    read_errors,
}

impl Counters {
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// Lets one warning a minute through.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    state: Mutex<(Option<Instant>, u64)>,
}

impl Limiter {
    /// Whether to warn at `now`; if so, how many warnings were held back before.
    pub fn allow(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, held_back) = &mut *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < WARNING_PERIOD) {
            *held_back += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_warning_a_minute() {
        let limiter = Limiter::default();
        let start = Instant::now();
        let at = |seconds| limiter.allow(start + Duration::from_secs(seconds));
        assert_eq!(at(0), Some(0));
        assert_eq!((at(1), at(59)), (None, None));
        assert_eq!(at(60), Some(2));
        assert_eq!(at(119), None);
        assert_eq!(at(500), Some(1));
    }
}
