//! From logits to the next token.

use std::collections::{HashMap, HashSet};

use candle_core::Tensor;
use candle_ds4_ops::{Reach, Shortlist};
use candle_transformers::generation::{LogitsProcessor, Sampling as Candle};

/// What a sampler may and may not choose.
///
/// [`Sampling::default`] is what DeepSeek recommends for V4, with the floor that ds4 adds:
/// temperature 1, top-p 1, min-p 0.05.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; 1 samples the model's own distribution.
    pub temperature: f64,
    /// Keep the likeliest tokens that together have this probability; 1 keeps all.
    pub top_p: f64,
    /// Keep tokens at least this probable relative to the likeliest; 0 keeps all.
    pub min_p: f64,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Divides positive logits of tokens seen in the context (and multiplies negative ones);
    /// 1 does nothing.
    pub repetition_penalty: f32,
    /// Subtracted from a generated token's logit for each time it was generated.
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of every generated token.
    pub presence_penalty: f32,
    /// Added to the logits of single tokens; −∞ forbids one.
    pub logit_bias: HashMap<u32, f32>,
    /// The same seed, prompt and settings give the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            min_p: 0.05,
            top_k: 0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: HashMap::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Refuses what has no meaning.
    ///
    /// # Errors
    /// Names the setting, its value and its range.
    pub fn check(&self) -> Result<(), SampleError> {
        let ranges = [
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_p", self.top_p, 0.0, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repetition_penalty", f64::from(self.repetition_penalty), 0.01, 100.0),
            ("frequency_penalty", f64::from(self.frequency_penalty), -100.0, 100.0),
            ("presence_penalty", f64::from(self.presence_penalty), -100.0, 100.0),
        ];
        for (name, value, low, high) in ranges {
            // Not a number is in no range.
            if !(low..=high).contains(&value) {
                return Err(SampleError::Setting { name, value, low, high });
            }
        }
        match self.logit_bias.iter().find(|(_, bias)| bias.is_nan()) {
            Some((&token, _)) => Err(SampleError::Bias { token }),
            None => Ok(()),
        }
    }
}

/// Why no token could be chosen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// A setting outside its range.
    #[error("{name} is {value:?}, must be between {low} and {high}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The least that it may be.
        low: f64,
        /// The most that it may be.
        high: f64,
    },
    /// A bias that is no number.
    #[error("the logit bias of token {token} is not a number")]
    Bias {
        /// The token.
        token: u32,
    },
    /// The model gave no usable scores.
    #[error(
        "the model's logits are not finite at token {position}: the weights are damaged or the \
         device made an error; verify the file with `ds4 inspect`, then try again"
    )]
    NotFinite {
        /// Tokens generated so far.
        position: usize,
    },
    /// Biases and restrictions leave no token.
    #[error(
        "no token is left to choose from: the biases, or what the answer must look like, forbid \
         all of them"
    )]
    NoneLeft,
    /// The distribution or the device.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Chooses one token after another.
pub struct Sampler {
    settings: Sampling,
    processor: LogitsProcessor,
    /// How often each token was generated.
    generated: HashMap<u32, u32>,
    /// The tokens among the first `read` of the context, if their repetition is penalised.
    seen: HashSet<u32>,
    read: usize,
    chosen: usize,
    order: Vec<u32>,
}

impl Sampler {
    /// A sampler at the start of an answer.
    ///
    /// # Errors
    /// A setting outside its range.
    pub fn new(settings: Sampling) -> Result<Self, SampleError> {
        settings.check()?;
        let rule = match settings.temperature {
            // Below this the softmax is the maximum, and its exponents overflow.
            t if t < 1e-4 => Candle::ArgMax,
            temperature => Candle::All { temperature },
        };
        let processor = LogitsProcessor::from_sampling(settings.seed, rule);
        Ok(Self {
            settings,
            processor,
            generated: HashMap::new(),
            seen: HashSet::new(),
            read: 0,
            chosen: 0,
            order: Vec::new(),
        })
    }

