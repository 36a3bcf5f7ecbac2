//! One reply as it is written: which tokens may come next.

use std::sync::Arc;

use llguidance::Matcher;

use crate::engine::{Guide, GuideError};
use crate::tokenizer::Tokenizer;

/// What a reply is in the middle of.
pub(super) enum Phase {
    /// Free text.
    Text {
        /// Whether it ends with `<`, so that a marker may follow.
        open: bool,
    },
    /// What a grammar says, to the end.
    Grammar(Box<Matcher>),
}

/// A reply that is being written.
pub(super) struct Reply {
    tokenizer: Arc<Tokenizer>,
    reasoning: bool,
    phase: Phase,
    /// What follows a marker in free text; without it there can be none.
    block: Option<Box<Matcher>>,
}

impl Reply {
    pub(super) fn new(
        tokenizer: Arc<Tokenizer>,
        reasoning: bool,
        phase: Phase,
        block: Option<Box<Matcher>>,
    ) -> Self {
        Self { tokenizer, reasoning, phase, block }
    }
}

impl Guide for Reply {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<(), GuideError> {
        let control = self.tokenizer.control();
        match &mut self.phase {
            Phase::Text { open } if self.reasoning || !*open || self.block.is_none() => {
                forbid(logits, control.dsml);
            }
            Phase::Text { .. } => {}
            Phase::Grammar(_) if self.reasoning => {
                forbid(logits, control.dsml);
                forbid(logits, control.eos);
            }
            Phase::Grammar(matcher) => {
                let mask = matcher.compute_mask_or_eos().map_err(error)?;
                // Ids that only the model's matrix has, padding of the vocabulary, are no tokens.
                let words = mask.len().min(logits.len());
                mask.iter_unset_entries(|id| {
                    if let Some(logit) = logits.get_mut(id) {
                        *logit = f32::NEG_INFINITY;
                    }
                });
                logits[words..].fill(f32::NEG_INFINITY);
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), GuideError> {
        let control = self.tokenizer.control();
        if self.reasoning {
            self.reasoning = token != control.end_think;
            return Ok(());
        }
        match &mut self.phase {
            Phase::Text { .. } if token == control.dsml => {
                let Some(block) = self.block.take() else {
                    return Err(GuideError("a tool call where none can be".to_owned()));
                };
                self.phase = Phase::Grammar(block);
            }
            Phase::Text { open } => {
                let bytes = self.tokenizer.token_bytes(token).unwrap_or_default();
                *open = bytes.ends_with(b"<");
            }
            // The end is no part of the grammar once it is complete.
            Phase::Grammar(matcher) if matcher.is_stopped() && token == control.eos => {}
            Phase::Grammar(matcher) => matcher.consume_token(token).map_err(error)?,
        }
        Ok(())
    }
}

fn forbid(logits: &mut [f32], token: u32) {
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit = f32::NEG_INFINITY;
    }
}

fn error(error: anyhow::Error) -> GuideError {
    GuideError(super::first_line(&error.to_string()))
}
