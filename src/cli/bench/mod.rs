//! `ds4 bench`: how fast prompts are read and answers written, at growing context.

mod bandwidth;
mod chart;
mod report;
mod timeline;

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use candle_core::Device;

use crate::cache::Cache;
use crate::engine::{Engine, Limits};
use crate::model::{Input, Logits, Model};
use crate::ops::device::{profile, timeline, Class};
use crate::ops::Workspace;
use crate::prompt::{Conversation, Message};
use report::{Report, Row};

/// Steps that `--profile` takes the mean of.
const PROFILED_STEPS: usize = 3;
/// Recorded steps that the GPU's own timeline is the mean of, if kernels keep one.
const TIMELINE_STEPS: usize = 4;
/// More tokens than any context has, and more sequences than any memory holds.
const MOST_CONTEXT: usize = 1 << 24;
const MOST_SEQUENCES: usize = 4096;

/// What is read.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Made-up text: ids that mean nothing but take the time of others.
    Synthetic,
    /// A file's text as it is.
    Text(String),
    /// A file's text as a question, after a system prompt.
    Chat {
        /// The question.
        text: String,
        /// The system prompt, if there is one.
        system: Option<String>,
    },
}

/// What is measured and where the numbers go.
#[derive(Clone, Debug)]
pub struct Bench {
    /// What is read.
    pub prompt: Prompt,
    /// The first context at which decoding is measured.
    pub ctx_start: usize,
    /// The last.
    pub ctx_max: usize,
    /// Tokens that must fit; more than are used if decoding is to see a larger allocation.
    pub ctx_alloc: Option<usize>,
    /// From one context to the next: times this, if above 1,
    pub step_mul: f64,
    /// or else plus this.
    pub step_incr: usize,
    /// Tokens generated at each.
    pub gen_tokens: usize,
    /// Sequences that generate at once.
    pub batch: usize,
    /// Tokens read at a time.
    pub chunk: Option<usize>,
    /// Where the table goes instead of standard output.
    pub csv: Option<PathBuf>,
    /// All numbers as one JSON object on standard output.
    pub json: bool,
    /// A chart.
    pub svg: Option<PathBuf>,
    /// Contexts are made up but for their last token.
    pub made_up_cache: bool,
    /// Where a step's time goes.
    pub profile: bool,
}

impl Bench {
    /// The contexts at which decoding is measured.
    ///
    /// # Errors
    /// Settings that make none.
    pub fn frontiers(&self) -> Result<Vec<usize>> {
        let Self { ctx_start, ctx_max, step_mul, step_incr, .. } = *self;
        ensure!(ctx_start > 0, "--ctx-start 0: decoding goes on from at least one token");
        ensure!(
            ctx_start <= ctx_max,
            "--ctx-start {ctx_start} is above --ctx-max {ctx_max}: swap or change them"
        );
        ensure!(
            ctx_max <= MOST_CONTEXT,
            "--ctx-max {ctx_max}: no model has more than {MOST_CONTEXT} tokens of context"
        );
        ensure!(step_mul >= 1.0 && step_mul.is_finite(), "--step-mul {step_mul}: at least 1");
        ensure!(
            step_mul > 1.0 || step_incr > 0 || ctx_start == ctx_max,
            "--step-incr 0 with --step-mul 1 goes nowhere: raise one of them"
        );
        let mut frontiers = vec![ctx_start];
        let mut at = ctx_start;
        while at < ctx_max {
            let next = match step_mul > 1.0 {
                true => ((at as f64 * step_mul).ceil() as usize).max(at + 1),
                false => at.saturating_add(step_incr),
            };
            at = next.min(ctx_max);
            frontiers.push(at);
        }
        Ok(frontiers)
    }

