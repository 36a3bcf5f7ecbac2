//! One reply as it is written: which tokens may come next.

use std::sync::Arc;

use llguidance::Matcher;

use crate::engine::{Guide, GuideError};
use crate::tokenizer::Tokenizer;

/// Tokens that are asked for one by one rather than to have the mask of all.
const FEW_LIKELY: usize = 16;
/// Of the likeliest ones, how many may be refused before the mask is had after all.
const MOST_REFUSED: usize = 4;
/// Steps in a row without a mask: with each mask the grammar engine grants itself work anew (enough for
/// every token there is), and it gives up for good when that is used up.
const MOST_ASKED: usize = 32;

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
    /// Steps in a row without a mask of all tokens.
    asked: usize,
}

impl Reply {
    pub(super) fn new(
        tokenizer: Arc<Tokenizer>,
        reasoning: bool,
        phase: Phase,
        block: Option<Box<Matcher>>,
    ) -> Self {
        Self { tokenizer, reasoning, phase, block, asked: MOST_ASKED }
    }
}

impl Guide for Reply {
    fn restrict(&mut self, logits: &mut [f32], reach: Option<f32>) -> Result<(), GuideError> {
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
                // Ids that only the model's matrix has, padding of the vocabulary, are no tokens.
                let words = self.tokenizer.vocab_size().min(logits.len());
                logits[words..].fill(f32::NEG_INFINITY);
                let logits = &mut logits[..words];
                let near = self.asked < MOST_ASKED && !matcher.is_stopped();
                match reach.filter(|_| near) {
                    Some(reach) if only_near(matcher, logits, reach)? => self.asked += 1,
                    _ => {
                        all(matcher, logits)?;
                        self.asked = 0;
                    }
                }
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

/// Forbids every token that the grammar does not allow.
fn all(matcher: &mut Matcher, logits: &mut [f32]) -> Result<(), GuideError> {
    let mask = matcher.compute_mask_or_eos().map_err(error)?;
    mask.iter_unset_entries(|id| {
        if let Some(logit) = logits.get_mut(id) {
            *logit = f32::NEG_INFINITY;
        }
    });
    Ok(())
}

/// The same, and every token further than `reach` below the best that is allowed, if there are only few
/// above; else nothing is done and it says so.
///
/// To ask for a few tokens costs a part of what the mask of a vocabulary does where the grammar's state is
/// a new one, as after each character of a text whose characters are counted.
fn only_near(matcher: &mut Matcher, logits: &mut [f32], reach: f32) -> Result<bool, GuideError> {
    // What the grammar says word for word is written in the tokenizer's own pieces; only the mask knows.
    if !matcher.compute_ff_bytes().is_empty() {
        return Ok(false);
    }
    let mut allows = |&(id, _): &(u32, f32)| {
        matcher.validate_tokens(&[id]).map(|allowed| allowed == 1).map_err(error)
    };
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let Some(likely) = near(logits, best - reach, FEW_LIKELY) else { return Ok(false) };
    let mut first = None;
    for (at, token) in likely.iter().take(MOST_REFUSED).enumerate() {
        if allows(token)? {
            first = Some(at);
            break;
        }
    }
    let Some(first) = first else { return Ok(false) };
    let floor = likely[first].1 - reach;
    // What was refused before it is in the list again, at the same places.
    let Some(likely) = near(logits, floor, FEW_LIKELY) else { return Ok(false) };
    let mut allowed = vec![likely[first]];
    for token in &likely[first + 1..] {
        if allows(token)? {
            allowed.push(*token);
        }
    }
    logits.fill(f32::NEG_INFINITY);
    for (id, logit) in allowed {
        logits[id as usize] = logit;
    }
    Ok(true)
}

/// The tokens with at least such a logit, the likeliest first, if they are no more than `most`.
fn near(logits: &[f32], floor: f32, most: usize) -> Option<Vec<(u32, f32)>> {
    let all = (0u32..).zip(logits.iter().copied());
    let mut near: Vec<_> = all.filter(|(_, logit)| *logit >= floor).take(most + 1).collect();
    near.sort_unstable_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
    (near.len() <= most).then_some(near)
}

fn forbid(logits: &mut [f32], token: u32) {
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit = f32::NEG_INFINITY;
    }
}

fn error(error: anyhow::Error) -> GuideError {
    GuideError(super::first_line(&error.to_string()))
}