    /// The next token, from the logits `[vocab]` after `context`, which only grows from call to
    /// call.
    ///
    /// # Errors
    /// Logits that are not finite, or the device.
    pub fn sample(&mut self, logits: &Tensor, context: &[u32]) -> Result<u32, SampleError> {
        let mut logits = logits.to_vec1::<f32>()?;
        self.sample_slice(&mut logits, context)
    }

    /// The same for logits on the host; they are changed.
    ///
    /// # Errors
    /// Logits that are not finite, or none left.
    pub fn sample_slice(
        &mut self,
        logits: &mut [f32],
        context: &[u32],
    ) -> Result<u32, SampleError> {
        self.sample_restricted(logits, context, |_, _| Ok(()))
    }

    /// The same, where `restrict` sets the logits of tokens that may not come to −∞, last of all. It is
    /// told how far below the best of the others a logit still counts, if that is known.
    ///
    /// # Errors
    /// Logits that are not finite, none left, or that of `restrict`.
    pub fn sample_restricted<E: From<SampleError>>(
        &mut self,
        logits: &mut [f32],
        context: &[u32],
        restrict: impl FnOnce(&mut [f32], Option<f32>) -> Result<(), E>,
    ) -> Result<u32, E> {
        // One NaN or infinity would win every comparison, or poison the softmax.
        if logits.is_empty() || logits.iter().any(|logit| !logit.is_finite()) {
            return Err(SampleError::NotFinite { position: self.chosen }.into());
        }
        self.penalize(logits, context);
        // The likeliest that together have some probability are others if some are left out.
        let reach = if self.settings.top_p < 1.0 { None } else { self.margin() };
        restrict(logits, reach)?;
        Ok(self.choose(logits)?)
    }

    /// How far below the best logit another one can be for its token to be chosen; `None` if any can.
    fn margin(&self) -> Option<f32> {
        let Sampling { temperature, min_p, .. } = self.settings;
        match temperature {
            t if t < 1e-4 => Some(0.0),
            // A little more, so that rounding leaves nobody out.
            t if min_p > 0.0 => Some((-t * min_p.ln() * 1.001 + 1e-4) as f32),
            _ => None,
        }
    }

    /// Which tokens can be chosen at all, if only those near the likeliest can and nothing depends on what
    /// came before; else all scores are needed.
    pub fn reach(&self) -> Option<Reach> {
        let Sampling {
            temperature, repetition_penalty, frequency_penalty, presence_penalty, ..
        } = self.settings;
        let plain =
            repetition_penalty == 1.0 && frequency_penalty == 0.0 && presence_penalty == 0.0;
        if !plain || !self.settings.logit_bias.is_empty() {
            return None;
        }
        let temperature = if temperature < 1e-4 { 1.0 } else { temperature as f32 };
        self.margin().map(|reach| Reach { reach, temperature })
    }

    /// The next token, out of a list of all in [`Sampler::reach`]: the one that [`Sampler::sample`] would
    /// choose but for rounding.
    ///
    /// # Errors
    /// If scores were not finite.
    pub fn sample_shortlist(&mut self, list: &Shortlist) -> Result<u32, SampleError> {
        let Shortlist { ids, scores, share } = list;
        if ids.is_empty() {
            return Err(SampleError::NotFinite { position: self.chosen });
        }
        let at = if self.settings.temperature < 1e-4 {
            likeliest(scores)
        } else {
            let (top_k, top_p) = (self.settings.top_k, self.settings.top_p as f32);
            let min_p = self.settings.min_p as f32;
            let order = &mut self.order;
            let tensor = Tensor::from_slice(scores, scores.len(), &candle_core::Device::Cpu)?;
            self.processor.sample_f(&tensor, |probabilities| {
                // Of all tokens, not of the list's alone.
                probabilities.iter_mut().for_each(|p| *p *= share);
                keep(probabilities, top_k, top_p, min_p, order)
            })?
        };
        let token = ids[at as usize];
        *self.generated.entry(token).or_default() += 1;
        self.chosen += 1;
        Ok(token)
    }

