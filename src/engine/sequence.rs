//! What a caller in this process keeps between its requests.

use super::scheduler::Scheduler;
use super::{Engine, EngineError, Limits};

/// One conversation after another, and what the model remembers of them.
///
/// The next prompt need not continue the last one: whatever prefix it shares with any earlier
/// prompt or answer is reused, up to the nearest point kept.
pub struct Sequence {
    pub(super) scheduler: Scheduler,
    pub(super) len: usize,
}

impl Sequence {
    pub(super) fn new(engine: &Engine) -> Result<Self, EngineError> {
        let limits = Limits::of(engine.model.device());
        Ok(Self { scheduler: Scheduler::new(engine, limits)?, len: 0 })
    }

    /// Tokens of the last prompt and its answer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was asked yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that are kept on the device, those of earlier conversations included.
    pub fn bytes(&self) -> usize {
        self.scheduler.kept_bytes()
    }
}
