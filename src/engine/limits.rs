//! How much may run and wait at a time.

use candle_core::Device;

use crate::system;

/// Tokens of prompts in one forward pass on the CPU: more gains nothing there, and it is what a
/// user waits for before a cancelled prompt stops, or another's next token comes.
const CPU_CHUNK: usize = 512;
/// The same on an NVIDIA GPU, whose matrix units want more rows.
const CUDA_CHUNK: usize = 4096;
/// The same while answers wait for the pass: at 8,000 tokens a second their streams stall for a quarter of a
/// second. And on Apple's GPUs, which take seconds for as many.
const SHORT_CHUNK: usize = 2048;
/// Bytes that a GPU needs beside weights and sequences: intermediate values of a chunk, steps that are
/// recorded, kernels.
#[cfg(feature = "cuda")]
const GPU_WORK: u64 = 3 << 30;
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
    /// The same while answers wait for their next token, if less.
    pub chunk_beside_answers: usize,
}

impl Limits {
    /// What suits a device: 16 jobs at a time, a quarter of the machine's memory; of an NVIDIA GPU what is
    /// free now, when the weights are there, and not needed to work with.
    pub fn of(device: &Device) -> Self {
        let memory = memory_for_sequences(device);
        let (chunk_tokens, chunk_beside_answers) = match device {
            Device::Cpu => (CPU_CHUNK, CPU_CHUNK),
            Device::Cuda(_) => (CUDA_CHUNK, SHORT_CHUNK),
            Device::Metal(_) => (SHORT_CHUNK, SHORT_CHUNK),
        };
        Self {
            parallel: 16,
            per_namespace: 16,
            waiting: 256,
            kv_bytes: usize::try_from(memory).unwrap_or(usize::MAX),
            chunk_tokens,
            chunk_beside_answers,
        }
    }

    /// Tokens of prompts in a pass that is the next token's of some answers, or of none.
    pub(super) fn chunk(&self, answers: bool) -> usize {
        match answers {
            true => self.chunk_tokens.min(self.chunk_beside_answers),
            false => self.chunk_tokens,
        }
    }
}

fn memory_for_sequences(device: &Device) -> u64 {
    #[cfg(feature = "cuda")]
    if let Ok(memory) = candle_ds4_ops::device::cuda::Memory::of(device) {
        return (memory.free as u64).saturating_sub(GPU_WORK);
    }
    let _ = device;
    system::memory().0.unwrap_or(UNKNOWN_MEMORY) / MEMORY_SHARE
}
