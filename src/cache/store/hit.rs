//! What a lookup found, and how to read it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::counters::Counters;
use super::folder::{frontier_name, pages_name};
use super::format::{Damage, FrontierHead, Parsed};
use super::index::{self, Place};
use super::io::read_exact_at;
use super::key::{Name, Part};
use super::uses::Uses;
use super::{ReadError, Store};

/// Bytes of pages that are read ahead of the one who takes them.
const BATCH_BYTES: usize = 16 << 20;

/// Pages that are read ahead, however small they are.
const MOST_AHEAD: usize = 512;

/// A known prefix of a prompt: pages, and a frontier at its end.
///
/// As long as it exists, this process does not remove what it found to make room; another may.
#[derive(Debug)]
pub struct Hit {
    store: Store,
    name: Name,
    tokens: usize,
    has_logits: bool,
    places: Vec<Place>,
    _pin: Arc<()>,
}

/// Everything about a sequence but its pages, as it was saved.
#[derive(Clone, Debug, PartialEq)]
pub struct Frontier {
    /// The state.
    pub state: Vec<u8>,
    /// Scores of the token after the last, if they were saved.
    pub logits: Option<Vec<f32>>,
    /// What was attached.
    pub attachment: Vec<u8>,
}

impl Hit {
    pub(super) fn new(store: Store, frontier: &index::Frontier, places: Vec<Place>) -> Self {
        Self {
            store,
            name: frontier.name,
            tokens: usize::try_from(frontier.head.tokens).unwrap_or(usize::MAX),
            has_logits: frontier.head.logits > 0,
            places,
            _pin: frontier.pin.clone(),
        }
    }

    /// Tokens of the prefix.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Its whole pages; the state holds what is after them.
    pub fn pages(&self) -> usize {
        self.places.len()
    }

    /// Whether the logits after its last token are stored.
    pub fn has_logits(&self) -> bool {
        self.has_logits
    }

    /// Reads one page into `rows`, of [`Store::page_bytes`], and checks it.
    ///
    /// # Errors
    /// It is gone, damaged or cannot be read; the next lookup does not find it any more.
    pub fn read_page(&self, page: usize, rows: &mut [u8]) -> Result<(), ReadError> {
        let folder = &self.store.inner.folder;
        let Some(Place { run, page }) = self.places.get(page) else {
            return Err(ReadError::Gone { file: format!("page {page}") });
        };
        let name = pages_name(run.name);
        let mut read = || -> io::Result<()> {
            let file = folder.io.open(&folder.dir, &name)?;
            read_exact_at(&*folder.io, &file, rows, run.offset(*page))
        };
        read().map_err(|error| self.store.refused(&name, error))?;
        let (key, sum) = (&run.keys[*page], &run.sums[*page]);
        match key.checksum(Part::Page, rows) == *sum {
            true => Ok(()),
            false => Err(self.store.mismatch(run, *page)),
        }
    }

    /// Reads pages in order, several at a time, and hands each to `take` once it is checked.
    ///
    /// # Errors
    /// As [`Hit::read_page`], and those of `take`; pages before were whole.
    pub fn read_pages<E: From<ReadError>>(
        &self,
        pages: Range<usize>,
        mut take: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let page_bytes = self.store.page_bytes();
        let batch = (BATCH_BYTES / page_bytes.max(1)).clamp(1, MOST_AHEAD);
        let mut buffer = vec![0; page_bytes * batch.min(pages.len())];
        let mut first = pages.start;
        while first < pages.end {
            let count = batch.min(pages.end - first);
            if page_bytes == 0 {
                // Nothing to check: the model keeps no rows.
                (first..first + count).try_for_each(|page| take(page, &[]))?;
            } else {
                let chunks = buffer.par_chunks_exact_mut(page_bytes);
                chunks
                    .take(count)
                    .enumerate()
                    .try_for_each(|(i, rows)| self.read_page(first + i, rows))?;
                for (i, rows) in buffer.chunks_exact(page_bytes).take(count).enumerate() {
                    take(first + i, rows)?;
                }
            }
            first += count;
        }
        Ok(())
    }

    /// Reads the frontier, checks it, and records that it was used.
    ///
    /// # Errors
    /// It is gone, damaged or cannot be read; the next lookup does not find it any more.
    pub fn frontier(&self) -> Result<Frontier, ReadError> {
        let frontier = self.store.read_frontier(self.name)?;
        Counters::add(&self.store.inner.counters.hit_tokens, self.tokens as u64);
        // Only the choice of what to remove is a little worse without.
        let _ = Uses::append(&self.store.inner.folder, self.name);
        Ok(frontier)
    }
}

impl Store {
    /// Reads all parts of a frontier.
    pub(super) fn read_frontier(&self, name: Name) -> Result<Frontier, ReadError> {
        let (file, head) = self.open_frontier(name)?;
        let state = self.read_part(&file, name, &head, Part::State)?;
        let logits = self.read_part(&file, name, &head, Part::Logits)?;
        let attachment = self.read_part(&file, name, &head, Part::Attachment)?;
        let score = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap_or_default());
        let logits = (head.logits > 0).then(|| logits.chunks_exact(4).map(score).collect());
        Ok(Frontier { state, logits, attachment })
    }

    /// Reads what was attached to a frontier.
    pub(super) fn read_attachment(&self, name: Name) -> Result<Vec<u8>, ReadError> {
        let (file, head) = self.open_frontier(name)?;
        self.read_part(&file, name, &head, Part::Attachment)
    }

    fn open_frontier(&self, name: Name) -> Result<(File, FrontierHead), ReadError> {
        let folder = &self.inner.folder;
        let text = frontier_name(name);
        let refused = |error| self.refused(&text, error);
        let (start, len) = self.read_start(&text).map_err(refused)?;
        let head = match FrontierHead::parse(&start, len) {
            Ok(Parsed::Known(head)) if head.key().name() == name => head,
            Ok(Parsed::Known(_)) => return Err(self.damaged_frontier(name, Damage::Name)),
            Ok(Parsed::Foreign) => {
                self.forget(&mut self.index(), &text);
                return Err(ReadError::Gone { file: text });
            }
            Err(damage) => return Err(self.damaged_frontier(name, damage)),
        };
        let file = folder.io.open(&folder.dir, &text).map_err(refused)?;
        Ok((file, head))
    }

    fn read_part(
        &self,
        file: &File,
        name: Name,
        head: &FrontierHead,
        part: Part,
    ) -> Result<Vec<u8>, ReadError> {
        let state = head.len() as u64;
        let logits = state + head.state_bytes;
        let attachment = logits + 4 * head.logits;
        let (offset, len, sum) = match part {
            Part::Page | Part::State => (state, head.state_bytes, head.sums[0]),
            Part::Logits => (logits, 4 * head.logits, head.sums[1]),
            Part::Attachment => (attachment, head.attachment_bytes, head.sums[2]),
        };
        // No more than the file has: its length was compared with its header's.
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        read_exact_at(&*self.inner.folder.io, file, &mut bytes, offset)
            .map_err(|error| self.refused(&frontier_name(name), error))?;
        match head.key().checksum(part, &bytes) == sum {
            true => Ok(bytes),
            false => {
                let part = format!("{part:?}").to_lowercase();
                Err(self.damaged_frontier(name, Damage::Checksum { part }))
            }
        }
    }
}
