//! The cache folder in Hugging Face's standard layout, so that `hf` and other programs share it.
//!
//! ```text
//! models--ORG--REPO/blobs/ETAG                 the bytes
//! models--ORG--REPO/snapshots/COMMIT/PATH      relative links to blobs
//! models--ORG--REPO/refs/REVISION              a commit
//! .locks/models--ORG--REPO/ETAG.lock           held while a blob is written
//! ```
//!
//! Unfinished blobs are `ETAG.ds4.incomplete` with `ETAG.ds4.journal` beside them, not the
//! `ETAG.incomplete` of the Python library: that one takes the length of the file for the number
//! of good bytes, ours has holes.
//!
//! The names of folders are `hf-hub`'s, without its network: release 0.5 can be had without one,
//! while 1.0 brings the Xet client and two hundred crates for what this room does itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::journal::Journal;
use crate::system;

use super::name::{choose, is_safe_path, Candidate, Name, RepoId, Variant, Which};

/// The cache folder.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// A file in the cache, whole or not.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The repository.
    pub repo: RepoId,
    /// Path in the repository.
    pub file: String,
    /// The snapshot link, or the unfinished blob.
    pub path: PathBuf,
    /// Bytes of the whole file.
    pub size: u64,
    /// Bytes that are here; less than `size` for a download that can go on.
    pub present: u64,
    /// Branches and tags that have it.
    pub revisions: Vec<String>,
}

impl Entry {
    /// The short name that means it: of a file in the default repository.
    pub fn variant(&self) -> Option<Variant> {
        Variant::of(&self.file).filter(|_| self.repo == RepoId::default())
    }

    /// Whether every byte is here.
    pub fn is_whole(&self) -> bool {
        self.present == self.size
    }
}

/// What [`Cache::remove`] did.
#[derive(Clone, Debug, Default)]
pub struct Removed {
    /// Repository paths removed.
    pub files: Vec<String>,
    /// Bytes given back.
    pub freed: u64,
}

/// The lock on one blob; given back when dropped.
#[derive(Debug)]
pub(super) struct BlobLock {
    _file: File,
}

impl Cache {
    /// The cache at `root`; nothing is created.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the hub's own libraries keep a repository.
    fn layout(&self, repo: &RepoId) -> hf_hub::CacheRepo {
        hf_hub::Cache::new(self.root.clone()).model(repo.as_str().to_owned())
    }

    fn folder(&self, repo: &RepoId) -> PathBuf {
        self.root.join(folder_name(repo))
    }

    pub(super) fn blobs(&self, repo: &RepoId) -> PathBuf {
        self.folder(repo).join("blobs")
    }

    pub(super) fn blob(&self, repo: &RepoId, etag: &str) -> PathBuf {
        self.blobs(repo).join(etag)
    }

    pub(super) fn partial(&self, repo: &RepoId, etag: &str) -> PathBuf {
        self.blobs(repo).join(format!("{etag}.ds4.incomplete"))
    }

    pub(super) fn journal(&self, repo: &RepoId, etag: &str) -> PathBuf {
        self.blobs(repo).join(format!("{etag}.ds4.journal"))
    }

    fn snapshot(&self, repo: &RepoId, commit: &str, file: &str) -> PathBuf {
        self.layout(repo).pointer_path(commit).join(file)
    }

    fn lock_path(&self, repo: &RepoId, etag: &str) -> PathBuf {
        self.root.join(".locks").join(folder_name(repo)).join(format!("{etag}.lock"))
    }

    /// The commit that a branch or tag meant when it was last fetched; a commit means itself.
    pub fn commit(&self, repo: &RepoId, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        if !is_safe_path(revision) {
            return None;
        }
        let text = std::fs::read_to_string(self.folder(repo).join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_safe_path(commit))
    }

    /// The path of `file` at `commit`, if its bytes are here.
    pub fn file_at(&self, repo: &RepoId, commit: &str, file: &str) -> Option<PathBuf> {
        if !is_safe_path(file) || !is_safe_path(commit) {
            return None;
        }
        Some(self.snapshot(repo, commit, file)).filter(|path| path.is_file())
    }