    /// Measures and prints. `note` hears what is being done.
    ///
    /// # Errors
    /// Settings that contradict each other or the model, a prompt that is too short, files that cannot
    /// be written, or the device.
    pub fn run(
        &self,
        engine: &Engine,
        out: &mut dyn Write,
        note: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let frontiers = self.frontiers()?;
        ensure!(
            (1..=MOST_SEQUENCES).contains(&self.batch),
            "--batch {}: from 1 to {MOST_SEQUENCES} sequences can generate at once",
            self.batch
        );
        ensure!(self.chunk != Some(0), "--chunk 0: at least one token must be read at a time");
        let model = engine.model();
        let most = model.config().context_length;
        let profiled = if self.profile { PROFILED_STEPS + TIMELINE_STEPS + 1 } else { 0 };
        let needed = self.ctx_max.saturating_add(self.gen_tokens).saturating_add(profiled);
        let needed = needed.max(self.ctx_alloc.unwrap_or(0));
        ensure!(
            needed <= most,
            "{needed} tokens are needed (--ctx-max, --gen-tokens, --ctx-alloc), the model has room for \
             {most}: lower them"
        );
        let ids = self.ids(engine)?;
        // Opened first: a run of minutes must not end at a folder that is not there.
        let mut csv = self.csv.as_ref().map(create).transpose()?;
        let mut svg = self.svg.as_ref().map(create).transpose()?;

        let copy_rate = bandwidth::copy_rate(model.device())?;
        note(&format!("memory copies at {:.1} GB/s (read and written)", copy_rate / 1e9));
        let mut report = Report::new(model, self.batch, copy_rate);
        let csv: &mut dyn Write = match &mut csv {
            Some(file) => file,
            None => &mut *out,
        };
        let to_stdout = !(self.json && self.csv.is_none());
        if to_stdout {
            writeln!(csv, "{}", report::COLUMNS)?;
        }
        let mut run = Run::new(engine, self)?;
        for (index, &frontier) in frontiers.iter().enumerate() {
            let last = index + 1 == frontiers.len();
            let row = run.measure(&ids[..frontier], last && self.profile)?;
            if to_stdout {
                writeln!(csv, "{}", row.csv(copy_rate))?;
                csv.flush()?;
            }
            note(&row.words(copy_rate));
            report.rows.push(row);
        }
        report.profile = std::mem::take(&mut run.classes);
        if self.profile {
            note(&report.profile_table(PROFILED_STEPS));
            if let (Some(median), Some(most)) =
                (run.steps.get(run.steps.len() / 2), run.steps.last())
            {
                note(&format!("steps as they are: {median:.2?} in the middle, {most:.2?} at most"));
            }
            if let Some(timeline) = &run.timeline {
                note(timeline);
            }
        }
        if self.json {
            writeln!(out, "{}", report.json(PROFILED_STEPS))?;
        }
        if let Some(svg) = &mut svg {
            svg.write_all(chart::svg(&report).as_bytes())?;
            svg.flush()?;
        }
        Ok(out.flush()?)
    }

    /// As many ids as the largest context has.
    fn ids(&self, engine: &Engine) -> Result<Vec<u32>> {
        let tokenizer = engine.tokenizer();
        let mut ids = match &self.prompt {
            Prompt::Synthetic => return Ok(synthetic(engine, self.ctx_max)),
            Prompt::Text(text) => {
                let mut ids = vec![tokenizer.control().bos];
                ids.extend(tokenizer.encode(text));
                ids
            }
            Prompt::Chat { text, system } => {
                let mut messages: Vec<Message> = system.iter().map(Message::system).collect();
                messages.push(Message::user(text));
                let conversation = Conversation { messages, ..Conversation::default() };
                conversation.render().ids(tokenizer)?
            }
        };
        let found = ids.len();
        ensure!(
            found >= self.ctx_max,
            "the prompt has {found} tokens, --ctx-max is {}: give a longer file, lower --ctx-max, or \
             leave the file out for made-up text",
            self.ctx_max
        );
        ids.truncate(self.ctx_max);
        Ok(ids)
    }
}

/// Ids without meaning, the same each time; control tokens are left out.
fn synthetic(engine: &Engine, count: usize) -> Vec<u32> {
    let vocab = engine.model().config().vocab_size as u64;
    let control = engine.tokenizer().control();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut ids = vec![control.bos];
    while ids.len() < count {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let id = ((state >> 33) % vocab) as u32;
        if id != control.bos && id != control.eos {
            ids.push(id);
        }
    }
    ids.truncate(count);
    ids
}

fn create(path: &PathBuf) -> Result<std::fs::File> {
    std::fs::File::create(path)
        .with_context(|| format!("{}: cannot be written, choose another file", path.display()))
}

/// One model, one growing sequence, and copies of it that generate.
struct Run<'a> {
    model: &'a Model,
    eos: u32,
    ws: Workspace,
    cache: Cache,
    copies: Vec<Cache>,
    chunk: usize,
    gen_tokens: usize,
    made_up: bool,
    classes: Vec<Class>,
    /// How long each step took, shortest first.
    steps: Vec<Duration>,
    timeline: Option<String>,
}

impl<'a> Run<'a> {
    fn new(engine: &'a Engine, bench: &Bench) -> Result<Self> {
        let model = engine.model();
        let copies = (1..bench.batch).map(|_| model.new_cache()).collect::<Result<_, _>>()?;
        // As much as the engine reads when it has nothing else to do.
        let own = Limits::of(model.device()).chunk_tokens;
        Ok(Self {
            model,
            eos: engine.tokenizer().control().eos,
            ws: Workspace::new(model.device()),
            cache: model.new_cache()?,
            copies,
            chunk: bench.chunk.unwrap_or(own),
            gen_tokens: bench.gen_tokens,
            made_up: bench.made_up_cache,
            classes: Vec::new(),
            steps: Vec::new(),
            timeline: None,
        })
    }

