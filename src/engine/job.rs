//! What is asked of the thread that owns the device, and what it answers.

use std::sync::Arc;

use super::{EngineError, Outcome};
use crate::sample::Sampling;

/// Whose tokens these are.
///
/// Cached state is never shared between owners, in memory or on disk: a shared prefix answers
/// faster, and that would tell one owner what another has asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Namespace(pub [u8; 16]);

/// One answer that is wanted.
pub struct Job {
    /// Ids to start from, those of the template included.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Of these, the ones that memory is set aside for before the job begins. For more it is taken
    /// as the answer grows; where there is none left, the answer ends with [`Finish::Context`].
    ///
    /// [`Finish::Context`]: super::Finish::Context
    pub room: usize,
    /// What restricts the choice, if anything does.
    pub guide: Option<Box<dyn Guide>>,
    /// How many of the likeliest tokens to report beside each chosen one; `None` reports no
    /// probabilities at all.
    pub logprobs: Option<usize>,
    /// Whose cache may be used.
    pub namespace: Namespace,
    /// Lengths of prefixes of `prompt` that other prompts are likely to share (the end of system
    /// prompt and tools, the ends of turns): worth a point to come back to.
    pub landmarks: Vec<usize>,
}

/// Restricts which token may come next.
///
/// Called between two steps of every running sequence, which all wait for it: it must be quick. The
/// end-of-sequence token is offered and told like any other. A panic fails the job alone.
pub trait Guide: Send {
    /// Sets the logits `[vocab]` of tokens that may not come next to −∞.
    ///
    /// Where there is a `reach`, no token will be chosen whose logit is further than that below the best
    /// one that may come: such ones may be set to −∞ too, or left alone.
    ///
    /// # Errors
    /// If no token may come, or its bounds are exceeded; the job fails with it.
    fn restrict(&mut self, logits: &mut [f32], reach: Option<f32>) -> Result<(), GuideError>;

    /// Takes note of the token that was chosen.
    ///
    /// # Errors
    /// If the token was not allowed; the job fails with it.
    fn accept(&mut self, token: u32) -> Result<(), GuideError>;
}

/// Why a guide cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
#[error("constrained decoding: {0}")]
pub struct GuideError(pub String);

/// A token and how probable it was.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability in the model's own distribution (temperature 1,
    /// before penalties, bias and guide).
    pub logprob: f32,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The token.
    pub token: u32,
    /// Its probability and the likeliest alternatives, likeliest first, if asked for.
    pub logprobs: Option<(TokenLogprob, Vec<TokenLogprob>)>,
}

/// What a job tells while it runs, in this order; dropping the receiver cancels the job.
#[derive(Clone, Debug)]
pub enum Update {
    /// `done` of the prompt's `total` tokens are known, `cached` of them from earlier. At least
    /// once, before the first token.
    Prefill {
        /// Taken from a cache.
        cached: usize,
        /// Known so far.
        done: usize,
        /// In the prompt.
        total: usize,
    },
    /// The next token of the answer; the end-of-sequence token is not told.
    Token(Chosen),
    /// The answer is complete.
    End(Outcome),
    /// There will be no more of this answer; other jobs go on.
    Failed(Arc<EngineError>),
}

/// What else is worth keeping beside the cached state of some tokens: it goes where they go, and
/// comes back when they do.
pub trait Attach: Send + Sync {
    /// Bytes that belong to `tokens` of this owner; none if there is nothing to keep.
    fn attachment(&self, namespace: Namespace, tokens: &[u32]) -> Vec<u8>;

    /// Takes in what [`attachment`](Self::attachment) gave, perhaps in an earlier run of the
    /// program. The bytes may be anything.
    fn restore(&self, namespace: Namespace, attachment: &[u8]);
}
