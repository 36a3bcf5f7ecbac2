//! A sequence that stays resident between requests.

use std::ops::ControlFlow;

use super::{Engine, EngineError, CHUNK_TOKENS};
use crate::cache::{Cache, Snapshot, REWIND_TOKENS};
use crate::model::{Input, Logits};

/// Frontiers that a sequence keeps at most.
const MAX_FRONTIERS: usize = 16;
/// Tokens of a long prompt between two frontiers.
const FRONTIER_TOKENS: usize = 4096;

/// A point to come back to.
struct Frontier {
    state: Snapshot,
    /// Scores of the token after it, if a pass asked for them.
    logits: Option<Vec<f32>>,
}

impl Frontier {
    fn len(&self) -> usize {
        self.state.len()
    }
}

/// Tokens, what the model remembers of them, and points to come back to.
///
/// The next prompt need not continue this sequence: whatever prefix it shares is reused, up to the
/// nearest point kept.
pub struct Sequence {
    tokens: Vec<u32>,
    cache: Cache,
    /// By rising length; all of them prefixes of `tokens`.
    frontiers: Vec<Frontier>,
    /// Scores of the token after the last, if they are known.
    logits: Option<Vec<f32>>,
}

impl Sequence {
    pub(super) fn new(cache: Cache) -> Self {
        Self { tokens: Vec::new(), cache, frontiers: Vec::new(), logits: None }
    }

    /// Its tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Bytes that it holds on the device.
    pub fn bytes(&self) -> usize {
        self.cache.bytes() + self.frontiers.iter().map(|f| f.state.bytes()).sum::<usize>()
    }

    /// Logits of the token after the last, if the last pass asked for them.
    pub fn logits(&self) -> Option<&[f32]> {
        self.logits.as_deref()
    }

    /// Makes this the sequence of `prompt`, from the longest prefix that is still known; returns
    /// that prefix's length, or `None` if `progress` broke off.
    ///
    /// `progress` hears the tokens known so far after every chunk, of all in the prompt.
    pub(super) fn prefill(
        &mut self,
        engine: &Engine,
        prompt: &[u32],
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<usize>, EngineError> {
        let cached = self.rewind_to_prefix(prompt)?;
        if progress(cached, prompt.len()).is_break() {
            return Ok(None);
        }
        while self.tokens.len() < prompt.len() {
            let from = self.tokens.len();
            let chunk = &prompt[from..(from + CHUNK_TOKENS).min(prompt.len())];
            let last = from + chunk.len() == prompt.len();
            self.append(engine, chunk, last)?;
            let since = self.frontiers.last().map_or(0, Frontier::len);
            if last || self.tokens.len() - since >= FRONTIER_TOKENS {
                self.keep_frontier()?;
            }
            if progress(self.tokens.len(), prompt.len()).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(cached))
    }

    /// Runs more tokens through the model; their last logits are kept if wanted.
    pub(super) fn append(
        &mut self,
        engine: &Engine,
        tokens: &[u32],
        wanted: bool,
    ) -> Result<(), EngineError> {
        self.logits = None;
        let input = Input { tokens, cache: &mut self.cache };
        let which = if wanted { Logits::Last } else { Logits::None };
        let logits = match engine.model.forward(&mut [input], which, &engine.workspace) {
            Ok(logits) => logits,
            Err(error) => {
                // Nothing of a torn cache is worth keeping; its frontiers are whole.
                self.restore(usize::MAX)?;
                return Err(error.into());
            }
        };
        self.tokens.extend_from_slice(tokens);
        if wanted {
            self.logits = Some(logits.flatten_all()?.to_vec1()?);
        }
        Ok(())
    }

    /// Goes back to the longest prefix of `prompt` that is still known: all of it if its logits
    /// are, else one token less, so that there is one to run.
    fn rewind_to_prefix(&mut self, prompt: &[u32]) -> Result<usize, EngineError> {
        let same = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        if same == prompt.len() {
            if same == self.tokens.len() && self.logits.is_some() {
                return Ok(same);
            }
            if self.frontiers.iter().any(|f| f.len() == same && f.logits.is_some()) {
                self.restore(same)?;
                return Ok(same);
            }
        }
        let wanted = same.min(prompt.len().saturating_sub(1));
        if wanted == self.tokens.len() {
            return Ok(wanted);
        }
        let below = |f: &&Frontier| f.len() <= wanted;
        let frontier = self.frontiers.iter().rev().find(below).map_or(0, Frontier::len);
        if self.tokens.len() - wanted <= REWIND_TOKENS && wanted > frontier {
            self.cache.truncate(wanted)?;
            self.tokens.truncate(wanted);
            self.frontiers.retain(|f| f.len() <= wanted);
            self.logits = None;
        } else {
            self.restore(wanted)?;
        }
        Ok(self.tokens.len())
    }

    /// Goes back to the last frontier of at most `most` tokens, or to nothing.
    fn restore(&mut self, most: usize) -> Result<(), EngineError> {
        self.frontiers.retain(|f| f.len() <= most);
        match self.frontiers.last() {
            Some(frontier) => {
                self.cache.restore(&frontier.state)?;
                self.tokens.truncate(frontier.len());
                self.logits = frontier.logits.clone();
            }
            None => {
                self.cache.clear()?;
                self.tokens.clear();
                self.logits = None;
            }
        }
        Ok(())
    }

    /// Keeps the present state to come back to.
    pub(super) fn keep_frontier(&mut self) -> Result<(), EngineError> {
        if self.frontiers.last().is_some_and(|f| f.len() == self.tokens.len()) {
            return Ok(());
        }
        self.frontiers
            .push(Frontier { state: self.cache.snapshot()?, logits: self.logits.clone() });
        if self.frontiers.len() > MAX_FRONTIERS {
            self.drop_least_useful();
        }
        Ok(())
    }

    /// Drops the frontier without which the least would have to be computed again; never the
    /// first (it holds the system prompt) nor the last.
    fn drop_least_useful(&mut self) {
        let gap = |i: usize| self.frontiers[i].len() - self.frontiers[i - 1].len();
        if let Some(least) = (1..self.frontiers.len() - 1).min_by_key(|&i| gap(i)) {
            self.frontiers.remove(least);
        }
    }
}
