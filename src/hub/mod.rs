//! From a name to a verified file: find, download, check and keep weights.
//!
//! A [`Name`] is a short name (`q2-imatrix`) or `ORG/REPO[:FILE][@REV]`. [`resolve_local`] looks it
//! up in the cache alone; a [`Hub`] asks the hub's listing, and fetches what is missing:
//!
//! ```no_run
//! use candle_ds4::hub::{Cancel, Hub, Settings};
//!
//! # fn main() -> Result<(), candle_ds4::hub::Error> {
//! let hub = Hub::new(Settings::from_env()?)?;
//! let cancel = Cancel::default();
//! let selection = hub.select(&"q2-imatrix".parse()?, &cancel, &mut |_| {})?;
//! let fetched = hub.fetch(&selection, &cancel, &mut |event| println!("{event:?}"))?;
//! println!("{}", fetched.path.display());
//! # Ok(())
//! # }
//! ```
//!
//! What holds at every moment, whatever is killed or broken: a file under its final name is whole,
//! on disk, and has the digest that the repository announces. The bytes are in Hugging Face's
//! standard cache layout, so other programs find them.
#![forbid(unsafe_code)]

mod cache;
mod download;
mod error;
mod fit;
mod http;
mod journal;
mod name;
mod plan;
mod repository;
mod settings;
mod verify;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::time::Duration;

pub use cache::{Cache, Entry, Removed};
pub use error::Error;
pub use fit::{Fit, Gpu, GpuKind, Machine, Place};
pub use name::{Name, RepoId, Variant, Which, DEFAULT_REPO, DEFAULT_REVISION};
pub use repository::{RemoteFile, Repository, Selection};
pub use settings::{Settings, Token, Transfer, DEFAULT_ENDPOINT};

use download::{download, find_partial, Job};
use http::Http;
use repository::{identify, resolve_url, Identity};

/// Room that is left over on the disk.
const SPARE: u64 = 64 << 20;

/// Something that a user may want to see while waiting.
#[derive(Clone, Debug)]
pub enum Event {
    /// Another process holds the lock on the same file.
    Waiting {
        /// The lock file.
        lock: PathBuf,
    },
    /// An earlier download goes on.
    Resuming {
        /// Bytes found.
        done: u64,
        /// Bytes of the whole file.
        total: u64,
    },
    /// About ten times a second, and once at the end.
    Progress {
        /// Bytes in the file.
        done: u64,
        /// Bytes hashed.
        verified: u64,
        /// Bytes of the whole file.
        total: u64,
    },
    /// A request failed and will be sent again.
    Retrying {
        /// Where, without its query.
        url: String,
        /// Why.
        reason: String,
        /// Time until then.
        wait: Duration,
    },
    /// Pieces were not on the disk as recorded, and are fetched again.
    Rejected {
        /// How many so far.
        pieces: u64,
    },
}

/// A flag that ends a download at the next tenth of a second, in a state that can go on.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks for the stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked for.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A file that is in the cache now.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The snapshot link, to be opened like a file.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Whether it was here before.
    pub was_cached: bool,
}

/// A hub to ask, and the cache that its files go to.
///
/// Its methods wait for the network, on a runtime of their own: do not call them from async code.
#[derive(Debug)]
pub struct Hub {
    http: Arc<Http>,
    cache: Cache,
    runtime: tokio::runtime::Runtime,
}

impl Hub {
    /// Connects nothing yet.
    ///
    /// # Errors
    /// The endpoint is malformed, or the system gives no threads or certificates.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("hub")
            .enable_all()
            .build()
            .map_err(Error::io("start threads for", Path::new("the network")))?;
        let cache = Cache::at(settings.cache.clone());
        Ok(Self { http: Arc::new(Http::new(settings)?), cache, runtime })
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &Settings {
        &self.http.settings
    }

