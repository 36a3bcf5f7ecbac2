//! What the engine has done, in numbers.

use std::time::Duration;

/// Upper bounds of the buckets of [`Stats::step_times`], in seconds; the last bucket has none.
pub const STEP_TIME_BOUNDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// What is going on, and what was done since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Jobs that run.
    pub running: usize,
    /// Of these, the ones whose readers have to catch up.
    pub paused: usize,
    /// Jobs that wait.
    pub waiting: usize,
    /// Bytes reserved for running jobs.
    pub reserved_bytes: usize,
    /// Bytes of prefixes kept for prompts to come.
    pub kept_bytes: usize,
    /// Points that prompts can start from.
    pub frontiers: usize,
    /// Jobs that have ended, as wanted or not.
    pub ended: u64,
    /// Of these, the ones that failed.
    pub failed: u64,
    /// Of these, the ones whose readers went away.
    pub cancelled: u64,
    /// Tokens of the prompts of all jobs that were begun.
    pub prompt_tokens: u64,
    /// Of these, the ones that were found in memory.
    pub cached_memory_tokens: u64,
    /// Of these, the ones that were found on disk.
    pub cached_disk_tokens: u64,
    /// Tokens that were chosen.
    pub generated_tokens: u64,
    /// Jobs that waited for a prefix that another job was computing.
    pub prefix_waits: u64,
    /// States that were written to disk.
    pub saves: u64,
    /// States that were not, because the disk is slower than the engine, or refused.
    pub saves_skipped: u64,
    /// Points dropped to stay within the budget.
    pub evicted: u64,
    /// Forward passes.
    pub steps: u64,
    /// Tokens that went through them.
    pub step_tokens: u64,
    /// Their time, and that of the choices after them.
    pub step_time: Duration,
    /// How many of them took at most as long as each of [`STEP_TIME_BOUNDS`], and longer than the
    /// one before; the last took longer than all.
    pub step_times: [u64; STEP_TIME_BOUNDS.len() + 1],
}

impl Stats {
    pub(super) fn step(&mut self, tokens: usize, time: Duration) {
        self.steps += 1;
        self.step_tokens += tokens as u64;
        self.step_time += time;
        let seconds = time.as_secs_f64();
        let bucket = STEP_TIME_BOUNDS.iter().position(|&bound| seconds <= bound);
        self.step_times[bucket.unwrap_or(STEP_TIME_BOUNDS.len())] += 1;
    }
}
