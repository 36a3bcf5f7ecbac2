//! Which jobs run, and what the next forward pass is made of.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use super::choose::{guarded, Chooser};
use super::footprint::Footprint;
use super::generate::Finish;
use super::job::{Chosen, Job, Namespace, Update};
use super::prefixes::{Found, Prefixes};
use super::reply::Reply;
use super::running::{Running, Start};
use super::share::share;
use super::stats::Stats;
use super::{Engine, EngineError, Limits};
use crate::cache::Snapshot;
use crate::model::{Input, Logits};
use crate::sample::Sampler;

/// Tokens that another job must be about to compute for a job to wait for them.
const WORTH_WAITING: usize = 64;

/// Jobs that wait and run, and what is remembered for those to come. Owned by the thread that owns
/// the engine; between two calls of [`Scheduler::step`] jobs may come and go.
pub(super) struct Scheduler {
    limits: Limits,
    footprint: Footprint,
    waiting: VecDeque<Waiting>,
    /// In order of arrival.
    running: Vec<Running>,
    prefixes: Prefixes,
    stats: Stats,
    next_id: u64,
    /// The next job does not fit into memory until another one ends.
    full: bool,
}

/// A job that is yet to begin.
struct Waiting {
    start: Start,
    /// The job that computes a prefix of this one, and the length at which it has.
    held: Option<(u64, usize)>,
}

/// What a call of [`Scheduler::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A forward pass.
    Worked,
    /// Nothing: all readers have to catch up.
    Blocked,
    /// Nothing: there are no jobs.
    Idle,
}

/// What a forward pass did for one job.
enum Ran {
    /// It had no part in it.
    Not,
    /// Some of its tokens were run.
    Part,
    /// All that are known were run: these are the logits of the next.
    All(Vec<f32>),
    /// It cannot go on.
    Failed(EngineError),
}

impl Scheduler {
    pub fn new(engine: &Engine, limits: Limits) -> Result<Self, EngineError> {
        Ok(Self {
            limits,
            footprint: Footprint::new(&engine.model.new_cache()?),
            waiting: VecDeque::new(),
            running: Vec::new(),
            prefixes: Prefixes::default(),
            stats: Stats::default(),
            next_id: 0,
            full: false,
        })
    }

