//! Writes states to the store.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Namespace, Shared};
use crate::cache::store::{self, SourceError};
use crate::cache::{Cache, Snapshot};

/// States that may wait to be written; they hold memory.
const QUEUE: usize = 8;
/// How old a state is at least when it is written: whoever heard the end of an answer has by then
/// noted what goes with it.
const LEAST_AGE: Duration = Duration::from_millis(50);
/// Tokens that are decoded for the words that a user knows a sequence by.
const LABEL_TOKENS: usize = 64;

/// A state to be written down.
pub(in crate::engine) struct Save {
    pub namespace: Namespace,
    /// Its tokens, or so many of them as can be gone back to.
    pub tokens: Vec<u32>,
    pub state: Arc<Snapshot>,
    pub since: Instant,
}

/// What was written, and what was not; counted as it happens.
#[derive(Debug, Default)]
pub(in crate::engine) struct Saves {
    done: AtomicU64,
    skipped: AtomicU64,
}

impl Saves {
    /// States that the store has.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// States that were left out: the saver was behind, or the store refused.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}

/// The thread that writes. When this is dropped, what is in the queue has been written.
pub(super) struct Saver {
    queue: Option<SyncSender<Save>>,
    saves: Arc<Saves>,
    thread: Option<JoinHandle<()>>,
}

impl Saver {
    pub fn start(shared: Shared) -> std::io::Result<Self> {
        let (queue, saves) = mpsc::sync_channel(QUEUE);
        let counters = Arc::<Saves>::default();
        let counted = counters.clone();
        let thread = thread::Builder::new()
            .name("kv-saver".to_owned())
            .spawn(move || write_all(&shared, &saves, &counted))?;
        Ok(Self { queue: Some(queue), saves: counters, thread: Some(thread) })
    }

    pub fn save(&self, save: Save, wait: bool) -> bool {
        let taken = self.queue.as_ref().is_some_and(|queue| match wait {
            true => queue.send(save).is_ok(),
            false => queue.try_send(save).is_ok(),
        });
        if !taken {
            self.saves.skipped.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    pub fn saves(&self) -> &Arc<Saves> {
        &self.saves
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_all(shared: &Shared, saves: &Receiver<Save>, counters: &Saves) {
    for save in saves {
        thread::sleep(LEAST_AGE.saturating_sub(save.since.elapsed()));
        // One state that cannot be written is no reason to write no more.
        let written = catch_unwind(AssertUnwindSafe(|| write(shared, &save)));
        let counter = match written.unwrap_or_else(|_| Err("this program made an error".into())) {
            Ok(()) => &counters.done,
            Err(error) => {
                tracing::debug!(%error, tokens = save.tokens.len(), "a state was not saved");
                &counters.skipped
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

pub(super) fn write(shared: &Shared, save: &Save) -> Result<(), SourceError> {
    let Save { namespace, tokens, state, .. } = save;
    let Shared { layout, tokenizer, .. } = shared;
    let shorter = (tokens.len() < state.len()).then(|| go_back(shared, state, tokens.len()));
    let shorter = shorter.transpose()?;
    let state = shorter.as_ref().unwrap_or(state);
    let mut frontier = vec![0; layout.frontier_bytes(tokens.len())];
    layout.write_frontier(state, &mut frontier)?;
    let words = tokens.iter().copied().filter(|&id| !tokenizer.is_control(id));
    let label = tokenizer.decode(&words.take(LABEL_TOKENS).collect::<Vec<_>>());
    let attach = shared.attach.get();
    let attachment = attach.map(|attach| attach.attachment(*namespace, tokens));
    let save = store::Save {
        namespace: namespace.0,
        ids: tokens,
        state: &frontier,
        attachment: attachment.as_deref().unwrap_or_default(),
        label: &label,
        ..store::Save::default()
    };
    shared.store.save(&save, &mut |page, rows| Ok(layout.write_page(state, page, rows)?))?;
    Ok(())
}

/// The state after the first `len` tokens of another one.
fn go_back(shared: &Shared, state: &Snapshot, len: usize) -> Result<Snapshot, SourceError> {
    let mut cache = Cache::new(&shared.config, &shared.device)?;
    cache.restore(state)?;
    cache.truncate(len)?;
    cache.into_snapshot().ok_or_else(|| "the state is torn".into())
}
