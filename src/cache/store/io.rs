//! The few things that the store asks of the system, so that tests can make each of them fail.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};

/// What is known of a name in a folder, links not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Whether it is a plain file, not a link, a pipe or a folder.
    pub is_file: bool,
    /// Bytes.
    pub len: u64,
    /// When it was last written, seconds since 1970.
    pub modified: u64,
}

/// Room on the disk of a folder, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// In all.
    pub total: u64,
    /// That this process may still fill.
    pub free: u64,
}

/// System calls; names are names in the folder `dir`, never paths.
///
/// Every call may fail, and a write or a read may do less than it was asked for.
pub trait Io: Send + Sync + Debug {
    /// The time since 1970.
    fn now(&self) -> Duration;
    /// Names in a folder; those that are no UTF-8 are none of ours and left out.
    fn list(&self, dir: &File) -> io::Result<Vec<String>>;
    /// When names were last added to or removed from a folder, since 1970.
    fn changed(&self, dir: &File) -> io::Result<Duration>;
    /// Looks at a name.
    fn stat(&self, dir: &File, name: &str) -> io::Result<Stat>;
    /// Opens a file to read; a link is an error, a pipe does not block.
    fn open(&self, dir: &File, name: &str) -> io::Result<File>;
    /// Makes a file, for this user alone; one that is there, or a link, is an error.
    fn create(&self, dir: &File, name: &str) -> io::Result<File>;
    /// Opens a file to append to, made if need be, for this user alone; a link is an error.
    fn append(&self, dir: &File, name: &str) -> io::Result<File>;
    /// Opens a folder, made if need be, for this user alone; a link is an error.
    fn folder(&self, dir: &File, name: &str) -> io::Result<File>;
    /// Reads bytes at an offset; 0 at the end.
    fn read_at(&self, file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes bytes at an offset.
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Writes bytes at the end of a file from [`Io::append`].
    fn write_end(&self, file: &File, bytes: &[u8]) -> io::Result<usize>;
    /// Returns when the bytes of a file, or the names of a folder, are on the disk itself.
    fn sync(&self, file: &File) -> io::Result<()>;
    /// Gives a file another name, in place of what has it.
    fn rename(&self, dir: &File, from: &str, to_dir: &File, to: &str) -> io::Result<()>;
    /// Removes a name that is no folder's.
    fn remove(&self, dir: &File, name: &str) -> io::Result<()>;
    /// How full the disk is.
    fn space(&self, dir: &File) -> io::Result<Space>;
    /// Takes the lock of a folder for this open file, if no other has it.
    fn try_lock(&self, dir: &File) -> io::Result<bool>;
    /// Gives the lock back.
    fn unlock(&self, dir: &File) -> io::Result<()>;
}

/// The real system.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

const MINE: Mode = Mode::RUSR.union(Mode::WUSR);
const SAFE: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

impl Io for System {
    fn now(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn list(&self, dir: &File) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(dir)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if let Some(name) = name.to_str().filter(|name| !matches!(*name, "." | "..")) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn changed(&self, dir: &File) -> io::Result<Duration> {
        let metadata = dir.metadata()?;
        let seconds = u64::try_from(metadata.mtime()).unwrap_or(0);
        let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
        Ok(Duration::new(seconds, nanoseconds.min(999_999_999)))
    }

    fn stat(&self, dir: &File, name: &str) -> io::Result<Stat> {
        let stat = fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Stat {
            is_file: FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
            len: u64::try_from(stat.st_size).unwrap_or(0),
            modified: u64::try_from(stat.st_mtime).unwrap_or(0),
        })
    }

    fn open(&self, dir: &File, name: &str) -> io::Result<File> {
        let file: File = fs::openat(dir, name, OFlags::RDONLY | SAFE, Mode::empty())?.into();
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(not_plain()),
        }
    }

    fn create(&self, dir: &File, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | SAFE;
        Ok(fs::openat(dir, name, flags, MINE)?.into())
    }

    fn append(&self, dir: &File, name: &str) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | SAFE;
        let file: File = fs::openat(dir, name, flags, MINE)?.into();
        let metadata = file.metadata()?;
        // A file with a second name was planted, to be written to in place of ours.
        match metadata.is_file() && metadata.nlink() <= 1 {
            true => Ok(file),
            false => Err(not_plain()),
        }
    }

    fn folder(&self, dir: &File, name: &str) -> io::Result<File> {
        match fs::mkdirat(dir, name, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(dir, name, flags, Mode::empty())?.into())
    }

    fn read_at(&self, file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(bytes, offset)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        file.write_at(bytes, offset)
    }

    fn write_end(&self, mut file: &File, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut file, bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, dir: &File, from: &str, to_dir: &File, to: &str) -> io::Result<()> {
        Ok(fs::renameat(dir, from, to_dir, to)?)
    }

    fn remove(&self, dir: &File, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(dir, name, AtFlags::empty())?)
    }

    fn space(&self, dir: &File) -> io::Result<Space> {
        let stat = fs::fstatvfs(dir)?;
        Ok(Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn try_lock(&self, dir: &File) -> io::Result<bool> {
        match dir.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn unlock(&self, dir: &File) -> io::Result<()> {
        dir.unlock()
    }
}

fn not_plain() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is not a plain file with one name")
}

/// Reads all of `bytes` at an offset.
pub(super) fn read_exact_at(
    io: &dyn Io,
    file: &File,
    bytes: &mut [u8],
    offset: u64,
) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match io.read_at(file, &mut bytes[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all of `bytes` at an offset.
pub(super) fn write_all_at(io: &dyn Io, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match io.write_at(file, &bytes[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
