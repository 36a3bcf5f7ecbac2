//! One answer: prompt in, tokens out.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use super::reply::Reply;
use super::scheduler::Step;
use super::{Engine, EngineError, Job, Namespace, Sequence, Update};
use crate::sample::Sampling;

/// What is to be generated.
#[derive(Clone, Debug)]
pub struct Request {
    /// Ids to start from, those of the template included.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens to generate at most.
    pub max_tokens: usize,
}

/// What a caller hears while it waits; breaking off ends the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// `done` of the prompt's `total` tokens are known, those from the cache included.
    Prefill {
        /// Known so far.
        done: usize,
        /// In the prompt.
        total: usize,
    },
    /// The next token of the answer; the end-of-sequence token is not reported.
    Token(u32),
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// It has `max_tokens` tokens.
    Length,
    /// The context, or the memory for sequences, is full.
    Context,
    /// The caller broke off.
    Caller,
    /// The engine is being stopped.
    Stopping,
}

/// An answer in numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, the ones that had not to be computed.
    pub cached_tokens: usize,
    /// Tokens of the answer, without the end-of-sequence token.
    pub generated_tokens: usize,
    /// Why it ended.
    pub finish: Finish,
    /// From the beginning of the work, not of the wait for it, to the first logits.
    pub prefill: Duration,
    /// From the first logits to the end.
    pub decode: Duration,
}

impl Outcome {
    /// Computed tokens of the prompt per second; 0 if there were none.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prompt_tokens - self.cached_tokens, self.prefill)
    }

    /// Generated tokens per second; 0 if there were none.
    pub fn decode_rate(&self) -> f64 {
        rate(self.generated_tokens, self.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 || time.is_zero() {
        0.0
    } else {
        tokens as f64 / time.as_secs_f64()
    }
}

impl Engine {
    /// Answers a prompt with `sequence`, reusing what it knows of it.
    ///
    /// # Errors
    /// A prompt that is empty or too long, settings out of range, logits that are not finite, or
    /// the device. The sequence stays usable; at worst it is empty.
    pub fn generate(
        &self,
        sequence: &mut Sequence,
        request: &Request,
        on: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Outcome, EngineError> {
        let Request { prompt, sampling, max_tokens } = request.clone();
        let prompt_tokens = prompt.len();
        let job = Job {
            prompt,
            sampling,
            max_tokens,
            room: max_tokens,
            guide: None,
            logprobs: None,
            namespace: Namespace::default(),
            landmarks: Vec::new(),
        };
        let (reply, mut updates) = Reply::channel();
        let scheduler = &mut sequence.scheduler;
        let id = scheduler.enqueue(self, job, reply);
        let mut broken_off = false;
        loop {
            while let Ok(update) = updates.try_recv() {
                let progress = match update {
                    Update::Prefill { done, total, .. } => Progress::Prefill { done, total },
                    Update::Token(chosen) => Progress::Token(chosen.token),
                    Update::End(mut outcome) => {
                        if broken_off {
                            outcome.finish = Finish::Caller;
                        }
                        sequence.len = prompt_tokens + outcome.generated_tokens;
                        return Ok(outcome);
                    }
                    Update::Failed(error) => {
                        return Err(Arc::into_inner(error).unwrap_or(EngineError::Ended))
                    }
                };
                if !broken_off && on(progress).is_break() {
                    broken_off = true;
                    scheduler.cut(id, Finish::Caller);
                }
            }
            if scheduler.step(self) != Step::Worked && updates.is_empty() {
                return Err(EngineError::Ended);
            }
        }
    }

    /// Refuses a prompt that cannot be answered; returns the tokens that the sequence may come to
    /// have.
    pub(super) fn check_prompt(
        &self,
        prompt: &[u32],
        max_tokens: usize,
    ) -> Result<usize, EngineError> {
        let (tokens, context) = (prompt.len(), self.context());
        if tokens == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if tokens >= context {
            let most = self.model().config().context_length;
            return Err(EngineError::PromptTooLong { tokens, context, most });
        }
        // The last token of an answer need not fit: nothing comes after it.
        Ok(tokens.saturating_add(max_tokens).min(context + 1))
    }
}
