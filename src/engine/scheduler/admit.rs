//! Who is next, and what it needs before it can begin.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::super::disk::{Disk, LoadError, Loaded};
use super::super::footprint::Footprint;
use super::super::job::{Namespace, Update};
use super::super::prefixes::Found;
use super::super::running::{first_cache, Running, Start};
use super::super::{Engine, Finish};
use super::Scheduler;
use crate::cache::Snapshot;

/// Tokens that another job must be about to compute for a job to wait for them.
const WORTH_WAITING: usize = 64;
/// How often the disk is asked for one job: more often only if what it found was damaged.
const DISK_LOOKUPS: usize = 4;

/// A job that is yet to begin.
pub(super) struct Waiting {
    pub start: Start,
    held: Option<Held>,
    /// What was read from disk for it, so that it is still there when its turn comes.
    loaded: Option<Arc<Snapshot>>,
    /// Tokens that were known before anything was read from disk.
    in_memory: Option<usize>,
    /// How often the disk may still be asked.
    lookups: usize,
}

/// What a job waits for, though it may have been its turn.
#[derive(Clone, Copy)]
enum Held {
    /// A running job, that is about to compute a prefix of this one, to have so many tokens.
    Computed { job: u64, len: usize },
    /// The disk, which is being read for this or for another job.
    Read { job: u64 },
}

impl Waiting {
    pub fn new(start: Start) -> Self {
        Self { start, held: None, loaded: None, in_memory: None, lookups: DISK_LOOKUPS }
    }

    /// The disk is being read for it.
    fn is_loading(&self) -> bool {
        matches!(self.held, Some(Held::Read { job }) if job == self.start.id)
    }

    /// Bytes that it may come to take, beside those of its first `known` tokens.
    fn reserved(&self, footprint: &Footprint, known: usize) -> usize {
        let Start { prompt, room, .. } = &self.start;
        footprint.reserve(prompt.len().saturating_add(*room), known)
    }
}

impl Scheduler {
    /// Bytes reserved for jobs that run, or are about to.
    pub(super) fn reserved(&self) -> usize {
        let running = self.running.iter().map(|running| running.reserved(&self.footprint));
        let loading = self.waiting.iter().filter(|waiting| waiting.is_loading());
        let loading = loading.map(|waiting| waiting.reserved(&self.footprint, 0));
        running.chain(loading).sum()
    }

    /// Keeps what was read from disk.
    pub(super) fn take_loaded(&mut self) {
        while let Some(loaded) = self.disk.as_ref().and_then(Disk::loaded) {
            let Loaded { job, namespace, tokens, state } = loaded;
            // Whether it is for somebody or for nobody any more, there is room again.
            self.full = false;
            let waiting = self.waiting.iter_mut().find(|waiting| waiting.start.id == job);
            match state {
                Ok(state) => {
                    self.prefixes.insert(namespace, &tokens, state.clone(), tokens.len());
                    if let Some(waiting) = waiting {
                        (waiting.held, waiting.loaded) = (None, Some(state));
                    }
                    self.stay_within_budget();
                }
                Err(error) => {
                    tracing::warn!(%error, "a prefix on disk cannot be used; it is computed again");
                    if let Some(waiting) = waiting {
                        waiting.held = None;
                        if !matches!(error, LoadError::Read(_)) {
                            waiting.lookups = 0;
                        }
                    }
                }
            }
        }
    }

    /// Begins what can be begun.
    pub(super) fn admit(&mut self, engine: &Engine) {
        // What memory there is belongs to those that have begun.
        if self.running.iter().any(|running| running.stalled) {
            return;
        }
        while !self.full && self.running.len() + self.loading() < self.limits.parallel {
            let Some(next) = self.next() else { return };
            let waiting = &mut self.waiting[next];
            let Start { id, namespace, ref prompt, .. } = waiting.start;
            let found = self.prefixes.find(namespace, prompt);
            if let Some(held) = wait_for(&mut self.running, namespace, prompt, found.len()) {
                waiting.held = Some(held);
                self.stats.prefix_waits += 1;
                continue;
            }
            if let Some(job) = loading_for(&self.waiting, namespace) {
                self.waiting[next].held = Some(Held::Read { job });
                continue;
            }
            let needed = self.waiting[next].reserved(&self.footprint, found.len());
            if !self.make_room(needed) {
                self.full = true;
                return;
            }
            let waiting = &mut self.waiting[next];
            if let (Some(disk), 1..) = (&self.disk, waiting.lookups) {
                waiting.lookups -= 1;
                let prompt = &waiting.start.prompt;
                if let Some(hit) = disk.find(namespace, prompt, &found) {
                    waiting.held = Some(Held::Read { job: id });
                    waiting.in_memory.get_or_insert(found.len());
                    disk.load(id, namespace, prompt, found, hit);
                    continue;
                }
            }
            if let Some(waiting) = self.waiting.remove(next) {
                self.begin(engine, waiting, found);
            }
        }
    }

    /// Jobs for which the disk is being read.
    fn loading(&self) -> usize {
        self.waiting.iter().filter(|waiting| waiting.is_loading()).count()
    }

