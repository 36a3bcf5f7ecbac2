//! The folder: who may look into it, what its names mean, and the lock on it.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::OpenError;
use super::io::{Io, Stat};
use super::key::Name;

/// Where damaged files go.
const QUARANTINE: &str = "quarantine";
/// A key that the server keeps beside the files; it seals what is attached to frontiers.
const NEIGHBOUR: &str = "replay.key";
/// The record of uses.
pub(super) const USES: &str = "uses";
/// How long to wait between two tries to get the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// What a name in the folder means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Pages(Name),
    Frontier(Name),
    /// Being written, or left by a process that was killed.
    Temporary,
    Uses,
    Quarantine,
    /// The server's: it may be here, and is left alone.
    Neighbour,
}

impl Kind {
    /// The meaning of a name; `None` if it is not one of ours.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            USES => return Some(Self::Uses),
            QUARANTINE => return Some(Self::Quarantine),
            NEIGHBOUR => return Some(Self::Neighbour),
            _ => {}
        }
        let (stem, ending) = name.split_once('.')?;
        let stem = Name::parse(stem)?;
        match ending {
            "pages" => Some(Self::Pages(stem)),
            "frontier" => Some(Self::Frontier(stem)),
            "tmp" => Some(Self::Temporary),
            _ => None,
        }
    }
}

/// The name of a file of pages.
pub(super) fn pages_name(name: Name) -> String {
    format!("{name}.pages")
}

/// The name of a frontier's file.
pub(super) fn frontier_name(name: Name) -> String {
    format!("{name}.frontier")
}

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder {
    pub io: Arc<dyn Io>,
    pub dir: File,
    pub path: PathBuf,
    /// One writer at a time in this process, and by the lock on the folder in all processes.
    writer: Mutex<()>,
}

/// The right to write, to remove and to move; given back when dropped.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    folder: &'a Folder,
    _guard: MutexGuard<'a, ()>,
}

impl Folder {
    /// Opens `path`, and makes it if need be, for this user alone.
    pub fn open(path: &Path, io: Arc<dyn Io>) -> Result<Self, OpenError> {
        let failed =
            |action| move |error| OpenError::Io { action, path: path.to_path_buf(), source: error };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("make the folder"))?;
        let dir = File::open(path).map_err(failed("open the folder"))?;
        let mode = dir.metadata().map_err(failed("look at the folder"))?.mode();
        if mode & 0o077 != 0 {
            // Only a folder of our own is closed to others: it might be /tmp.
            let names = io.list(&dir).map_err(failed("list the folder"))?;
            if names.iter().any(|name| Kind::of(name).is_none()) {
                return Err(OpenError::Shared { path: path.to_path_buf() });
            }
            let mine = std::fs::Permissions::from_mode(0o700);
            dir.set_permissions(mine).map_err(failed("close to other users the folder"))?;
        }
        Ok(Self { io, dir, path: path.to_path_buf(), writer: Mutex::new(()) })
    }

    /// Waits for the right to write; `None` if another process keeps it for `patience`.
    pub fn lock(&self, patience: Duration) -> io::Result<Option<Writer<'_>>> {
        let guard = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        while !self.io.try_lock(&self.dir)? {
            if start.elapsed() >= patience {
                return Ok(None);
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        Ok(Some(Writer { folder: self, _guard: guard }))
    }

    /// Opens a plain file, and says how long it is.
    pub fn read(&self, name: &str) -> io::Result<(File, u64)> {
        let file = self.io.open(&self.dir, name)?;
        let len = file.metadata()?.len();
        Ok((file, len))
    }

    /// Moves a file out of the way, to be looked at or removed later.
    pub fn quarantine(&self, name: &str) -> io::Result<()> {
        let folder = self.io.folder(&self.dir, QUARANTINE)?;
        self.io.rename(&self.dir, name, &folder, name)
    }

    /// Names and sizes of what is in quarantine.
    pub fn quarantined(&self) -> Vec<(String, Stat)> {
        let stat = self.io.stat(&self.dir, QUARANTINE);
        let Ok(folder) = stat.and_then(|_| self.io.folder(&self.dir, QUARANTINE)) else {
            return Vec::new();
        };
        let names = self.io.list(&folder).unwrap_or_default();
        let look = |name: String| self.io.stat(&folder, &name).ok().map(|stat| (name, stat));
        names.into_iter().filter_map(look).collect()
    }
}

impl Writer<'_> {
    /// Removes a file; one that is gone already is no error.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match self.folder.io.remove(&self.folder.dir, name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes a file from quarantine.
    pub fn remove_quarantined(&self, name: &str) -> io::Result<()> {
        let quarantine = self.folder.io.folder(&self.folder.dir, QUARANTINE)?;
        self.folder.io.remove(&quarantine, name)
    }

    /// Writes a file whole or not at all: `body` fills it under another name, and it gets its own
    /// once its bytes are on the disk.
    pub fn write<E: From<io::Error>>(
        &self,
        name: &str,
        stem: Name,
        body: impl FnOnce(&File) -> Result<(), E>,
    ) -> Result<(), E> {
        let (io, dir) = (&self.folder.io, &self.folder.dir);
        let temporary = format!("{stem}.tmp");
        let file = io.create(dir, &temporary)?;
        let written = body(&file)
            .and_then(|()| Ok(io.sync(&file)?))
            .and_then(|()| Ok(io.rename(dir, &temporary, dir, name)?));
        if written.is_err() {
            // Should this fail too, the next writer removes what is left.
            let _ = io.remove(dir, &temporary);
        }
        written
    }

    /// Returns when all names are on the disk itself.
    pub fn sync(&self) -> io::Result<()> {
        self.folder.io.sync(&self.folder.dir)
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        // A lock that cannot be given back ends with the process at the latest.
        let _ = self.folder.io.unlock(&self.folder.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_the_store_makes_are_its_own() {
        let stem = "0123456789abcdef0123456789abcdef";
        assert!(matches!(Kind::of(&format!("{stem}.pages")), Some(Kind::Pages(_))));
        assert!(matches!(Kind::of(&format!("{stem}.frontier")), Some(Kind::Frontier(_))));
        assert_eq!(Kind::of(&format!("{stem}.tmp")), Some(Kind::Temporary));
        for name in ["", ".", "pages", "x.pages", "../x.pages", "a.tmp", "Uses", "notes.txt"] {
            assert_eq!(Kind::of(name), None, "{name}");
        }
        assert_eq!(Kind::of(&format!("{stem}.pages.bak")), None);
    }
}
