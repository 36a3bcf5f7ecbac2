//! A job that runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::choose::Chooser;
use super::footprint::Footprint;
use super::generate::{Finish, Outcome};
use super::job::Namespace;
use super::prefixes::{common, Found};
use super::reply::Reply;
use super::share::Wish;
use super::{Engine, EngineError};
use crate::cache::store::PAGE_TOKENS;
use crate::cache::{Cache, Snapshot, PAGE_TOKENS as MEMORY_PAGE, REWIND_TOKENS};

/// Points of a prompt that are closer to each other than this are not worth two states.
const LEAST_GAP: usize = 32;
/// Tokens at the end of a prompt that may be other ones next time: reminders of clients have some
/// dozens.
const LAST_WORDS: usize = 96;
/// A message before them that is worth a state of its own.
const LONG_MESSAGE: usize = 512;
/// Tokens between two states of a long sequence, at least, …
const FRONTIER_TOKENS: usize = 4096;
/// … and at least this share of its length: so a million tokens have some dozens.
const FRONTIER_SHARE: usize = 8;

/// A job, its sequence and its state.
pub(super) struct Running {
    pub id: u64,
    pub namespace: Namespace,
    /// All that are known; the cache has run some or all of them.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt's.
    pub prompt: usize,
    pub max_tokens: usize,
    /// Tokens of the answer that memory is set aside for.
    room: usize,
    pub cache: Cache,
    pub chooser: Chooser,
    pub reply: Reply,
    /// Lengths at which the state is to be kept, the next one last.
    stops: Vec<usize>,
    /// The last state that was kept, and how many of its tokens are this sequence's.
    base: Option<(Arc<Snapshot>, usize)>,
    /// Length at which keeping was last thought of.
    looked: usize,
    /// Tokens that are on disk, or will be.
    pub saved: usize,
    /// Its reader had to catch up when it was last asked what it could take.
    pub paused: bool,
    /// It waits for memory to go on.
    pub stalled: bool,
    cached: usize,
    started: Instant,
    answering: Option<Instant>,
}

/// What a job begins with.
pub(super) struct Start {
    pub id: u64,
    pub namespace: Namespace,
    pub prompt: Vec<u32>,
    pub landmarks: Vec<usize>,
    pub max_tokens: usize,
    pub room: usize,
    pub chooser: Chooser,
    pub reply: Reply,
}

impl Running {
    /// Goes on from what was found, of which `cache` is.
    pub fn start(start: Start, found: Found, cache: Cache) -> Self {
        let Start { id, namespace, landmarks, max_tokens, room, chooser, reply, .. } = start;
        let tokens = start.prompt;
        let Found { frontier: base, saved, shared } = found;
        let cached = cache.len();
        Self {
            id,
            namespace,
            stops: stops(cached, shared, tokens.len(), landmarks),
            prompt: tokens.len(),
            tokens,
            max_tokens,
            room,
            cache,
            chooser,
            reply,
            base,
            looked: cached,
            saved,
            paused: false,
            stalled: false,
            cached,
            started: Instant::now(),
            answering: None,
        }
    }

    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Whether it is reading its prompt.
    pub fn is_reading(&self) -> bool {
        self.cache.len() < self.prompt
    }

    /// What it could take of a forward pass; nothing while its reader has to catch up.
    pub fn wish(&mut self) -> Wish {
        self.paused = self.reply.is_behind();
        if self.paused || self.stalled {
            return Wish { remaining: 0, until_stop: 0 };
        }
        let at = self.cache.len();
        let remaining = self.tokens.len() - at;
        let stop = self.stops.last().map_or(usize::MAX, |stop| stop - at);
        Wish { remaining, until_stop: remaining.min(stop) }
    }

    /// Bytes that it may come to take, beside those of the state it started from.
    pub fn reserved(&self, footprint: &Footprint) -> usize {
        self.reserved_with(footprint, self.room)
    }

    fn reserved_with(&self, footprint: &Footprint, room: usize) -> usize {
        let base = self.base.as_ref().map_or(0, |(_, len)| *len);
        footprint.reserve(self.prompt.saturating_add(room), base)
    }

    /// Whether its next token has no place in the memory that was set aside.
    pub fn lacks_room(&self) -> bool {
        self.generated() > self.room
    }

    /// Bytes that it needs to go on.
    pub fn more_room(&self, footprint: &Footprint) -> usize {
        let more = self.reserved_with(footprint, self.larger_room());
        more.saturating_sub(self.reserved(footprint))
    }

    /// It has them.
    pub fn grow(&mut self) {
        self.room = self.larger_room();
    }

    /// To the end of the next page: no less can be had.
    fn larger_room(&self) -> usize {
        let pages = (self.prompt + self.room) / MEMORY_PAGE + 1;
        (pages * MEMORY_PAGE - self.prompt).min(self.max_tokens)
    }

    /// How many tokens of its prompt another one shares.
    pub fn shared(&self, prompt: &[u32]) -> usize {
        common(&self.tokens[..self.prompt], prompt)
    }