    /// Reads up to the end of `ids`, then generates from there and goes back.
    fn measure(&mut self, ids: &[u32], profiled: bool) -> Result<Row> {
        if self.made_up {
            let (config, device) = (self.model.config(), self.model.device());
            self.cache = Cache::made_up(config, device, ids.len() - 1)?;
        }
        let known = self.cache.len();
        let began = Instant::now();
        let scores = self.read(&ids[known..])?;
        let prefill = began.elapsed();

        let snapshot = self.cache.snapshot()?;
        for copy in &mut self.copies {
            copy.restore(&snapshot)?;
        }
        let sequences = 1 + self.copies.len();
        // Each sequence goes its own way from its first token on: equal ones would share experts.
        let mut next = likeliest(&scores, self.eos, sequences);
        let began = Instant::now();
        let mut steps_taken = Vec::new();
        for _ in 0..self.gen_tokens {
            let began = Instant::now();
            next = self.step(&next)?;
            steps_taken.push(began.elapsed());
        }
        let decode = began.elapsed();
        let kvcache_bytes =
            self.cache.bytes() + self.copies.iter().map(Cache::bytes).sum::<usize>();
        let steps = if profiled { PROFILED_STEPS } else { usize::from(self.gen_tokens > 0) };
        let (_, classes) = profile(|| {
            for _ in 0..steps {
                next = self.step(&next).map_err(candle_core::Error::wrap)?;
            }
            Ok(())
        })?;
        let step_bytes = classes.iter().map(|class| class.bytes).sum::<u64>() / steps.max(1) as u64;
        if profiled {
            self.classes = classes;
            steps_taken.sort();
            self.steps = steps_taken;
            // Recorded steps, which the profile's are not.
            if timeline(self.model.device())?.is_some() {
                next = self.step(&next)?;
                timeline(self.model.device())?;
                for _ in 0..TIMELINE_STEPS {
                    next = self.step(&next)?;
                }
                let records = timeline(self.model.device())?;
                self.timeline = records.map(|blocks| timeline::table(blocks, TIMELINE_STEPS));
            }
        }
        self.cache.restore(&snapshot)?;
        Ok(Row {
            ctx_tokens: ids.len(),
            prefill_tokens: ids.len() - known,
            prefill,
            sequences,
            gen_tokens: self.gen_tokens,
            decode,
            kvcache_bytes,
            step_bytes,
        })
    }

    /// The scores after the last of `ids`.
    fn read(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut scores = Vec::new();
        let count = ids.len().div_ceil(self.chunk);
        for (index, tokens) in ids.chunks(self.chunk).enumerate() {
            let wanted = if index + 1 == count { Logits::Last } else { Logits::None };
            let input = Input { tokens, cache: &mut self.cache };
            let logits = self.model.forward(&mut [input], wanted, &self.ws)?;
            if wanted == Logits::Last {
                scores = logits.flatten_all()?.to_vec1()?;
            }
        }
        synchronize(self.model.device())?;
        Ok(scores)
    }

    /// One token of each sequence; the likeliest next ones.
    fn step(&mut self, tokens: &[u32]) -> Result<Vec<u32>> {
        let caches = std::iter::once(&mut self.cache).chain(&mut self.copies);
        let mut inputs: Vec<_> =
            tokens.chunks(1).zip(caches).map(|(tokens, cache)| Input { tokens, cache }).collect();
        let logits = self.model.forward(&mut inputs, Logits::Last, &self.ws)?;
        let ids = crate::ops::likeliest(&logits, Some(self.eos), &self.ws)?;
        ids.into_iter()
            .map(|id| id.context("the model's scores are not finite: the file is damaged"))
            .collect()
    }
}

/// The `count` ids with the highest scores, end of sequence left out: an answer must not end early.
fn likeliest(scores: &[f32], eos: u32, count: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(count + 1);
    for (id, score) in scores.iter().enumerate() {
        if id == eos as usize {
            continue;
        }
        let at = best.partition_point(|&other| scores[other as usize] >= *score);
        if at < count {
            best.insert(at, id as u32);
            best.truncate(count);
        }
    }
    // A vocabulary smaller than the batch.
    let found = best.len().max(1);
    (0..count).map(|i| best.get(i % found).copied().unwrap_or(0)).collect()
}

/// What was queued has been done.
fn synchronize(device: &Device) -> Result<()> {
    Ok(device.synchronize()?)
}

/// Tokens per second; 0 if there were none.
fn rate(tokens: usize, time: Duration) -> f64 {
    match tokens == 0 || time.is_zero() {
        true => 0.0,
        false => tokens as f64 / time.as_secs_f64(),
    }
}

#[cfg(test)]
mod tests;