    fn choose(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        if logits.iter().all(|&logit| logit == f32::NEG_INFINITY) {
            return Err(SampleError::NoneLeft);
        }
        let token = if self.settings.temperature < 1e-4 {
            likeliest(logits)
        } else {
            let (top_k, top_p) = (self.settings.top_k, self.settings.top_p as f32);
            let min_p = self.settings.min_p as f32;
            let order = &mut self.order;
            let tensor = Tensor::from_slice(logits, logits.len(), &candle_core::Device::Cpu)?;
            self.processor.sample_f(&tensor, |probabilities| {
                keep(probabilities, top_k, top_p, min_p, order)
            })?
        };
        *self.generated.entry(token).or_default() += 1;
        self.chosen += 1;
        Ok(token)
    }

    fn penalize(&mut self, logits: &mut [f32], context: &[u32]) {
        let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } =
            self.settings;
        if repetition_penalty != 1.0 {
            self.seen.extend(context.iter().skip(self.read));
            self.read = context.len();
            for &token in &self.seen {
                if let Some(logit) = logits.get_mut(token as usize) {
                    let up = *logit < 0.0;
                    *logit =
                        if up { *logit * repetition_penalty } else { *logit / repetition_penalty };
                }
            }
        }
        for (&token, &count) in &self.generated {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= presence_penalty + frequency_penalty * count as f32;
            }
        }
        for (&token, &bias) in &self.settings.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
    }
}

