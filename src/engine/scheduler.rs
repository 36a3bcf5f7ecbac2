//! Which jobs run, and what the next forward pass is made of.

mod admit;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use super::choose::Chooser;
use super::disk::{worth_saving, Disk, Save};
use super::footprint::Footprint;
use super::generate::Finish;
use super::job::{Chosen, Job, Namespace, Update};
use super::pass::{run, Ran, Scores};
use super::prefixes::Prefixes;
use super::reply::Reply;
use super::running::{Running, Start};
use super::share::share;
use super::stats::Stats;
use super::{Engine, EngineError, Limits};
use crate::cache::Snapshot;
use crate::sample::{SampleError, Sampler};
use admit::Waiting;

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
    disk: Option<Disk>,
    stopping: bool,
    next_id: u64,
    /// The next job does not fit into memory until another one ends.
    full: bool,
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

impl Scheduler {
    pub fn new(engine: &Engine, limits: Limits) -> Result<Self, EngineError> {
        Ok(Self {
            limits,
            footprint: Footprint::new(&engine.model.new_cache()?),
            waiting: VecDeque::new(),
            running: Vec::new(),
            prefixes: Prefixes::default(),
            stats: Stats::default(),
            disk: None,
            stopping: false,
            next_id: 0,
            full: false,
        })
    }

    /// The same with a store to read prefixes from and to write states to.
    pub fn with_disk(mut self, disk: Option<Disk>) -> Self {
        self.disk = disk;
        self
    }

    /// What is kept of earlier prompts and answers.
    pub fn prefixes_mut(&mut self) -> &mut Prefixes {
        &mut self.prefixes
    }

    /// Gives the store back.
    pub fn take_disk(&mut self) -> Option<Disk> {
        self.disk.take()
    }

    /// Takes a job into the queue; one that can never run fails at once.
    pub fn enqueue(&mut self, engine: &Engine, job: Job, reply: Reply) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        match self.check(engine, &job) {
            Ok(sampler) => {
                let Job { prompt, guide, logprobs, namespace, landmarks, .. } = job;
                let chooser = Chooser { sampler, guide, logprobs };
                let max_tokens = job.max_tokens.min(engine.context() + 1 - prompt.len());
                let room = job.room.min(max_tokens);
                let start =
                    Start { id, namespace, prompt, landmarks, max_tokens, room, chooser, reply };
                self.waiting.push_back(Waiting::new(start));
            }
            Err(error) => self.fail(reply, error),
        }
        id
    }

    fn check(&self, engine: &Engine, job: &Job) -> Result<Sampler, EngineError> {
        let tokens = engine.check_prompt(&job.prompt, job.max_tokens.min(job.room))?;
        check_memory(&self.footprint, tokens, self.limits.kv_bytes)?;
        Ok(Sampler::new(job.sampling.clone())?)
    }

    /// Lets jobs go and come, runs one forward pass and tells what came of it.
    pub fn step(&mut self, engine: &Engine) -> Step {
        self.drop_cancelled();
        self.take_loaded();
        self.make_answers_room();
        self.admit(engine);
        let wishes: Vec<_> = self.running.iter_mut().map(Running::wish).collect();
        // Who lacks one token has a reader that waits for it.
        let chunk = self.limits.chunk(wishes.iter().any(|wish| wish.remaining == 1));
        let shares = share(&wishes, chunk);
        let tokens = shares.iter().sum();
        if tokens == 0 {
            return if self.is_empty() { Step::Idle } else { Step::Blocked };
        }
        let start = Instant::now();
        let Self { running, prefixes, stats, .. } = self;
        let relieve = || {
            stats.evicted += prefixes.shrink(0) as u64;
            if let Err(error) = engine.workspace.shed() {
                tracing::warn!(%error, "the device's memory could not be given back");
            }
        };
        let mut ran = run(engine, running, &shares, chunk, relieve);
        let chosen = self.choose(&mut ran);
        for (index, (ran, chosen)) in ran.iter().zip(&chosen).enumerate() {
            // A state whose scores are no numbers is worth nothing to others.
            let sound = matches!(ran, Ran::Part | Ran::All(_)) && !matches!(chosen, Some(Err(_)));
            if sound && self.running[index].is_frontier() {
                self.keep(index);
            }
        }
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

    /// Turns away all that wait: the end is near.
    pub fn turn_away(&mut self) {
        self.stopping = true;
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
    pub fn stats(&self) -> Stats {
        Stats {
            paused: self.running.iter().filter(|running| running.paused).count(),
            running: self.running.len(),
            waiting: self.waiting.len(),
            reserved_bytes: self.reserved(),
            kept_bytes: self.prefixes.bytes(),
            frontiers: self.prefixes.frontiers(),
            ..self.stats.clone()
        }
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

    /// The next tokens of all jobs that have run what they know, unless they want none.
    fn choose(&mut self, ran: &mut [Ran]) -> Vec<Option<Result<Chosen, EngineError>>> {
        let choose = |(running, ran): (&mut Running, &mut Ran)| match ran {
            Ran::All(scores) if running.generated() < running.max_tokens => Some(match scores {
                Scores::Logits(logits) => running.chooser.choose(logits, &running.tokens),
                Scores::Listed(list) => running.chooser.choose_listed(list),
            }),
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
        let running = &self.running[index];
        let (namespace, len) = (running.namespace, running.cache.len());
        let tokens = &running.tokens[..len];
        if self.prefixes.contains(namespace, tokens) {
            return;
        }
        match running.cache.snapshot() {
            Ok(state) => {
                let state = Arc::new(state);
                // The template ends a prompt with a token that says whether to think, and history
                // says it differently. From memory that token can be taken back, from disk not.
                let last = usize::from(len == running.prompt);
                let to_save = &tokens[..(len - last).max(state.oldest())];
                let saved = self.save(namespace, to_save, &state, running.saved);
                self.prefixes.insert(namespace, tokens, state.clone(), saved);
                self.running[index].rebase(state, saved);
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
        let broken = matches!(ended, Err(EngineError::Sample(SampleError::NotFinite { .. })));
        let last = ended.map(|finish| running.outcome(finish));
        let Running { namespace, tokens, cache, reply, saved, .. } = running;
        let tokens = &tokens[..cache.len()];
        if let Some(state) = cache.into_snapshot().filter(|state| !state.is_empty() && !broken) {
            let state = Arc::new(state);
            let saved = self.save(namespace, tokens, &state, saved);
            self.prefixes.insert(namespace, tokens, state, saved);
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

    /// Hands a state to the disk if that is worth while; says how many of its tokens are there.
    fn save(
        &self,
        namespace: Namespace,
        tokens: &[u32],
        state: &Arc<Snapshot>,
        saved: usize,
    ) -> usize {
        match &self.disk {
            Some(disk) if worth_saving(tokens.len(), saved) => {
                let since = Instant::now();
                let tokens = tokens.to_vec();
                let len = tokens.len();
                let save = Save { namespace, tokens, state: state.clone(), since };
                // Who is about to end has time for the disk.
                if disk.save(save, self.stopping) {
                    len
                } else {
                    saved
                }
            }
            _ => saved,
        }
    }

    fn fail(&mut self, reply: Reply, error: EngineError) {
        self.stats.ended += 1;
        self.stats.failed += 1;
        reply.end(Update::Failed(Arc::new(error.told())));
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
