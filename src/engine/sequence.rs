//! A sequence that stays resident between requests.

use std::ops::ControlFlow;

use super::{Engine, EngineError, CHUNK_TOKENS};
use crate::cache::{Cache, Snapshot};
use crate::model::{Input, Logits};

/// Frontiers that a sequence keeps at most.
const MAX_FRONTIERS: usize = 16;
/// Tokens of a long prompt between two frontiers.
const FRONTIER_TOKENS: usize = 4096;

/// Tokens, what the model remembers of them, and points to come back to.
///
/// The next prompt need not continue this sequence: whatever prefix it shares is reused, up to the
/// nearest point kept.
pub struct Sequence {
    tokens: Vec<u32>,
    cache: Cache,
    /// By rising length; all of them prefixes of `tokens`.
    frontiers: Vec<Snapshot>,
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
        self.cache.bytes() + self.frontiers.iter().map(Snapshot::bytes).sum::<usize>()
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
            // The template ends a prompt with a token that says whether to think, and history
            // says it differently: the next prompt shares all but that token.
            let shared = prompt.len() - 1;
            let end = if from < shared { shared } else { prompt.len() };
            let chunk = &prompt[from..(from + CHUNK_TOKENS).min(end)];
            let last = from + chunk.len() == prompt.len();
            self.append(engine, chunk, last)?;
            let since = self.frontiers.last().map_or(0, Snapshot::len);
            if self.tokens.len() == shared || self.tokens.len() - since >= FRONTIER_TOKENS {
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

    /// Goes back to the longest prefix of `prompt` that leaves a token to run, unless the logits
    /// after all of it are known.
    fn rewind_to_prefix(&mut self, prompt: &[u32]) -> Result<usize, EngineError> {
        let same = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let complete = same == prompt.len() && same == self.tokens.len() && self.logits.is_some();
        if complete {
            return Ok(same);
        }
        let wanted = same.min(prompt.len().saturating_sub(1));
        if wanted == self.tokens.len() {
            return Ok(wanted);
        }
        self.logits = None;
        let frontier =
            self.frontiers.iter().rev().find(|f| f.len() <= wanted).map_or(0, Snapshot::len);
        if wanted >= self.cache.oldest() && wanted > frontier {
            self.cache.truncate(wanted)?;
            self.tokens.truncate(wanted);
            self.frontiers.retain(|f| f.len() <= wanted);
        } else {
            self.restore(wanted)?;
        }
        Ok(self.tokens.len())
    }

    /// Goes back to the last frontier of at most `most` tokens, or to nothing.
    fn restore(&mut self, most: usize) -> Result<(), EngineError> {
        self.frontiers.retain(|f| f.len() <= most);
        self.logits = None;
        match self.frontiers.last() {
            Some(frontier) => {
                self.cache.restore(frontier)?;
                self.tokens.truncate(frontier.len());
            }
            None => {
                self.cache.clear()?;
                self.tokens.clear();
            }
        }
        Ok(())
    }

    /// Keeps the present state to come back to.
    pub(super) fn keep_frontier(&mut self) -> Result<(), EngineError> {
        if self.frontiers.last().is_some_and(|f| f.len() == self.tokens.len()) {
            return Ok(());
        }
        self.frontiers.push(self.cache.snapshot()?);
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
