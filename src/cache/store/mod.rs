//! The disk store: KV pages and frontiers of many sequences, shared by content, safe against
//! whatever happens to a disk.
//!
//! A sequence is a chain of *pages*, each the compressed rows of 128 tokens (or as many as the
//! model needs), and a *frontier* at
//! its end: everything else that is needed to go on. A page is called by a hash over the model,
//! the namespace and all ids up to its end, so that sequences that begin alike share pages, and
//! what is stored once is never written again. Frontiers mark the lengths that a sequence can be
//! taken up at.
//!
//! ```no_run
//! use candle_ds4::cache::store::{Fingerprint, Save, Settings, Store};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (fingerprint, ids, state) = (Fingerprint::from_bytes([0; 32]), vec![1u32; 300], vec![0u8; 9]);
//! let store = Store::open("/tmp/kv".as_ref(), Settings::new(fingerprint, 4096))?;
//! // After a turn, on a thread of its own: pages are asked for only if they are new.
//! let save = Save { namespace: [0; 16], ids: &ids, state: &state, ..Save::default() };
//! let _ = store.save(&save, &mut |page, rows| {
//!     rows.fill(page as u8); // the 4096 bytes of rows of tokens 128·page .. 128·page + 128
//!     Ok(())
//! });
//! // Before a prompt; a hit that turns out to be damaged is out of the way of the next lookup.
//! while let Some(hit) = store.lookup(&[0; 16], &ids) {
//!     let read = hit.frontier().and_then(|frontier| {
//!         hit.read_pages(0..hit.pages(), |page, rows| { /* upload */ Ok(()) }).map(|()| frontier)
//!     });
//!     if let Ok(frontier) = read {
//!         break; // `hit.len()` tokens are known
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What can be relied on (docs/kv-format.md has the bytes):
//!
//! * A file is visible whole or not at all: it is written under another name, synced, renamed, and
//!   the folder is synced.
//! * Every byte is covered by a checksum. A wrong one takes the file out of use, into the folder
//!   `quarantine`; what it held is computed again and saved again.
//! * The index is in memory, made from the files' headers when the store is opened; there is
//!   nothing on the disk that could disagree with the files.
//! * Several processes may share a folder. Whoever writes or removes holds the lock on the folder;
//!   readers hold none, notice new files, and take a file that goes away for a miss.
//! * A save that fails is skipped, with one warning a minute; callers need not look at the result.
//! * Files are open to their user alone, links are not followed, and every name is a hash.

#![forbid(unsafe_code)]

mod catalog;
mod counters;
mod error;
mod evict;
mod fingerprint;
mod folder;
mod format;
mod hit;
mod index;
mod io;
mod key;
mod save;
mod scan;
mod uses;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use catalog::{Details, Entry, Freed, Verified};
pub use counters::Stats;
pub use error::{CatalogError, OpenError, ReadError, SaveError, SourceError};
pub use fingerprint::Fingerprint;
pub use format::Damage;
pub use hit::{Frontier, Hit};
pub use io::{Io, Space, Stat, System};
pub use key::Namespace;
pub use save::{PageSource, Save, Saved};

use counters::{Counters, Limiter};
use folder::Folder;
use index::Index;

/// Tokens of a page, unless a model needs another number.
pub const PAGE_TOKENS: usize = 128;
/// The version of the files; files of other versions are never used.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes that a store may have unless it is told otherwise.
pub const DEFAULT_BUDGET: u64 = 4 << 30;

/// The part of a disk that is kept free, in percent, unless that is less than [`LEAST_RESERVE`].
const RESERVE_PERCENT: u64 = 5;
/// Bytes that are kept free on any disk.
const LEAST_RESERVE: u64 = 2 << 30;

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which model's states to find, and what to mark saved ones with.
    pub fingerprint: Fingerprint,
    /// Tokens of a page, 1 to 8192.
    pub page_tokens: usize,
    /// Bytes of a page of that model, at most 64 MiB.
    pub page_bytes: usize,
    /// Bytes that all files together may have.
    pub budget: u64,
    /// Bytes of the disk that are kept free; `None`: 5 % of it, at least 2 GiB.
    pub reserve: Option<u64>,
    /// How long a writer waits for another process before it gives up.
    pub patience: Duration,
}

impl Settings {
    /// The usual settings for a model; pages of [`PAGE_TOKENS`].
    pub fn new(fingerprint: Fingerprint, page_bytes: usize) -> Self {
        Self {
            fingerprint,
            page_tokens: PAGE_TOKENS,
            page_bytes,
            budget: DEFAULT_BUDGET,
            reserve: None,
            patience: Duration::from_secs(10),
        }
    }

    /// Settings to look at a folder without a model: nothing is found in it, all can be listed.
    pub fn viewer() -> Self {
        Self::new(Fingerprint::from_bytes([0; 32]), 0)
    }
}

/// An open folder of pages and frontiers; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: Folder,
    settings: Settings,
    index: Mutex<Index>,
    counters: Counters,
    warnings: Limiter,
}