    /// What a repository holds.
    ///
    /// # Errors
    /// Offline; unknown, gated or unreachable repository; an answer that is none.
    pub fn list(
        &self,
        repo: &RepoId,
        revision: &str,
        cancel: &Cancel,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<Repository, Error> {
        self.online(&repo.to_string())?;
        let (sender, receiver) = channel();
        let listing = repository::list(&self.http, repo, revision, &sender);
        self.wait(listing, &receiver, cancel, observe)
    }

    /// The file that `name` means, from the repository's own listing.
    ///
    /// # Errors
    /// As [`Hub::list`]; no file fits, or several do and none is newer.
    pub fn select(
        &self,
        name: &Name,
        cancel: &Cancel,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<Selection, Error> {
        self.online(&name.to_string())?;
        let (sender, receiver) = channel();
        let selection = async {
            let listing = repository::list(&self.http, &name.repo, &name.revision, &sender).await?;
            repository::select(&self.http, listing, name, &sender).await
        };
        self.wait(selection, &receiver, cancel, observe)
    }

    /// Brings the selected file into the cache: at once if it is there, else by a download that
    /// goes on from where an earlier one ended. Waits while another process fetches the same file.
    ///
    /// # Errors
    /// Network, disk, or content: see [`Error`]. What has arrived is kept for the next call,
    /// except when the bytes have the wrong digest or
    /// the server has replaced the file.
    pub fn fetch(
        &self,
        selection: &Selection,
        cancel: &Cancel,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<Fetched, Error> {
        let Selection { repo, revision, commit, file, .. } = selection;
        if let Some(path) = self.cache.file_at(repo, commit, &file.path) {
            let size = std::fs::metadata(&path).map_err(Error::io("look at", &path))?.len();
            if file.size.is_none_or(|listed| listed == size) {
                // In a cache that is only read, the reference stays as it was.
                let _ = self.cache.write_reference(repo, revision, commit);
                return Ok(Fetched { path, size, was_cached: true });
            }
        }
        self.online(&file.path)?;
        let events = channel();
        let url = resolve_url(&self.http, repo, commit, &file.path);
        let asked = identify(&self.http, repo, &url, &file.path, &events.0);
        let identity = self.wait(asked, &events.1, cancel, observe)?;
        agree(selection, &identity)?;
        let Identity { etag, size, .. } = identity.clone();

        cache::create_dir_all(&self.cache.blobs(repo))?;
        let mut told = false;
        let _lock = self.cache.lock(repo, &etag, |lock| {
            if !told {
                told = true;
                observe(&Event::Waiting { lock: lock.to_path_buf() });
            }
            if cancel.is_set() {
                return Err(Error::Cancelled { done: 0, total: 0 });
            }
            Ok(())
        })?;
        let blob = self.cache.blob(repo, &etag);
        let was_cached = std::fs::metadata(&blob).is_ok_and(|blob| blob.len() == size);
        if !was_cached {
            let job = Job {
                http: self.http.clone(),
                repo: repo.clone(),
                file: file.path.clone(),
                url,
                identity,
                partial: self.cache.partial(repo, &etag),
                journal: self.cache.journal(repo, &etag),
            };
            let found = find_partial(&job);
            // Also before any memory is set aside for the file's pieces: the size is the server's.
            let present = found.as_ref().map_or(0, |found| found.present());
            self.check_space(&file.path, size.saturating_sub(present))?;
            let done = self.runtime.block_on(download(job, found, cancel, &events, observe));
            if let Err(Error::Changed { .. }) = done {
                self.cache.drop_partial(repo, &etag)?;
            }
            done?;
            self.cache.keep_blob(repo, &etag)?;
        }
        let path = self.cache.publish(repo, commit, revision, &file.path, &etag)?;
        Ok(Fetched { path, size, was_cached })
    }

    fn check_space(&self, file: &str, missing: u64) -> Result<(), Error> {
        let free = self.cache.free_space()?;
        let needed = missing.saturating_add(SPARE);
        if missing == 0 || free >= needed {
            return Ok(());
        }
        let path = self.cache.root().to_path_buf();
        Err(Error::Space { file: file.to_string(), needed, free, path })
    }

    fn online(&self, what: &str) -> Result<(), Error> {
        if self.http.settings.offline {
            let cache = self.cache.root().to_path_buf();
            return Err(Error::Offline { what: what.to_string(), cache });
        }
        Ok(())
    }

    /// Sets `cancel` when the user interrupts (Ctrl-C); a second time ends the process with
    /// status 130.
    pub fn cancel_on_interrupt(&self, cancel: &Cancel) {
        let cancel = cancel.clone();
        self.runtime.spawn(async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                if cancel.is_set() {
                    std::process::exit(130);
                }
                cancel.set();
            }
        });
    }

    /// Waits for a short exchange, passing on its events.
    fn wait<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
        events: &Receiver<Event>,
        cancel: &Cancel,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<T, Error> {
        self.runtime.block_on(async {
            let mut work = std::pin::pin!(work);
            loop {
                let result = tokio::time::timeout(Duration::from_millis(100), &mut work).await;
                events.try_iter().for_each(|event| observe(&event));
                if let Ok(result) = result {
                    return result;
                }
                if cancel.is_set() {
                    return Err(Error::Cancelled { done: 0, total: 0 });
                }
            }
        })
    }
}

/// The listing and the file's own headers must speak of the same bytes.
fn agree(selection: &Selection, identity: &Identity) -> Result<(), Error> {
    let RemoteFile { path, size, sha256, .. } = &selection.file;
    let place = || format!("{}@{}: {path}", selection.repo, selection.commit);
    if let Some(other) = identity.commit.as_ref().filter(|commit| **commit != selection.commit) {
        let problem = format!("the file's address answers for the commit {other}");
        return Err(Error::Protocol { url: place(), problem });
    }
    let listed = sha256.as_deref().filter(|_| identity.etag.len() == 64);
    if listed.is_some_and(|sha256| sha256 != identity.etag)
        || size.is_some_and(|size| size != identity.size)
    {
        return Err(Error::Protocol {
            url: place(),
            problem: format!(
                "the listing says {} bytes with sha256 {}, the file's address says {} bytes with \
                 etag {}",
                size.map_or("unknown".to_string(), |size| size.to_string()),
                listed.unwrap_or("unknown"),
                identity.size,
                identity.etag
            ),
        });
    }
    Ok(())
}

/// The file that `name` means, if it is in the cache; nothing is asked of the network.
///
/// `name` is what a user typed. Text that is no name gives `None`, as does a choice between files
/// that cannot be made.
pub fn resolve_local(name: &str) -> Option<PathBuf> {
    let settings = Settings::from_env().ok()?;
    Cache::at(settings.cache).find(&name.parse().ok()?).ok()?
}

/// What `-m` means: a path if there is such a file, else a name in the cache.
///
/// # Errors
/// Neither; the message says how to fetch it.
pub fn locate(argument: &str) -> Result<PathBuf, Error> {
    locate_in(&Settings::from_env()?, argument)
}

/// As [`locate`], with given settings.
///
/// # Errors
/// As [`locate`].
pub fn locate_in(settings: &Settings, argument: &str) -> Result<PathBuf, Error> {
    let path = Path::new(argument);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    let Some(name) = as_name(argument) else {
        let source = std::io::Error::new(
            std::io::ErrorKind::NotFound,
            format!(
                "no such file, and no name that can be pulled (those are {}, or ORG/REPO:FILE); \
                 `ds4 list` shows what is on this machine",
                Variant::all_names()
            ),
        );
        return Err(Error::io("open", path)(source));
    };
    let cache = Cache::at(settings.cache.clone());
    cache.find(&name)?.ok_or_else(|| Error::NotCached {
        name: name.to_string(),
        how: format!("ds4 pull {name}"),
        cache: settings.cache.clone(),
    })
}

/// The name that `argument` is, unless it is an existing path or written like one.
pub fn as_name(argument: &str) -> Option<Name> {
    let written_like_path = argument.starts_with(['/', '.'])
        || argument.to_ascii_lowercase().ends_with(".gguf") && !argument.contains(':');
    if written_like_path || Path::new(argument).exists() {
        return None;
    }
    argument.parse().ok()
}

/// For modules that only pass events on.
type Events = (Sender<Event>, Receiver<Event>);