/// The lowest id among the highest logits.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// Sets to zero what top-k, top-p and min-p rule out; the likeliest token always stays.
fn keep(probabilities: &mut [f32], top_k: usize, top_p: f32, min_p: f32, order: &mut Vec<u32>) {
    let max = probabilities.iter().copied().fold(0f32, f32::max);
    let floor = min_p * max;
    let all = top_p >= 1.0 && (top_k == 0 || top_k >= probabilities.len());
    if all {
        probabilities.iter_mut().filter(|p| **p < floor).for_each(|p| *p = 0.0);
        return;
    }
    order.clear();
    order.extend((0..probabilities.len() as u32).filter(|&id| probabilities[id as usize] >= floor));
    let rank = |&a: &u32, &b: &u32| {
        probabilities[b as usize].total_cmp(&probabilities[a as usize]).then(a.cmp(&b))
    };
    order.sort_unstable_by(rank);
    if top_k > 0 {
        order.truncate(top_k);
    }
    let mut sum = 0f32;
    let within = order
        .iter()
        .take_while(|&&id| {
            let more = sum < top_p;
            sum += probabilities[id as usize];
            more
        })
        .count();
    order.truncate(within.max(1));
    let mut kept = vec![0f32; probabilities.len()];
    for &id in order.iter() {
        kept[id as usize] = probabilities[id as usize];
    }
    probabilities.copy_from_slice(&kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [1.0, 3.0, 2.0, 3.0, -1.0, 0.0];

    fn draws(settings: Sampling, count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(settings).unwrap();
        (0..count).map(|_| sampler.sample_slice(&mut LOGITS.clone(), &[]).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_whatever_the_seed() {
        assert_eq!(draws(Sampling { seed: 7, ..Sampling::greedy() }, 3), [1, 1, 1]);
    }

    #[test]
    fn a_shortlist_gives_the_tokens_that_all_scores_give() {
        let logits: Vec<f32> = (0..500).map(|i| ((i * 7919) % 1009) as f32 * 0.008).collect();
        for (min_p, top_p, top_k, temperature) in
            [(0.05, 1.0, 0, 1.0), (0.2, 0.5, 0, 0.7), (0.01, 0.9, 5, 1.5), (0.05, 1.0, 0, 0.0)]
        {
            let settings =
                Sampling { min_p, top_p, top_k, temperature, seed: 3, ..Sampling::default() };
            let mut all = Sampler::new(settings.clone()).unwrap();
            let mut short = Sampler::new(settings).unwrap();
            let Reach { reach, temperature } = short.reach().unwrap();
            let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weight = |logit: f32| ((logit - best) / temperature).exp();
            let (ids, scores): (Vec<u32>, Vec<f32>) = (0u32..)
                .zip(logits.iter().copied())
                .filter(|(_, logit)| *logit >= best - reach)
                .unzip();
            assert!(ids.len() < logits.len());
            let of_list: f32 = scores.iter().copied().map(weight).sum();
            let share = of_list / logits.iter().copied().map(weight).sum::<f32>();
            let list = Shortlist { ids, scores, share };
            for _ in 0..200 {
                let wanted = all.sample_slice(&mut logits.clone(), &[]).unwrap();
                assert_eq!(short.sample_shortlist(&list).unwrap(), wanted);
            }
        }
        let penalised = Sampling { presence_penalty: 0.1, ..Sampling::default() };
        assert!(Sampler::new(penalised).unwrap().reach().is_none());
        let empty = Shortlist { ids: vec![], scores: vec![], share: 0.0 };
        let error = Sampler::new(Sampling::default()).unwrap().sample_shortlist(&empty);
        assert!(matches!(error, Err(SampleError::NotFinite { .. })));
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens_and_another_seed_others() {
        let with = |seed| draws(Sampling { seed, min_p: 0.0, ..Sampling::default() }, 64);
        assert_eq!(with(1), with(1));
        assert_ne!(with(1), with(2));
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let settings = Sampling { min_p: 0.0, ..Sampling::default() };
        let drawn = draws(settings, 20_000);
        let sum: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
        for (id, logit) in LOGITS.iter().enumerate() {
            let want = f64::from(*logit).exp() / sum;
            let got = drawn.iter().filter(|&&t| t == id as u32).count() as f64 / 20_000.0;
            assert!((got - want).abs() < 0.015, "token {id}: {got} of {want}");
        }
    }

    #[test]
    fn filters_keep_what_they_promise() {
        let only = |settings: Sampling| {
            let mut drawn = draws(settings, 4000);
            drawn.sort_unstable();
            drawn.dedup();
            drawn
        };
        let open = Sampling { min_p: 0.0, ..Sampling::default() };
        assert_eq!(only(Sampling { top_k: 1, ..open.clone() }), [1]);
        assert_eq!(only(Sampling { top_k: 3, ..open.clone() }), [1, 2, 3]);
        // The two best have 0.40 each, the third 0.15.
        assert_eq!(only(Sampling { top_p: 0.5, ..open.clone() }), [1, 3]);
        assert_eq!(only(Sampling { top_p: 0.0, ..open.clone() }), [1]);
        assert_eq!(only(Sampling { min_p: 0.3, ..open.clone() }), [1, 2, 3]);
        assert_eq!(only(Sampling { min_p: 1.0, ..open }), [1, 3]);
    }

    #[test]
    fn penalties_and_biases_change_the_choice() {
        let greedy = Sampling::greedy();
        let drawn = draws(Sampling { presence_penalty: 0.5, ..greedy.clone() }, 4);
        assert_eq!(drawn, [1, 3, 1, 1], "once is once, however often it comes");
        let drawn = draws(Sampling { frequency_penalty: 0.4, ..greedy.clone() }, 6);
        assert_eq!(drawn, [1, 3, 1, 3, 1, 3]);
        let bias = HashMap::from([(1, f32::NEG_INFINITY), (4, 4.5)]);
        assert_eq!(draws(Sampling { logit_bias: bias, ..greedy.clone() }, 1), [4]);
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..greedy }).unwrap();
        assert_eq!(sampler.sample_slice(&mut LOGITS.clone(), &[1, 3, 1, 99]).unwrap(), 2);
    }

    #[test]
    fn logits_that_are_not_finite_are_an_error_not_a_token() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut sampler = Sampler::new(Sampling::default()).unwrap();
            assert!(matches!(
                sampler.sample_slice(&mut [0.0, bad, 1.0], &[]),
                Err(SampleError::NotFinite { position: 0 })
            ));
        }
    }

    #[test]
    fn a_restriction_has_the_last_word_and_must_leave_a_token() {
        let mut sampler = Sampler::new(Sampling {
            logit_bias: HashMap::from([(1, 50.0)]),
            ..Sampling::default()
        })
        .unwrap();
        let only = |allowed: Option<usize>| {
            move |logits: &mut [f32], _: Option<f32>| {
                for (id, logit) in logits.iter_mut().enumerate() {
                    if Some(id) != allowed {
                        *logit = f32::NEG_INFINITY;
                    }
                }
                Ok::<_, SampleError>(())
            }
        };
        let mut draw = |allowed| sampler.sample_restricted(&mut LOGITS.clone(), &[], only(allowed));
        assert_eq!(draw(Some(4)).unwrap(), 4);
        assert!(matches!(draw(None), Err(SampleError::NoneLeft)));
    }

    #[test]
    fn what_is_out_of_reach_makes_no_difference() {
        let logits: Vec<f32> = (0..500).map(|i| ((i * 7919) % 1009) as f32 * 0.008).collect();
        for (min_p, top_p, top_k, temperature) in [
            (0.05, 1.0, 0, 1.0),
            (0.2, 1.0, 7, 0.7),
            (0.05, 1.0, 0, 0.0),
            (0.05, 0.9, 0, 1.0),
            (0.0, 1.0, 0, 1.0),
        ] {
            let settings =
                Sampling { min_p, top_p, top_k, temperature, seed: 3, ..Sampling::default() };
            let sampler = || Sampler::new(settings.clone()).unwrap();
            // Every third token may come; a restriction that knows its reach leaves out the rest too.
            let restrict = |far: bool| {
                move |logits: &mut [f32], reach: Option<f32>| {
                    let may = |id: usize| id.is_multiple_of(3);
                    let best = logits.iter().enumerate().filter(|(id, _)| may(*id));
                    let best = best.map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max);
                    let floor =
                        reach.filter(|_| far).map_or(f32::NEG_INFINITY, |reach| best - reach);
                    let out = |(id, logit): (usize, &mut f32)| {
                        if !may(id) || *logit < floor {
                            *logit = f32::NEG_INFINITY;
                        }
                    };
                    logits.iter_mut().enumerate().for_each(out);
                    Ok::<_, SampleError>(())
                }
            };
            let draw = |sampler: &mut Sampler, far| {
                sampler.sample_restricted(&mut logits.clone(), &[], restrict(far)).unwrap()
            };
            let (mut near, mut all) = (sampler(), sampler());
            for _ in 0..200 {
                assert_eq!(draw(&mut near, true), draw(&mut all, false), "{settings:?}");
            }
        }
    }

    #[test]
    fn settings_outside_their_range_are_named() {
        let base = Sampling::default();
        for (settings, name) in [
            (Sampling { temperature: -1.0, ..base.clone() }, "temperature"),
            (Sampling { temperature: f64::NAN, ..base.clone() }, "temperature"),
            (Sampling { top_p: 1.5, ..base.clone() }, "top_p"),
            (Sampling { min_p: f64::INFINITY, ..base.clone() }, "min_p"),
            (Sampling { repetition_penalty: 0.0, ..base.clone() }, "repetition_penalty"),
            (Sampling { logit_bias: HashMap::from([(5, f32::NAN)]), ..base }, "token 5"),
        ] {
            let error = Sampler::new(settings).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(name), "{name}: {error}");
        }
    }
}
