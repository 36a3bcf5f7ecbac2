//! How much may run and wait at a time.

use candle_core::Device;

use crate::hub;

/// Tokens of prompts in one forward pass on the CPU: more gains nothing there, and it is what a
/// user waits for before a cancelled prompt stops, or another's next token comes.
const CPU_CHUNK: usize = 512;
/// The same on a GPU, whose matrix units want more rows.
const GPU_CHUNK: usize = 2048;
/// Share of the machine's memory that sequences may take: one in so many.
const MEMORY_SHARE: u64 = 4;
/// What they may take if the system does not tell its memory.
const UNKNOWN_MEMORY: u64 = 16 << 30;

/// How much may run and wait at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Jobs that run at a time.
    pub parallel: usize,
    /// Of these, jobs of one namespace.
    pub per_namespace: usize,
    /// Jobs that wait.
    pub waiting: usize,
    /// Bytes on the device for what is remembered of sequences: those that run, with the room that
    /// was set aside for their answers, and those kept for prompts to come.
    pub kv_bytes: usize,
    /// Tokens of prompts in one forward pass.
    pub chunk_tokens: usize,
}

impl Limits {
    /// What suits a device: 16 jobs at a time, a quarter of the machine's memory.
    pub fn of(device: &Device) -> Self {
        let memory = hub::memory().0.unwrap_or(UNKNOWN_MEMORY) / MEMORY_SHARE;
        Self {
            parallel: 16,
            per_namespace: 16,
            waiting: 256,
            kv_bytes: usize::try_from(memory).unwrap_or(usize::MAX),
            chunk_tokens: if device.is_cpu() { CPU_CHUNK } else { GPU_CHUNK },
        }
    }
}
