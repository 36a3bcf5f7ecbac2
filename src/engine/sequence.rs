//! What a caller in this process keeps between its requests.

use std::time::Instant;

use super::disk::{load_now, save_now, Save};
use super::scheduler::Scheduler;
use super::{Engine, EngineError, Limits, Namespace};
use crate::cache::store::{SourceError, Store};

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

    /// Writes what is remembered of a prompt's beginning to a store, from
    /// [`open_store`](super::open_store); returns how many of its tokens that is.
    ///
    /// # Errors
    /// The store refuses, or the device.
    pub fn save(
        &mut self,
        engine: &Engine,
        store: &Store,
        prompt: &[u32],
    ) -> Result<usize, SourceError> {
        let namespace = Namespace::default();
        let found = self.scheduler.prefixes_mut().find(namespace, prompt);
        let Some((state, len)) = found.frontier else { return Ok(0) };
        let tokens = prompt[..len].to_vec();
        save_now(engine, store, &Save { namespace, tokens, state, since: Instant::now() })?;
        Ok(len)
    }

    /// Remembers what a store has of a prompt's beginning; returns how many of its tokens are known
    /// then. What is damaged is passed over.
    ///
    /// # Errors
    /// The device refuses.
    pub fn load(
        &mut self,
        engine: &Engine,
        store: &Store,
        prompt: &[u32],
    ) -> Result<usize, SourceError> {
        let namespace = Namespace::default();
        let prefixes = self.scheduler.prefixes_mut();
        let found = prefixes.find(namespace, prompt);
        let Some((len, state)) = load_now(engine, store, namespace, prompt, &found)? else {
            return Ok(found.len());
        };
        prefixes.insert(namespace, &prompt[..len], state, len);
        Ok(len)
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

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use candle_core::Device;

    use super::*;
    use crate::demo::demo_model;
    use crate::engine::{open_store, Progress, Request};
    use crate::gguf::Gguf;
    use crate::sample::Sampling;

    fn answer(engine: &Engine, sequence: &mut Sequence, prompt: &[u32]) -> (Vec<u32>, usize) {
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let request = Request { prompt: prompt.to_vec(), sampling, max_tokens: 20 };
        let mut tokens = Vec::new();
        let outcome = engine.generate(sequence, &request, &mut |progress| {
            if let Progress::Token(token) = progress {
                tokens.push(token);
            }
            ControlFlow::Continue(())
        });
        (tokens, outcome.unwrap().cached_tokens)
    }

    #[test]
    fn what_was_saved_is_known_to_another_process_and_changes_no_token() {
        let gguf = Gguf::from_bytes(demo_model()).unwrap();
        let engine = || Engine::from_gguf(&gguf, "demo", &Device::Cpu).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let prompt: Vec<u32> = (0..400).map(|i| 20 + i * 7 % 300).collect();
        let (one, two) = (engine(), engine());
        let open = |engine: &Engine| open_store(&gguf, engine, folder.path(), 1 << 30).unwrap();

        let mut sequence = one.new_sequence().unwrap();
        assert_eq!(sequence.save(&one, &open(&one), &prompt).unwrap(), 0);
        let (first, _) = answer(&one, &mut sequence, &prompt);
        let longer = [&prompt[..], &first, &[30, 31, 32]].concat();
        let saved = sequence.save(&one, &open(&one), &longer).unwrap();
        assert!(saved + 4 >= longer.len(), "{saved} of {}", longer.len());
        let (expected, _) = answer(&one, &mut sequence, &longer);

        let mut sequence = two.new_sequence().unwrap();
        assert_eq!(sequence.load(&two, &open(&two), &longer).unwrap(), saved);
        assert_eq!(answer(&two, &mut sequence, &longer), (expected, saved));
        // Nothing more to read.
        assert!(sequence.load(&two, &open(&two), &longer).unwrap() >= saved);
    }
}