    /// Its state is to be kept at a length that it has not reached.
    pub fn keep_at(&mut self, len: usize) {
        // The end of the prompt is kept anyway, and serves the tokens just before it too.
        if len + REWIND_TOKENS < self.prompt {
            if let Err(at) = self.stops.binary_search_by(|stop| len.cmp(stop)) {
                self.stops.insert(at, len);
            }
        }
    }

    /// Whether the state is worth keeping at the present length; asked once at each length.
    pub fn is_frontier(&mut self) -> bool {
        let len = self.cache.len();
        let stop = self.stops.pop_if(|stop| *stop <= len).is_some();
        let spacing = FRONTIER_TOKENS.max(len / FRONTIER_SHARE);
        let due = stop || len - self.looked >= spacing;
        if due {
            self.looked = len;
        }
        due
    }

    /// Comes back to `state`, which is that of its present length, if a pass fails; `saved` of its
    /// tokens are on disk.
    pub fn rebase(&mut self, state: Arc<Snapshot>, saved: usize) {
        self.base = Some((state, self.cache.len()));
        self.saved = saved;
    }

    /// Makes a cache usable again after a failed pass that was to bring it to `goal` tokens; it is
    /// then shorter than that.
    pub fn mend(&mut self, goal: usize) -> Result<(), EngineError> {
        if self.cache.is_torn() {
            self.cache.clear()?;
            rewind(&mut self.cache, self.base.as_ref())?;
        } else if self.cache.len() >= goal {
            self.cache.truncate(goal - 1)?;
        }
        Ok(())
    }

    /// The prompt has been read.
    pub fn begin_answer(&mut self) {
        self.answering.get_or_insert_with(Instant::now);
    }

    /// In numbers, if it ended now.
    pub fn outcome(&self, finish: Finish) -> Outcome {
        let first = self.answering.unwrap_or_else(Instant::now);
        Outcome {
            prompt_tokens: self.prompt,
            cached_tokens: self.cached,
            generated_tokens: self.generated(),
            finish,
            prefill: first - self.started,
            decode: self.answering.map_or(Duration::ZERO, |first| first.elapsed()),
        }
    }
}

/// The cache that a job begins with.
pub(super) fn first_cache(engine: &Engine, found: &Found) -> Result<Cache, EngineError> {
    let mut cache = engine.model.new_cache()?;
    rewind(&mut cache, found.frontier.as_ref())?;
    Ok(cache)
}

/// Makes an empty cache that of a kept state, or of its first tokens.
fn rewind(cache: &mut Cache, base: Option<&(Arc<Snapshot>, usize)>) -> Result<(), EngineError> {
    if let Some((state, len)) = base {
        cache.restore(state)?;
        cache.truncate(*len)?;
    }
    Ok(())
}

/// Where the state of a prompt is to be kept, the first one last: at its landmarks, where it parts
/// from what other prompts had, near the end of a long message, and at its end.
fn stops(cached: usize, shared: usize, prompt: usize, mut landmarks: Vec<usize>) -> Vec<usize> {
    landmarks.push(shared);
    landmarks.sort_unstable();
    // Clients put words at a prompt's end that the next one leaves out, after a message that stays.
    let before_words = prompt.saturating_sub(LAST_WORDS) / PAGE_TOKENS * PAGE_TOKENS;
    let earlier = landmarks.iter().rev().find(|&&landmark| landmark < before_words);
    if before_words >= earlier.copied().unwrap_or(0).max(cached) + LONG_MESSAGE {
        landmarks.push(before_words);
        landmarks.sort_unstable();
    }
    let mut stops = Vec::new();
    let mut last = cached;
    for landmark in landmarks {
        if landmark >= last + LEAST_GAP && landmark + REWIND_TOKENS < prompt {
            stops.push(landmark);
            last = landmark;
        }
    }
    stops.push(prompt);
    stops.reverse();
    stops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_stops_where_others_may_go_on_but_not_at_every_token() {
        assert_eq!(stops(0, 0, 10, vec![]), [10]);
        assert_eq!(stops(0, 100, 200, vec![40, 41, 90]), [200, 90, 40]);
        assert_eq!(stops(80, 100, 200, vec![40, 192, 199, 900, 0]), [200]);
        assert_eq!(stops(80, 100, 200, vec![191]), [200, 191]);
        assert_eq!(stops(80, 150, 200, vec![]), [200, 150]);
        assert_eq!(stops(0, 0, 608, vec![]), [608, 512]);
        assert_eq!(stops(0, 0, 607, vec![]), [607]);
        assert_eq!(stops(1, 0, 608, vec![]), [608]);
        assert_eq!(stops(0, 0, 5000, vec![2000, 4900]), [5000, 4900, 4864, 2000]);
        assert_eq!(stops(0, 0, 5000, vec![2000, 4500]), [5000, 4500, 2000]);
    }
}