impl Store {
    /// Opens the folder, makes it if need be, and reads the headers of its files.
    ///
    /// # Errors
    /// The folder cannot be made or listed, or others may look into it and it is not the store's
    /// own; pages that are too large. A folder that can only be read is none: saves will be skipped.
    pub fn open(path: &Path, settings: Settings) -> Result<Self, OpenError> {
        Self::open_with(path, settings, Arc::new(System))
    }

    /// The same through other system calls.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(path: &Path, settings: Settings, io: Arc<dyn Io>) -> Result<Self, OpenError> {
        let Settings { page_tokens, page_bytes, .. } = settings;
        let fits = (1..=format::MAX_PAGE_TOKENS).contains(&page_tokens)
            && page_bytes as u64 <= format::MAX_PAGE_BYTES;
        if !fits {
            return Err(OpenError::Pages { page_tokens, page_bytes });
        }
        let inner = Inner {
            folder: Folder::open(path, io)?,
            settings,
            index: Mutex::default(),
            counters: Counters::default(),
            warnings: Limiter::default(),
        };
        let store = Self { inner: Arc::new(inner) };
        let failed = |source| {
            let action = "list the folder";
            OpenError::Io { action, path: path.to_path_buf(), source }
        };
        let left = store.scan(&mut store.index(), true).map_err(failed)?;
        if !left.is_empty() {
            // If another process is writing, one of them is its own: the next save looks again.
            if let Ok(Some(writer)) = store.inner.folder.lock(Duration::ZERO) {
                store.scan(&mut store.index(), true).map_err(failed)?.iter().for_each(|name| {
                    let _ = writer.remove(name);
                });
            }
        }
        Ok(store)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.inner.folder.path
    }

    /// Tokens of a page.
    pub fn page_tokens(&self) -> usize {
        self.inner.settings.page_tokens
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.inner.settings.page_bytes
    }

    /// What the store has done since it was opened, and what it holds.
    pub fn stats(&self) -> Stats {
        let index = self.index();
        Stats {
            bytes: index.bytes(),
            pages: index.page_count() as u64,
            frontiers: index.frontiers().count() as u64,
            ..self.inner.counters.stats()
        }
    }

    /// The longest known prefix of `ids`.
    ///
    /// It may be all of `ids` only if the logits after them are stored too; else a token is left
    /// to run.
    pub fn lookup(&self, namespace: &Namespace, ids: &[u32]) -> Option<Hit> {
        Counters::add(&self.inner.counters.lookups, 1);
        let root = self.root(namespace);
        let mut index = self.index();
        if let Err(error) = self.scan(&mut index, false) {
            // What is known already may still be readable.
            self.warn(&format_args!("its names cannot be listed: {error}"));
        }
        let (frontier, places) = index.longest(root, self.page_tokens(), ids)?;
        drop(index);
        Counters::add(&self.inner.counters.hits, 1);
        Some(Hit::new(self.clone(), &frontier, places))
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.inner.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn root(&self, namespace: &Namespace) -> key::Key {
        let settings = &self.inner.settings;
        key::Key::root(
            &settings.fingerprint,
            namespace,
            settings.page_tokens,
            settings.page_bytes as u64,
        )
    }

    /// Tells the operator, at most once a minute.
    fn warn(&self, what: &dyn std::fmt::Display) {
        if let Some(held_back) = self.inner.warnings.allow(Instant::now()) {
            let folder = self.path().display();
            if held_back == 0 {
                tracing::warn!("KV store {folder}: {what}");
            } else {
                tracing::warn!("KV store {folder}: {what} ({held_back} warnings before this one)");
            }
        }
    }
}

/// The usual folder: `ds4/kv` in the user's folder for caches; `None` if there is no such folder.
pub fn default_folder() -> Option<PathBuf> {
    folder_from(|name| std::env::var_os(name).map(PathBuf::from))
}

/// An absolute `XDG_CACHE_HOME`, or else the system's place for caches in `HOME`.
fn folder_from(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name| var(name).filter(|path: &PathBuf| path.is_absolute());
    let home = || {
        let caches = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        absolute("HOME").map(|home| home.join(caches))
    };
    Some(absolute("XDG_CACHE_HOME").or_else(home)?.join("ds4").join("kv"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_folder_is_in_the_users_own_cache() {
        let with = |cache: &'static str, home: &'static str| {
            folder_from(move |name| match name {
                "XDG_CACHE_HOME" if !cache.is_empty() => Some(cache.into()),
                "HOME" if !home.is_empty() => Some(home.into()),
                _ => None,
            })
        };
        assert_eq!(with("/c", "/h"), Some("/c/ds4/kv".into()));
        assert!(with("relative", "/h").unwrap().starts_with("/h"));
        assert!(with("", "/h").unwrap().ends_with("ds4/kv"));
        assert_eq!(with("", ""), None);
    }
}
