//! What can go wrong between a name and a file, told so that the reader knows what to do next.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::size::Size;

/// A failure to find, fetch or keep a file. Each message says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not a name that can be pulled.
    #[error(
        "{given}: {problem}; write one of {known}, or ORG/REPO, ORG/REPO:FILE, ORG/REPO:FILE@REV",
        known = super::name::Variant::all_names()
    )]
    Name {
        /// What was typed.
        given: String,
        /// What is wrong with it.
        problem: String,
    },

    /// The name is good, the file is not on this machine.
    #[error("{name} is not on this machine (looked in {}); fetch it with: {how}", cache.display())]
    NotCached {
        /// The name looked for.
        name: String,
        /// The cache folder that was searched.
        cache: PathBuf,
        /// The command that fetches it.
        how: String,
    },

    /// A name that could be several files, or none of those in the repository.
    #[error("{name} in {place}: {problem}")]
    Choice {
        /// What was asked for.
        name: String,
        /// The repository and revision, or the cache.
        place: String,
        /// Why no file was chosen, with the candidates.
        problem: String,
    },

    /// An environment variable or a file it names is unusable.
    #[error("{variable}: {problem}")]
    Setting {
        /// The variable.
        variable: String,
        /// What is wrong and what to set.
        problem: String,
    },

    /// `HF_HUB_OFFLINE` forbids what was asked for.
    #[error(
        "{what} is not in the cache {} and HF_HUB_OFFLINE is set; unset it, or copy the file there",
        cache.display()
    )]
    Offline {
        /// What was asked for.
        what: String,
        /// The cache folder that was searched.
        cache: PathBuf,
    },

    /// The server did not answer as it should, several times in a row.
    #[error(
        "{url}: {reason} (tried {attempts} times); what has arrived is kept: run the same command \
         again to go on. If it never answers, look at HTTPS_PROXY and HF_ENDPOINT"
    )]
    Unreachable {
        /// Where, without its query.
        url: String,
        /// The last failure.
        reason: String,
        /// Failures in a row.
        attempts: u32,
    },

    /// The server asks for a longer wait than is sensible to sleep through.
    #[error(
        "{url}: the server asks to wait {} s before the next request; run the same command again \
         after that, or log in with HF_TOKEN for a higher limit", wait.as_secs()
    )]
    RateLimited {
        /// Where, without its query.
        url: String,
        /// What the server asked for.
        wait: Duration,
    },

    /// The server refused for good.
    #[error("{url}: HTTP status {status}{}", said(message))]
    Status {
        /// Where, without its query.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's own words, or nothing.
        message: String,
    },

    /// Repository, revision or file unknown to the server.
    #[error(
        "{what}: not found at {url}; check the spelling. A private repository needs a token in \
         HF_TOKEN; `ds4 pull --list` shows the files of the default one"
    )]
    NotFound {
        /// Repository, revision or file.
        what: String,
        /// Where, without its query.
        url: String,
    },

    /// The repository wants its licence accepted first.
    #[error("{repo} is gated: accept its licence at {link}{}", token_hint(*has_token))]
    Gated {
        /// The repository.
        repo: String,
        /// The page with the licence.
        link: String,
        /// Whether a token was sent.
        has_token: bool,
    },

    /// The token is not accepted.
    #[error("{url}: the server does not accept this token; make a new one at {link}")]
    Unauthorized {
        /// Where, without its query.
        url: String,
        /// The page that makes tokens.
        link: String,
    },

    /// Redirects without end, or to a place that may not be followed.
    #[error("{url}: {problem}; if HF_ENDPOINT names a mirror, the mirror is set up wrongly")]
    Redirect {
        /// The first address, without its query.
        url: String,
        /// What the server did.
        problem: String,
    },

    /// An answer that breaks the protocol.
    #[error("{url}: {problem}; if HF_ENDPOINT or a proxy stands between, it alters the answers")]
    Protocol {
        /// Where, without its query.
        url: String,
        /// What is wrong with the answer.
        problem: String,
    },

    /// The file was replaced on the server while it was being downloaded.
    #[error(
        "{file}: the server replaced the file during the download; nothing was kept: run the same \
         command again for the new one"
    )]
    Changed {
        /// Path in the repository.
        file: String,
    },

    /// The bytes are not those the repository announces.
    #[error(
        "{file}: {kind} of the {size} received is {found}, the repository announces {expected}; \
         the bytes were deleted, nothing is in the cache. Run the same command again; if it \
         repeats, a proxy or mirror alters the data",
        size = Size(*size)
    )]
    Hash {
        /// Path in the repository.
        file: String,
        /// `sha256` or `git sha1`.
        kind: &'static str,
        /// Bytes hashed.
        size: u64,
        /// What the repository announces, in hexadecimal.
        expected: String,
        /// What arrived, in hexadecimal.
        found: String,
    },

    /// The disk gives back other bytes than were written to it.
    #[error(
        "{}: reading back what was just written gives other bytes (offset {offset}); this disk or \
         memory is failing, or another program writes to the file. Choose another disk with \
         HF_HUB_CACHE", path.display()
    )]
    Disk {
        /// The unfinished file.
        path: PathBuf,
        /// First byte of the piece that differs.
        offset: u64,
    },

    /// Not enough room, found before the first byte.
    #[error(
        "{file}: needs {} more on the disk of {}, which has {} free; free some space (`ds4 list` \
         shows what is cached, `ds4 rm` removes it) or set HF_HUB_CACHE to a folder on a larger \
         disk", Size(*needed), path.display(), Size(*free)
    )]
    Space {
        /// Path in the repository.
        file: String,
        /// Bytes still to be written, with a margin.
        needed: u64,
        /// Bytes free for this user.
        free: u64,
        /// The cache folder.
        path: PathBuf,
    },

    /// The file system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// The caller asked to stop.
    #[error("{}", stopped(*done, *total))]
    Cancelled {
        /// Bytes kept.
        done: u64,
        /// Bytes of the whole file.
        total: u64,
    },

    /// Another process is at work on the same file.
    #[error("{name}: another process is downloading it; stop that one first")]
    InUse {
        /// What was to be removed.
        name: String,
    },
}

impl Error {
    /// Wraps a file system error with what was tried and where.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    pub(super) fn is_rate_limit(&self) -> bool {
        matches!(self, Error::RateLimited { .. })
    }

    /// Whether the caller asked for the stop.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Error::Cancelled { .. })
    }
}

fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

fn stopped(done: u64, total: u64) -> String {
    if total == 0 {
        return "stopped before the first byte".to_string();
    }
    format!(
        "stopped at {} of {}; what has arrived is kept: run the same command again to go on",
        Size(done),
        Size(total)
    )
}

fn token_hint(has_token: bool) -> &'static str {
    if has_token {
        " with the account that the token in use belongs to, then run the same command again"
    } else {
        ", then put a token of that account in HF_TOKEN and run the same command again"
    }
}

fn advice(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{
        FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    match source.kind() {
        PermissionDenied | ReadOnlyFilesystem => {
            "; set HF_HUB_CACHE to a folder that you can write to"
        }
        StorageFull | QuotaExceeded => {
            "; what has arrived is kept: free some space (`ds4 list`, `ds4 rm`) and run the same \
             command again to go on"
        }
        FileTooLarge => {
            "; the file is larger than this file system or `ulimit -f` allows: set HF_HUB_CACHE \
             to a folder on another one"
        }
        _ => "",
    }
}