    /// Takes a job into the queue; one that can never run fails at once.
    pub fn enqueue(&mut self, engine: &Engine, job: Job, reply: Reply) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        match self.check(engine, &job) {
            Ok(sampler) => {
                let Job { prompt, max_tokens, guide, logprobs, namespace, landmarks, .. } = job;
                let chooser = Chooser { sampler, guide, logprobs };
                let max_tokens = max_tokens.min(engine.context() + 1 - prompt.len());
                let start = Start { id, namespace, prompt, landmarks, max_tokens, chooser, reply };
                self.waiting.push_back(Waiting { start, held: None });
            }
            Err(error) => self.fail(reply, error),
        }
        id
    }

    fn check(&self, engine: &Engine, job: &Job) -> Result<Sampler, EngineError> {
        let tokens = engine.check_prompt(&job.prompt, job.max_tokens)?;
        check_memory(&self.footprint, tokens, self.limits.kv_bytes)?;
        Ok(Sampler::new(job.sampling.clone())?)
    }

    /// Lets jobs go and come, runs one forward pass and tells what came of it.
    pub fn step(&mut self, engine: &Engine) -> Step {
        self.drop_cancelled();
        self.admit(engine);
        let wishes: Vec<_> = self.running.iter_mut().map(Running::wish).collect();
        let shares = share(&wishes, self.limits.chunk_tokens);
        let tokens = shares.iter().sum();
        if tokens == 0 {
            return if self.is_empty() { Step::Idle } else { Step::Blocked };
        }
        let start = Instant::now();
        let mut ran = self.run(engine, &shares);
        for (index, ran) in ran.iter().enumerate() {
            if matches!(ran, Ran::Part | Ran::All(_)) && self.running[index].is_frontier() {
                self.keep(index);
            }
        }
        let chosen = self.choose(&mut ran);
        // From the last on: who leaves changes the places of those after it.
        for (index, (ran, chosen)) in ran.into_iter().zip(chosen).enumerate().rev() {
            match (ran, chosen) {
                (Ran::Failed(error), _) | (_, Some(Err(error))) => {
                    self.retire(index, Err(error));
                }
                (Ran::All(_), chosen) => {
                    self.tell_progress(index);
                    self.running[index].begin_answer();
                    let chosen = chosen.and_then(Result::ok);
                    if let Some(finish) = self.take(engine, index, chosen) {
                        self.retire(index, Ok(finish));
                    }
                }
                (Ran::Part, _) => self.tell_progress(index),
                (Ran::Not, _) => {}
            }
        }
        self.stats.step(tokens, start.elapsed());
        Step::Worked
    }

    /// Ends a job before its time.
    pub fn cut(&mut self, id: u64, finish: Finish) {
        if let Some(index) = self.running.iter().position(|running| running.id == id) {
            self.retire(index, Ok(finish));
        }
    }

    /// Ends all that run.
    pub fn cut_all(&mut self, finish: Finish) {
        while !self.running.is_empty() {
            self.retire(0, Ok(finish));
        }
    }

    /// Turns away all that wait.
    pub fn turn_away(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            self.fail(waiting.start.reply, EngineError::Stopping);
        }
    }

    /// Fails all jobs, and touches nothing else.
    pub fn abandon(&mut self, error: EngineError) {
        let error = Arc::new(error);
        let running = self.running.drain(..).map(|running| running.reply);
        let waiting = self.waiting.drain(..).map(|waiting| waiting.start.reply);
        running.chain(waiting).for_each(|reply| reply.end(Update::Failed(error.clone())));
    }

    /// Whether there are no jobs.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// How many jobs wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes kept for prompts to come.
    pub fn kept_bytes(&self) -> usize {
        self.prefixes.bytes()
    }

    /// What is going on, and what was done.
    pub fn stats(&mut self) -> Stats {
        let paused = self.running.iter_mut().map(|running| running.reply.is_behind());
        Stats {
            paused: paused.filter(|behind| *behind).count(),
            running: self.running.len(),
            waiting: self.waiting.len(),
            reserved_bytes: self.reserved(),
            kept_bytes: self.prefixes.bytes(),
            frontiers: self.prefixes.frontiers(),
            ..self.stats.clone()
        }
    }

    fn reserved(&self) -> usize {
        self.running.iter().map(|running| running.reserved(&self.footprint)).sum()
    }

    fn drop_cancelled(&mut self) {
        for index in (0..self.running.len()).rev() {
            if self.running[index].reply.is_gone() {
                self.stats.cancelled += 1;
                self.retire(index, Ok(Finish::Caller));
            }
        }
        let before = self.waiting.len();
        self.waiting.retain(|waiting| !waiting.start.reply.is_gone());
        let gone = before - self.waiting.len();
        self.stats.cancelled += gone as u64;
        // Another one may be next.
        self.full &= gone == 0;
    }

    fn admit(&mut self, engine: &Engine) {
        while !self.full && self.running.len() < self.limits.parallel {
            let Some(next) = self.next() else { return };
            let Start { namespace, ref prompt, max_tokens, .. } = self.waiting[next].start;
            let found = self.prefixes.find(namespace, prompt);
            let held = wait_for(&mut self.running, namespace, prompt, found.len());
            if held.is_some() {
                self.waiting[next].held = held;
                self.stats.prefix_waits += 1;
                continue;
            }
            let tokens = prompt.len().saturating_add(max_tokens);
            let needed = self.footprint.reserve(tokens, found.len());
            if !self.make_room(needed) {
                self.full = true;
                return;
            }
            if let Some(Waiting { start, .. }) = self.waiting.remove(next) {
                self.begin(engine, start, found);
            }
        }
    }

    /// The waiting job whose turn it is: of the namespace of which the fewest run, the one that
    /// waits longest.
    fn next(&mut self) -> Option<usize> {
        let mut running: HashMap<Namespace, usize> = HashMap::new();
        for job in &self.running {
            *running.entry(job.namespace).or_default() += 1;
        }
        let held = |held: &(u64, usize)| {
            self.running.iter().any(|job| job.id == held.0 && job.cache.len() < held.1)
        };
        let of = |namespace| running.get(&namespace).copied().unwrap_or(0);
        self.waiting
            .iter()
            .enumerate()
            .filter(|(_, waiting)| !waiting.held.as_ref().is_some_and(held))
            .map(|(index, waiting)| (of(waiting.start.namespace), index))
            .filter(|(running, _)| *running < self.limits.per_namespace)
            .min()
            .map(|(_, index)| index)
    }

    /// Gives up what is kept for later until `needed` bytes more can be reserved, if they can be
    /// at all.
    fn make_room(&mut self, needed: usize) -> bool {
        let reserved = self.reserved().saturating_add(needed);
        let left = self.limits.kv_bytes.checked_sub(reserved);
        let fits = left.is_some_and(|left| {
            self.prefixes.bytes() <= left || self.prefixes.pinned_bytes() <= left
        });
        // A lone job was found to fit; what it starts from may be more than it needs.
        if fits || self.running.is_empty() {
            self.stats.evicted += self.prefixes.shrink(left.unwrap_or(0)) as u64;
        }
        fits || self.running.is_empty()
    }

    fn begin(&mut self, engine: &Engine, start: Start, found: Found) {
        let shared = found.shared;
        match Running::start(engine, start, found) {
            Ok(mut running) => {
                let (cached, total) = (running.cached(), running.prompt);
                tracing::debug!(job = running.id, prompt = total, cached, shared, "job begins");
                self.stats.prompt_tokens += total as u64;
                self.stats.cached_memory_tokens += cached as u64;
                running.reply.tell(Update::Prefill { cached, done: cached, total });
                self.running.push(running);
            }
            Err((reply, error)) => self.fail(reply, error),
        }
    }

    /// One forward pass. If it fails for all, each has one of its own, so that only the one that
    /// it fails for has to go.
    fn run(&mut self, engine: &Engine, shares: &[usize]) -> Vec<Ran> {
        let mut members: Vec<_> =
            self.running.iter_mut().zip(shares).filter(|(_, share)| **share > 0).collect();
        let goals: Vec<usize> =
            members.iter().map(|(running, share)| running.cache.len() + **share).collect();
        let ran = match forward(engine, &mut members) {
            Ok(ran) => ran,
            Err(error) if members.len() == 1 => vec![Ran::Failed(error)],
            Err(error) => {
                tracing::warn!(%error, jobs = members.len(), "a pass failed: one by one");
                let chunk = self.limits.chunk_tokens;
                let alone = members.into_iter().zip(goals);
                alone.map(|((running, _), goal)| alone_to(engine, running, goal, chunk)).collect()
            }
        };
        let mut ran = ran.into_iter();
        let of = |share: &usize| if *share > 0 { ran.next() } else { None };
        shares.iter().map(of).map(|ran| ran.unwrap_or(Ran::Not)).collect()
    }

    /// The next tokens of all jobs that have run what they know, unless they want none.
    fn choose(&mut self, ran: &mut [Ran]) -> Vec<Option<Result<Chosen, EngineError>>> {
        let choose = |(running, ran): (&mut Running, &mut Ran)| match ran {
            Ran::All(logits) if running.generated() < running.max_tokens => {
                Some(running.chooser.choose(logits, &running.tokens))
            }
            _ => None,
        };
        match ran.iter().filter(|ran| matches!(ran, Ran::All(_))).count() {
            0 | 1 => self.running.iter_mut().zip(ran).map(choose).collect(),
            _ => self.running.par_iter_mut().zip(ran).map(choose).collect(),
        }
    }

    fn tell_progress(&mut self, index: usize) {
        let running = &mut self.running[index];
        if running.generated() == 0 {
            let (cached, total) = (running.cached(), running.prompt);
            running.reply.tell(Update::Prefill { cached, done: running.cache.len(), total });
        }
    }

    /// Adds a token to an answer; says if it is the last.
    fn take(&mut self, engine: &Engine, index: usize, chosen: Option<Chosen>) -> Option<Finish> {
        let running = &mut self.running[index];
        let Some(chosen) = chosen else { return Some(Finish::Length) };
        self.stats.generated_tokens += 1;
        if chosen.token == engine.tokenizer().control().eos {
            return Some(Finish::Stop);
        }
        running.tokens.push(chosen.token);
        running.reply.tell(Update::Token(chosen));
        if running.tokens.len() > engine.context() {
            Some(Finish::Context)
        } else if running.generated() >= running.max_tokens {
            Some(Finish::Length)
        } else {
            None
        }
    }

    /// Keeps the present state of a running job for others, and for itself if a pass fails.
    fn keep(&mut self, index: usize) {
        let running = &mut self.running[index];
        let tokens = &running.tokens[..running.cache.len()];
        if self.prefixes.contains(running.namespace, tokens) {
            return;
        }
        match running.cache.snapshot() {
            Ok(state) => {
                let state = Arc::new(state);
                self.prefixes.insert(running.namespace, tokens, state.clone());
                running.rebase(state);
                self.stay_within_budget();
            }
            Err(error) => tracing::warn!(%error, "a state could not be kept"),
        }
    }

    fn stay_within_budget(&mut self) {
        let left = self.limits.kv_bytes.saturating_sub(self.reserved());
        self.stats.evicted += self.prefixes.shrink(left) as u64;
    }

    /// Ends a job, and keeps what it has computed.
    fn retire(&mut self, index: usize, ended: Result<Finish, EngineError>) {
        let running = self.running.remove(index);
        self.full = false;
        let last = match ended {
            Ok(finish) => Ok(running.outcome(finish)),
            Err(error) => Err(error),
        };
        let Running { namespace, tokens, cache, reply, .. } = running;
        let len = cache.len();
        if let Some(state) = cache.into_snapshot().filter(|state: &Snapshot| !state.is_empty()) {
            self.prefixes.insert(namespace, &tokens[..len], Arc::new(state));
        }
        self.stay_within_budget();
        match last {
            Ok(outcome) => {
                self.stats.ended += 1;
                reply.end(Update::End(outcome));
            }
            Err(error) => self.fail(reply, error),
        }
    }

    fn fail(&mut self, reply: Reply, error: EngineError) {
        self.stats.ended += 1;
        self.stats.failed += 1;
        reply.end(Update::Failed(Arc::new(error)));
    }
}

