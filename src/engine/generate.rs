//! One answer: prompt in, tokens out.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::{Engine, EngineError, Sequence};
use crate::sample::{Sampler, Sampling};

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
    /// The context is full.
    Context,
    /// The caller broke off.
    Caller,
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
    /// From the request to the first logits.
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
        let mut sampler = Sampler::new(request.sampling.clone())?;
        let prompt = &request.prompt;
        self.check_prompt(prompt)?;

        let start = Instant::now();
        let mut outcome = Outcome {
            prompt_tokens: prompt.len(),
            cached_tokens: 0,
            generated_tokens: 0,
            finish: Finish::Caller,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        };
        let cached = sequence
            .prefill(self, prompt, &mut |done, total| on(Progress::Prefill { done, total }))?;
        outcome.prefill = start.elapsed();
        let Some(cached) = cached else { return Ok(outcome) };
        outcome.cached_tokens = cached;

        let decode = Instant::now();
        let eos = self.tokenizer().control().eos;
        outcome.finish = loop {
            if outcome.generated_tokens >= request.max_tokens {
                break Finish::Length;
            }
            // A pass that was asked for logits has left them.
            let mut logits = sequence.logits().unwrap_or_default().to_vec();
            let token = sampler.sample_slice(&mut logits, sequence.tokens())?;
            if token == eos {
                break Finish::Stop;
            }
            outcome.generated_tokens += 1;
            if on(Progress::Token(token)).is_break() {
                break Finish::Caller;
            }
            if sequence.tokens().len() + 1 > self.context() {
                break Finish::Context;
            }
            sequence.append(self, &[token], true)?;
        };
        outcome.decode = decode.elapsed();
        Ok(outcome)
    }

    fn check_prompt(&self, prompt: &[u32]) -> Result<(), EngineError> {
        let (tokens, context) = (prompt.len(), self.context());
        if tokens == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if tokens >= context {
            let most = self.model().config().context_length;
            return Err(EngineError::PromptTooLong { tokens, context, most });
        }
        Ok(())
    }
}