    /// The path of what `name` means, from this folder alone.
    ///
    /// The revision's snapshot comes first. A short name then looks at the other snapshots too,
    /// the last written first: the branch may have moved on since the file was fetched.
    ///
    /// # Errors
    /// Several files fit and none is newer.
    pub fn find(&self, name: &Name) -> Result<Option<PathBuf>, Error> {
        let commit = self.commit(&name.repo, &name.revision);
        if let (Which::Path(file), Some(commit)) = (&name.which, &commit) {
            return Ok(self.file_at(&name.repo, commit, file));
        }
        let snapshots = self.folder(&name.repo).join("snapshots");
        let mut folders: Vec<PathBuf> =
            commit.iter().map(|commit| snapshots.join(commit)).collect();
        if matches!(name.which, Which::Variant(_)) && !is_commit(&name.revision) {
            let mut others: Vec<_> = std::fs::read_dir(&snapshots)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| (entry.metadata().and_then(|m| m.modified()).ok(), entry.path()))
                .collect();
            others.sort_by_key(|(modified, _)| std::cmp::Reverse(*modified));
            folders.extend(others.into_iter().map(|(_, path)| path));
        }
        for folder in folders {
            let mut files = Vec::new();
            list_files(&folder, "", &mut files);
            files.retain(|file| folder.join(file).is_file());
            let candidates: Vec<Candidate<'_>> =
                files.iter().map(|path| Candidate { path, uploaded: None }).collect();
            if let Which::Variant(variant) = name.which {
                if !files.iter().any(|file| Variant::of(file) == Some(variant)) {
                    continue;
                }
            } else if files.is_empty() {
                continue;
            }
            let (index, _) = choose(&name.which, &candidates).map_err(|problem| Error::Choice {
                name: name.to_string(),
                place: folder.display().to_string(),
                problem,
            })?;
            return Ok(files.get(index).map(|file| folder.join(file)));
        }
        Ok(None)
    }

    /// Waits for the lock on a blob. `waiting` is called about four times a second meanwhile and
    /// ends the wait with an error of its own.
    pub(super) fn lock(
        &self,
        repo: &RepoId,
        etag: &str,
        mut waiting: impl FnMut(&Path) -> Result<(), Error>,
    ) -> Result<BlobLock, Error> {
        let path = self.lock_path(repo, etag);
        loop {
            if let Some(lock) = self.try_lock(repo, etag)? {
                return Ok(lock);
            }
            waiting(&path)?;
            std::thread::sleep(std::time::Duration::from_millis(250));
        }
    }

    /// The lock on a blob, or nothing while another process has it.
    fn try_lock(&self, repo: &RepoId, etag: &str) -> Result<Option<BlobLock>, Error> {
        let path = self.lock_path(repo, etag);
        create_dir_all(path.parent().unwrap_or(&self.root))?;
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(Error::io("open the lock file", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => {
                    return Err(Error::io("lock", &path)(error));
                }
            }
            // Other programs delete the file when they give the lock back: a lock on a file that
            // is no longer the one under this name protects nothing.
            let held = file.metadata().map_err(Error::io("look at", &path))?;
            match std::fs::metadata(&path) {
                Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => {
                    return Ok(Some(BlobLock { _file: file }));
                }
                _ => {}
            }
        }
    }

    /// Gives the bytes at `partial` their final name and drops the journal. They are on disk
    /// before the name is, and the name is before this returns.
    pub(super) fn keep_blob(&self, repo: &RepoId, etag: &str) -> Result<(), Error> {
        let (partial, blob) = (self.partial(repo, etag), self.blob(repo, etag));
        let file = File::open(&partial).map_err(Error::io("open", &partial))?;
        file.sync_all().map_err(Error::io("write to disk", &partial))?;
        std::fs::rename(&partial, &blob).map_err(Error::io("rename", &partial))?;
        sync_folder(&self.blobs(repo))?;
        remove_if_there(&self.journal(repo, etag))
    }

    /// Deletes an unfinished download.
    pub(super) fn drop_partial(&self, repo: &RepoId, etag: &str) -> Result<(), Error> {
        remove_if_there(&self.partial(repo, etag))?;
        remove_if_there(&self.journal(repo, etag))
    }

    /// Makes a blob visible: the snapshot's link, then the reference. Returns the link's path.
    pub(super) fn publish(
        &self,
        repo: &RepoId,
        commit: &str,
        revision: &str,
        file: &str,
        etag: &str,
    ) -> Result<PathBuf, Error> {
        let link = self.snapshot(repo, commit, file);
        let folder = link.parent().unwrap_or(&self.root);
        create_dir_all(folder)?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if std::fs::read_link(&link).ok().as_ref() != Some(&target) {
            let fresh = folder.join(format!(".{}.{}.link", std::process::id(), etag));
            remove_if_there(&fresh)?;
            std::os::unix::fs::symlink(&target, &fresh)
                .map_err(Error::io("create the link", &fresh))?;
            std::fs::rename(&fresh, &link).map_err(Error::io("rename", &fresh))?;
            sync_folder(folder)?;
        }
        self.write_reference(repo, revision, commit)?;
        Ok(link)
    }

    /// Remembers which commit `revision` means.
    pub(super) fn write_reference(
        &self,
        repo: &RepoId,
        revision: &str,
        commit: &str,
    ) -> Result<(), Error> {
        if is_commit(revision) || self.commit(repo, revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder(repo).join("refs").join(revision);
        let folder = path.parent().unwrap_or(&self.root);
        create_dir_all(folder)?;
        let fresh = folder.join(format!(".{}.ref", std::process::id()));
        let write = || {
            let mut file = File::create(&fresh)?;
            file.write_all(commit.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&fresh, &path)
        };
        write().map_err(Error::io("write", &path))?;
        sync_folder(folder)
    }

    /// Everything in the cache that a link names, and every download that can go on.
    ///
    /// # Errors
    /// The folder is there and cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        for repo in self.repos()? {
            self.entries_of(&repo, &mut entries)?;
        }
        Ok(entries)
    }

    fn repos(&self) -> Result<Vec<RepoId>, Error> {
        let folders = match std::fs::read_dir(&self.root) {
            Ok(folders) => folders,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", &self.root)(error)),
        };
        let mut repos: Vec<RepoId> = folders
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let (org, repo) = name.to_str()?.strip_prefix("models--")?.split_once("--")?;
                format!("{org}/{repo}").parse().ok()
            })
            .collect();
        repos.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(repos)
    }

    fn entries_of(&self, repo: &RepoId, entries: &mut Vec<Entry>) -> Result<(), Error> {
        let folder = self.folder(repo);
        let mut references: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut names = Vec::new();
        list_files(&folder.join("refs"), "", &mut names);
        for name in names {
            if let Some(commit) = self.commit(repo, &name) {
                references.entry(commit).or_default().push(name);
            }
        }
        // One line a file and blob, however many commits have it.
        let mut seen: BTreeMap<(String, PathBuf), Entry> = BTreeMap::new();
        for commit in read_names(&folder.join("snapshots")) {
            let snapshot = folder.join("snapshots").join(&commit);
            let mut files = Vec::new();
            list_files(&snapshot, "", &mut files);
            for file in files {
                let path = snapshot.join(&file);
                let Ok(blob) = std::fs::canonicalize(&path) else { continue };
                let Ok(size) = std::fs::metadata(&blob).map(|m| m.len()) else { continue };
                let entry = seen.entry((file.clone(), blob)).or_insert_with(|| Entry {
                    repo: repo.clone(),
                    file,
                    path,
                    size,
                    present: size,
                    revisions: Vec::new(),
                });
                entry.revisions.extend(references.get(&commit).into_iter().flatten().cloned());
            }
        }
        entries.extend(seen.into_values());
        for name in read_names(&folder.join("blobs")) {
            let Some(etag) = name.strip_suffix(".ds4.journal") else { continue };
            let Some(journal) = Journal::peek(&self.journal(repo, etag)) else { continue };
            entries.push(Entry {
                repo: repo.clone(),
                present: journal.present(),
                file: journal.header.file,
                path: self.partial(repo, etag),
                size: journal.header.size,
                revisions: Vec::new(),
            });
        }
        Ok(())
    }

    /// Removes a file: its links in every snapshot, its bytes once no link is left, and an
    /// unfinished download of it.
    ///
    /// # Errors
    /// Nothing of that name is here; another process is downloading it; the file system refuses.
    pub fn remove(&self, repo: &RepoId, file: &str) -> Result<Removed, Error> {
        let folder = self.folder(repo);
        let blobs = self.blobs(repo);
        let mut removed = Removed::default();
        for entry in self.unfinished(repo, file) {
            let Some(_lock) = self.try_lock(repo, &entry.1)? else {
                return Err(Error::InUse { name: file.to_string() });
            };
            removed.freed += allocated(&self.partial(repo, &entry.1));
            self.drop_partial(repo, &entry.1)?;
            removed.files.push(format!("{file} (unfinished)"));
        }
        let mut gone = BTreeSet::new();
        for commit in read_names(&folder.join("snapshots")) {
            let snapshot = folder.join("snapshots").join(&commit);
            let link = snapshot.join(file);
            if !is_safe_path(file) || std::fs::symlink_metadata(&link).is_err() {
                continue;
            }
            gone.extend(std::fs::canonicalize(&link).ok());
            std::fs::remove_file(&link).map_err(Error::io("remove", &link))?;
            if removed.files.last().map(String::as_str) != Some(file) {
                removed.files.push(file.to_string());
            }
            // Empty folders only; `remove_dir` refuses others.
            let mut parent = link.parent();
            while let Some(dir) = parent.filter(|dir| dir.starts_with(&snapshot)) {
                if std::fs::remove_dir(dir).is_err() {
                    break;
                }
                parent = dir.parent();
            }
        }
        let used = self.used_blobs(repo);
        let blobs = std::fs::canonicalize(&blobs).unwrap_or(blobs);
        for blob in gone {
            // A link may point anywhere; only bytes of this repository's own are deleted.
            if blob.parent() == Some(&blobs) && !used.contains(&blob) {
                removed.freed += allocated(&blob);
                std::fs::remove_file(&blob).map_err(Error::io("remove", &blob))?;
            }
        }
        self.drop_dead_references(repo);
        Ok(removed)
    }

    fn unfinished(&self, repo: &RepoId, file: &str) -> Vec<(PathBuf, String)> {
        read_names(&self.blobs(repo))
            .into_iter()
            .filter_map(|name| {
                let etag = name.strip_suffix(".ds4.journal")?.to_string();
                let path = self.journal(repo, &etag);
                (Journal::peek(&path)?.header.file == file).then_some((path, etag))
            })
            .collect()
    }

    fn used_blobs(&self, repo: &RepoId) -> BTreeSet<PathBuf> {
        let snapshots = self.folder(repo).join("snapshots");
        let mut files = Vec::new();
        list_files(&snapshots, "", &mut files);
        files.iter().filter_map(|file| std::fs::canonicalize(snapshots.join(file)).ok()).collect()
    }

    /// References to commits without a snapshot would make other programs look for nothing.
    fn drop_dead_references(&self, repo: &RepoId) {
        let folder = self.folder(repo);
        let mut names = Vec::new();
        list_files(&folder.join("refs"), "", &mut names);
        for name in names {
            let dead = self
                .commit(repo, &name)
                .is_some_and(|commit| !folder.join("snapshots").join(commit).exists());
            if dead {
                // A stale reference does no harm: failing to remove it is not worth an error.
                let _ = std::fs::remove_file(folder.join("refs").join(name));
            }
        }
    }

    /// Bytes free for this user on the cache's disk; of the nearest folder that exists.
    ///
    /// # Errors
    /// The file system does not say.
    pub fn free_space(&self) -> Result<u64, Error> {
        system::free_space(&self.root).map_err(Error::io("measure the free space of", &self.root))
    }
}

fn folder_name(repo: &RepoId) -> String {
    hf_hub::Repo::model(repo.as_str().to_owned()).folder_name()
}

/// Whether `revision` is a commit's full hash.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether an etag may be a file name.
pub(super) fn is_safe_etag(etag: &str) -> bool {
    (1..=128).contains(&etag.len())
        && !etag.starts_with('.')
        && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

pub(super) fn create_dir_all(folder: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(Error::io("create the folder", folder))
}

/// A rename is on disk only once its folder is.
pub(super) fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("write to disk the folder", folder))
}

pub(super) fn remove_if_there(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Bytes that deleting a file gives back; fewer than its length when it has holes.
fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).map(|m| (m.blocks() * 512).min(m.len())).unwrap_or(0)
}

fn read_names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Paths of files and links under `folder`, relative, sorted; links are not followed.
fn list_files(folder: &Path, prefix: &str, files: &mut Vec<String>) {
    for name in read_names(folder) {
        let (path, shown) = (folder.join(&name), format!("{prefix}{name}"));
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => list_files(&path, &format!("{shown}/"), files),
            Ok(_) if !name.starts_with('.') => files.push(shown),
            _ => {}
        }
    }
}