/// Refuses what fits into no memory.
pub(super) fn check_memory(
    footprint: &Footprint,
    tokens: usize,
    budget: usize,
) -> Result<(), EngineError> {
    let needed = footprint.reserve(tokens, 0);
    if needed > budget {
        return Err(EngineError::Memory { tokens, needed, budget });
    }
    Ok(())
}

/// The running job that is about to compute most of `prompt` beyond its first `known` tokens, if
/// that is worth waiting for, and the length at which it has.
fn wait_for(
    running: &mut [Running],
    namespace: Namespace,
    prompt: &[u32],
    known: usize,
) -> Option<(u64, usize)> {
    let (shared, job) = running
        .iter_mut()
        // One that is behind what is known already would be waited for in vain.
        .filter(|job| job.namespace == namespace && job.is_reading() && job.cache.len() >= known)
        .map(|job| (job.shared(prompt), job))
        .filter(|(shared, job)| *shared > job.cache.len() && *shared >= known + WORTH_WAITING)
        .max_by_key(|(shared, _)| *shared)?;
    job.keep_at(shared);
    Some((job.id, shared))
}

/// One forward pass of some jobs, each with so many of its tokens.
fn forward(
    engine: &Engine,
    members: &mut [(&mut Running, &usize)],
) -> Result<Vec<Ran>, EngineError> {
    let complete: Vec<bool> = members
        .iter()
        .map(|(running, share)| running.cache.len() + **share == running.tokens.len())
        .collect();
    let wanted = if complete.contains(&true) { Logits::Last } else { Logits::None };
    let mut inputs: Vec<Input<'_>> = members
        .iter_mut()
        .map(|(running, share)| {
            let at = running.cache.len();
            Input { tokens: &running.tokens[at..at + **share], cache: &mut running.cache }
        })
        .collect();
    let mut logits = guarded(|| {
        let logits = engine.model.forward(&mut inputs, wanted, &engine.workspace)?;
        let rows = if wanted == Logits::None { Vec::new() } else { logits.to_vec2()? };
        Ok(rows.into_iter())
    })?;
    let ran = complete.into_iter().map(|complete| match (complete, logits.next()) {
        (true, Some(logits)) => Ran::All(logits),
        _ => Ran::Part,
    });
    Ok(ran.collect())
}

/// Runs one job alone up to `goal`, after a pass has failed.
fn alone_to(engine: &Engine, running: &mut Running, goal: usize, chunk: usize) -> Ran {
    if let Err(error) = running.mend(goal) {
        return Ran::Failed(error);
    }
    loop {
        let share = (goal - running.cache.len()).min(chunk);
        match forward(engine, &mut [(&mut *running, &share)]) {
            Ok(mut ran) if running.cache.len() >= goal => return ran.pop().unwrap_or(Ran::Part),
            Ok(_) => {}
            Err(error) => return Ran::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests;
