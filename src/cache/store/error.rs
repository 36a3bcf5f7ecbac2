//! Why the store cannot do what it was asked.

use std::io;
use std::path::PathBuf;

use super::format::Damage;
use crate::size::Size;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The system refused.
    #[error(
        "{}: cannot {action}: {source}; name another folder with --kv-disk-dir, or go on without \
         one",
        path.display()
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Pages that the format has no room for.
    #[error("pages of {page_tokens} tokens and {page_bytes} bytes are too large to be stored")]
    Pages {
        /// Tokens of a page.
        page_tokens: usize,
        /// Bytes of a page.
        page_bytes: usize,
    },
    /// Others may look into the folder, and it holds files that are not the store's.
    #[error(
        "{}: other users may look into this folder, and it holds files that are not of the KV \
         store: name an empty folder, or close it to others with: chmod 700",
        path.display()
    )]
    Shared {
        /// The folder.
        path: PathBuf,
    },
}

/// What went wrong where the bytes to save come from.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// Why a save was skipped. Nothing of it is visible, except pages that were already whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    /// The system refused.
    #[error("{0}; {to_do}", to_do = advice(.0))]
    Io(#[from] io::Error),
    /// Another process has kept the folder to itself for too long.
    #[error("another process is writing to it; the next save tries again")]
    Busy,
    /// The sequence alone is larger than all that may be stored.
    #[error(
        "the sequence needs {} of the {} that may be used; allow more with --kv-disk-space-mb",
        Size(*needed),
        Size(*budget)
    )]
    Budget {
        /// Bytes of its new files, and of those that it shares and that cannot go.
        needed: u64,
        /// Bytes that the store may have.
        budget: u64,
    },
    /// The disk is too full.
    #[error(
        "the disk has {} left, of which {} are kept free, and the save needs {}; free some space, \
         or name a folder on another disk with --kv-disk-dir",
        Size(*free),
        Size(*reserve),
        Size(*needed)
    )]
    Reserve {
        /// Bytes of its new files.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// Bytes that are to stay free.
        reserve: u64,
    },
    /// A part is larger than the format allows.
    #[error("{part} has {found}, the format allows {most}")]
    TooLarge {
        /// Which.
        part: &'static str,
        /// Its size.
        found: u64,
        /// The largest.
        most: u64,
    },
    /// The bytes could not be had.
    #[error("the rows cannot be read: {0}")]
    Source(SourceError),
}

/// What can be done about it.
fn advice(error: &io::Error) -> &'static str {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => {
            "free some space, or name a folder on another disk with --kv-disk-dir"
        }
        ReadOnlyFilesystem | PermissionDenied => {
            "make the folder writable, or name another one with --kv-disk-dir"
        }
        _ => "look into the system's log for the disk's errors",
    }
}

/// Why a hit cannot be used after all; the next lookup finds what is left without it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Another process has removed or replaced it.
    #[error("{file} is gone")]
    Gone {
        /// The file.
        file: String,
    },
    /// Its bytes are not those that were written; the file is in quarantine now.
    #[error("{file} is damaged: {damage}")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong.
        damage: Damage,
    },
    /// The system refused.
    #[error("{file} cannot be read: {source}")]
    Io {
        /// The file.
        file: String,
        /// Why not.
        source: io::Error,
    },
}

/// Why the folder cannot be listed, cleaned or checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process has kept the folder to itself for too long.
    #[error("{}: another process is writing to it; try again later", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// No entry, or several, have this identifier.
    #[error("{id}: {count} entries have an identifier that begins so; `ds4 cache ls` lists them")]
    Id {
        /// What was asked for.
        id: String,
        /// Entries that fit.
        count: usize,
    },
}
