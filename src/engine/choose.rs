//! From a job's logits to its next token.

use std::panic::{catch_unwind, AssertUnwindSafe};

use super::job::{Chosen, Guide, TokenLogprob};
use super::EngineError;
use crate::ops::{Reach, Shortlist};
use crate::sample::Sampler;

/// What chooses the tokens of one job.
pub(super) struct Chooser {
    pub sampler: Sampler,
    pub guide: Option<Box<dyn Guide>>,
    pub logprobs: Option<usize>,
}

impl Chooser {
    /// The next token, from the logits `[vocab]` after `context`.
    ///
    /// A panic, a guide's for instance, is this job's error and nobody else's.
    pub fn choose(&mut self, logits: &mut [f32], context: &[u32]) -> Result<Chosen, EngineError> {
        guarded(|| self.choose_unguarded(logits, context))
    }

    /// Which tokens can be chosen at all, if not all scores are needed.
    pub fn reach(&self) -> Option<Reach> {
        match (&self.guide, self.logprobs) {
            (None, None) => self.sampler.reach(),
            _ => None,
        }
    }

    /// The next token, out of those that can be chosen.
    pub fn choose_listed(&mut self, list: &Shortlist) -> Result<Chosen, EngineError> {
        Ok(Chosen { token: self.sampler.sample_shortlist(list)?, logprobs: None })
    }

    fn choose_unguarded(
        &mut self,
        logits: &mut [f32],
        context: &[u32],
    ) -> Result<Chosen, EngineError> {
        let own = self.logprobs.map(|most| (most, logits.to_vec()));
        let guide = &mut self.guide;
        let token = self.sampler.sample_restricted(logits, context, |logits, reach| {
            let restricted = guide.as_mut().map_or(Ok(()), |guide| guide.restrict(logits, reach));
            restricted.map_err(EngineError::from)
        })?;
        if let Some(guide) = guide {
            guide.accept(token)?;
        }
        let logprobs = own.map(|(most, logits)| logprobs(&logits, token, most));
        Ok(Chosen { token, logprobs })
    }
}

/// Runs what belongs to one job; its panic becomes that job's error.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    // What a panic leaves half-done is not used again: the job fails, its cache is marked torn.
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<&str>().map(|said| (*said).to_owned());
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(EngineError::Panicked(said.unwrap_or_else(|| "no message".to_owned())))
    })
}

/// The probability of `token` and of the `most` likeliest, ties by rising id.
fn logprobs(logits: &[f32], token: u32, most: usize) -> (TokenLogprob, Vec<TokenLogprob>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let norm = f64::from(max) + sum.ln();
    let of = |token: u32| TokenLogprob {
        token,
        logprob: (f64::from(logits[token as usize]) - norm) as f32,
    };
    let rank =
        |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let most = most.min(ids.len());
    if most > 0 && most < ids.len() {
        ids.select_nth_unstable_by(most - 1, rank);
    }
    ids.truncate(most);
    ids.sort_unstable_by(rank);
    (of(token), ids.into_iter().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_the_softmax_and_alternatives_the_likeliest() {
        let logits = [0.5f32, 2.0, -1.0, 2.0, 0.0];
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let want = |id: usize| (f64::from(logits[id]) - sum.ln()) as f32;
        for most in 0..=7 {
            let (of, best) = logprobs(&logits, 2, most);
            assert_eq!(of.token, 2);
            assert!((of.logprob - want(2)).abs() < 1e-6);
            let ids: Vec<u32> = best.iter().map(|b| b.token).collect();
            assert_eq!(ids, [1, 3, 0, 4, 2][..most.min(5)]);
            for b in best {
                assert!((b.logprob - want(b.token as usize)).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        let error = guarded::<()>(|| panic!("no {}", 7)).unwrap_err();
        assert!(error.to_string().contains("no 7"), "{error}");
        assert_eq!(guarded(|| Ok(3)).unwrap(), 3);
    }
}