    /// The waiting job whose turn it is: of the namespace of which the fewest run, the one that
    /// waits longest.
    fn next(&self) -> Option<usize> {
        let mut running: HashMap<Namespace, usize> = HashMap::new();
        let loading = self.waiting.iter().filter(|waiting| waiting.is_loading());
        let loading = loading.map(|waiting| waiting.start.namespace);
        for namespace in self.running.iter().map(|job| job.namespace).chain(loading) {
            *running.entry(namespace).or_default() += 1;
        }
        let of = |namespace| running.get(&namespace).copied().unwrap_or(0);
        self.waiting
            .iter()
            .enumerate()
            .filter(|(_, waiting)| !self.is_held(waiting))
            .map(|(index, waiting)| (of(waiting.start.namespace), index))
            .filter(|(running, _)| *running < self.limits.per_namespace)
            .min()
            .map(|(_, index)| index)
    }

    fn is_held(&self, waiting: &Waiting) -> bool {
        match waiting.held {
            None => false,
            Some(Held::Computed { job, len }) => {
                let computes = |running: &Running| {
                    running.id == job && !running.paused && running.cache.len() < len
                };
                self.running.iter().any(computes)
            }
            Some(Held::Read { job }) => {
                self.waiting.iter().any(|other| other.start.id == job && other.is_loading())
            }
        }
    }

    /// Gives up what is kept for later until `needed` bytes more can be reserved, if they can be
    /// at all.
    fn make_room(&mut self, needed: usize) -> bool {
        let reserved = self.reserved().saturating_add(needed);
        let left = self.limits.kv_bytes.checked_sub(reserved);
        let fits = left.is_some_and(|left| self.can_spare(left));
        // A lone job was found to fit; what it starts from may be more than it needs.
        if fits || self.running.is_empty() {
            self.stats.evicted += self.prefixes.shrink(left.unwrap_or(0)) as u64;
        }
        fits || self.running.is_empty()
    }

    /// Whether what is kept for later can be brought down to so many bytes.
    fn can_spare(&self, left: usize) -> bool {
        self.prefixes.bytes() <= left || self.prefixes.pinned_bytes() <= left
    }

    /// Sets memory aside for answers that outgrow what they have. Who gets none waits until others
    /// have ended; if all wait, the youngest ends, so that the others can go on.
    pub(super) fn make_answers_room(&mut self) {
        loop {
            for index in 0..self.running.len() {
                if !self.running[index].lacks_room() {
                    continue;
                }
                let more = self.running[index].more_room(&self.footprint);
                let left = self.limits.kv_bytes.checked_sub(self.reserved().saturating_add(more));
                let left = left.filter(|&left| self.can_spare(left));
                self.running[index].stalled = left.is_none();
                if let Some(left) = left {
                    self.stats.evicted += self.prefixes.shrink(left) as u64;
                    self.running[index].grow();
                }
            }
            let all_wait = self.running.iter().all(|running| running.stalled);
            if self.running.is_empty() || !all_wait || self.loading() > 0 {
                return;
            }
            self.retire(self.running.len() - 1, Ok(Finish::Context));
        }
    }

    fn begin(&mut self, engine: &Engine, waiting: Waiting, found: Found) {
        let Waiting { start, in_memory, .. } = waiting;
        let shared = found.shared;
        let cache = match first_cache(engine, &found) {
            Ok(cache) => cache,
            Err(error) => return self.fail(start.reply, error),
        };
        let mut running = Running::start(start, found, cache);
        let (cached, total) = (running.cached(), running.prompt);
        let in_memory = in_memory.unwrap_or(cached).min(cached);
        let on_disk = cached - in_memory;
        tracing::debug!(
            job = running.id,
            prompt = total,
            in_memory,
            on_disk,
            shared,
            "a job begins: its prompt's tokens, those known from memory and disk, and those that \
             it shares with any kept sequence"
        );
        self.stats.prompt_tokens += total as u64;
        self.stats.cached_memory_tokens += in_memory as u64;
        self.stats.cached_disk_tokens += on_disk as u64;
        running.reply.tell(Update::Prefill { cached, done: cached, total });
        self.running.push(running);
    }
}

/// The job of this namespace for which the disk is being read.
fn loading_for(waiting: &VecDeque<Waiting>, namespace: Namespace) -> Option<u64> {
    let of = |job: &&Waiting| job.start.namespace == namespace && job.is_loading();
    waiting.iter().find(of).map(|job| job.start.id)
}

/// The running job that is about to compute most of `prompt` beyond its first `known` tokens, if
/// that is worth waiting for.
fn wait_for(
    running: &mut [Running],
    namespace: Namespace,
    prompt: &[u32],
    known: usize,
) -> Option<Held> {
    let (shared, job) = running
        .iter_mut()
        // One that is behind what is known already would be waited for in vain.
        .filter(|job| job.namespace == namespace && job.is_reading() && !job.paused)
        .filter(|job| job.cache.len() >= known)
        .map(|job| (job.shared(prompt), job))
        .filter(|(shared, job)| *shared > job.cache.len() && *shared >= known + WORTH_WAITING)
        .max_by_key(|(shared, _)| *shared)?;
    job.keep_at(shared);
    Some(Held::Computed { job: job.id, len: shared })
}
