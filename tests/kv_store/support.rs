//! Sequences whose rows can be told from their ids, and system calls that fail on demand.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_ds4::cache::store::{
    Fingerprint, Hit, Io, ReadError, Save, SaveError, Saved, Settings, Space, Stat, Store, System,
    PAGE_TOKENS,
};

pub const PAGE_BYTES: usize = 300;
pub const MINE: [u8; 16] = [1; 16];

/// A generator of numbers that only look random.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, most: u64) -> u64 {
        (self.next() >> 11) % most
    }
}

/// Ids that begin as those of all shorter sequences of this seed.
pub fn ids(seed: u64, len: usize) -> Vec<u32> {
    let mut numbers = Numbers::new(seed);
    (0..len).map(|_| numbers.below(129_280) as u32).collect()
}

/// The rows of a page: bytes that depend on all ids up to its end.
pub fn rows(ids: &[u32], page: usize, out: &mut [u8]) {
    fill(&ids[..(page + 1) * PAGE_TOKENS], 0, out);
}

pub fn state(ids: &[u32]) -> Vec<u8> {
    let mut state = vec![0; 1000 + ids.len() % 7];
    fill(ids, 1, &mut state);
    state
}

pub fn logits(ids: &[u32]) -> Vec<f32> {
    let mut bytes = [0; 10];
    fill(ids, 2, &mut bytes);
    bytes.iter().map(|b| f32::from(*b) - 0.5).collect()
}

fn fill(ids: &[u32], salt: u64, out: &mut [u8]) {
    let seed = ids.iter().fold(salt, |hash, id| {
        (hash ^ u64::from(*id)).wrapping_mul(0x100_0000_01b3).rotate_left(17)
    });
    let mut numbers = Numbers::new(seed);
    out.iter_mut().for_each(|byte| *byte = numbers.next() as u8);
}

pub fn model(number: u8) -> Fingerprint {
    Fingerprint::from_bytes([number; 32])
}

pub fn settings() -> Settings {
    Settings {
        reserve: Some(0),
        budget: 1 << 30,
        patience: Duration::from_secs(60),
        ..Settings::new(model(1), PAGE_BYTES)
    }
}

pub fn open(path: &Path) -> Store {
    Store::open(path, settings()).unwrap()
}

pub fn open_with(path: &Path, io: &Arc<Faulty>) -> Store {
    Store::open_with(path, settings(), io.clone()).unwrap()
}

pub fn save(store: &Store, ids: &[u32]) -> Result<Saved, SaveError> {
    save_as(store, MINE, ids)
}

pub fn save_as(store: &Store, namespace: [u8; 16], ids: &[u32]) -> Result<Saved, SaveError> {
    let (state, logits) = (state(ids), logits(ids));
    let logits = ids.len().is_multiple_of(2).then_some(&logits[..]);
    let label = format!("{} tokens", ids.len());
    let save =
        Save { namespace, ids, state: &state, logits, attachment: b"attached", label: &label };
    store.save(&save, &mut |page, out| {
        fill(&ids[..(page + 1) * store.page_tokens()], 0, out);
        Ok(())
    })
}

/// Reads all of a hit and checks it against what `ids` must have.
pub fn read(hit: &Hit, of: &[u32]) -> Result<(), ReadError> {
    let known = &of[..hit.len()];
    assert_eq!(hit.pages(), known.len() / PAGE_TOKENS);
    let frontier = hit.frontier()?;
    assert!(frontier.state == state(known), "another state came back");
    assert_eq!(hit.has_logits(), frontier.logits.is_some());
    if let Some(found) = frontier.logits {
        assert_eq!(found, logits(known), "other logits came back");
    }
    assert_eq!(frontier.attachment, b"attached");
    hit.read_pages(0..hit.pages(), |page, found| {
        let mut expected = vec![0; found.len()];
        rows(known, page, &mut expected);
        assert!(found == expected, "another page came back");
        Ok(())
    })
}

/// How many of the ids are known and read back right; damaged entries are passed over.
pub fn known(store: &Store, ids: &[u32]) -> usize {
    for _ in 0..1000 {
        let Some(hit) = store.lookup(&MINE, ids) else { return 0 };
        if read(&hit, ids).is_ok() {
            return hit.len();
        }
    }
    panic!("a damaged entry is found again and again");
}

/// Names in a folder, sorted.
pub fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Bytes of all files in a folder and in its quarantine.
pub fn disk_bytes(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => disk_bytes(&entry.path()),
                false => entry.metadata().unwrap().len(),
            }
        })
        .sum()
}

/// What a [`Faulty`] system does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fault {
    /// The change (creation, write, sync, rename, removal) that fails first, from 0.
    pub at: Option<u64>,
    /// The system's number of the error.
    pub errno: i32,
    /// Whether all later changes fail too, as after the death of the process.
    pub for_ever: bool,
    /// Most bytes that one write or read takes.
    pub most_bytes: Option<usize>,
    /// The read that fails, from 0, and all that follow.
    pub read_at: Option<u64>,
    /// Free bytes of the disk.
    pub free: Option<u64>,
    /// Seconds that the clock is ahead.
    pub later: u64,
    /// The time, whatever the system's clock says; seconds since 1970.
    pub clock: Option<u64>,
    /// Whether nothing waits for the disk.
    pub fast: bool,
}

#[derive(Debug, Default)]
struct Done {
    changes: u64,
    reads: u64,
    opened: u64,
    bytes_read: u64,
    /// Files, by inode, whose bytes may be lost with the power.
    unsynced: BTreeSet<u64>,
    /// Renames that may be lost with the power.
    unsynced_names: Vec<(String, String)>,
}

/// The system, with faults.
#[derive(Debug, Default)]
pub struct Faulty {
    pub fault: Mutex<Fault>,
    done: Mutex<Done>,
}

impl Faulty {
    pub fn new(fault: Fault) -> Arc<Self> {
        Arc::new(Self { fault: Mutex::new(fault), done: Mutex::default() })
    }

    pub fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
        let mut done = self.done.lock().unwrap();
        (done.changes, done.reads, done.opened, done.bytes_read) = (0, 0, 0, 0);
    }

    /// Changes that were tried.
    pub fn changes(&self) -> u64 {
        self.done.lock().unwrap().changes
    }

    /// Files opened to be read, and bytes read.
    pub fn reading(&self) -> (u64, u64) {
        let done = self.done.lock().unwrap();
        (done.opened, done.bytes_read)
    }

    /// Whether something that was done could be lost with the power.
    pub fn is_unsafe(&self) -> bool {
        let done = self.done.lock().unwrap();
        !(done.unsynced.is_empty() && done.unsynced_names.is_empty())
    }

    /// The power goes: bytes that were not synced are lost, and names if `names`.
    pub fn cut_power(&self, path: &Path, names: bool) {
        let done = self.done.lock().unwrap();
        for name in self::names(path) {
            let file = path.join(name);
            let metadata = std::fs::metadata(&file).unwrap();
            if done.unsynced.contains(&metadata.ino()) {
                let file = File::options().write(true).open(file).unwrap();
                file.set_len(metadata.len() / 2).unwrap();
                file.set_len(metadata.len()).unwrap();
            }
        }
        if names {
            for (from, to) in done.unsynced_names.iter().rev() {
                // Removed since, or moved on.
                let _ = std::fs::rename(path.join(to), path.join(from));
            }
        }
    }

    /// Counts a change; the number of the error if it is to fail.
    fn change(&self) -> io::Result<()> {
        let fault = *self.fault.lock().unwrap();
        let mut done = self.done.lock().unwrap();
        let this = done.changes;
        done.changes += 1;
        match fault.at {
            Some(at) if this == at || (fault.for_ever && this > at) => {
                Err(io::Error::from_raw_os_error(fault.errno))
            }
            _ => Ok(()),
        }
    }

    fn read(&self) -> io::Result<()> {
        let fault = *self.fault.lock().unwrap();
        let mut done = self.done.lock().unwrap();
        let this = done.reads;
        done.reads += 1;
        match fault.read_at {
            Some(at) if this >= at => Err(io::Error::from_raw_os_error(fault.errno)),
            _ => Ok(()),
        }
    }

    fn most(&self, len: usize) -> usize {
        self.fault.lock().unwrap().most_bytes.unwrap_or(len).min(len)
    }
}

impl Io for Faulty {
    fn now(&self) -> Duration {
        let fault = *self.fault.lock().unwrap();
        let now = fault.clock.map_or_else(|| System.now(), Duration::from_secs);
        now + Duration::from_secs(fault.later)
    }

    fn list(&self, dir: &File) -> io::Result<Vec<String>> {
        System.list(dir)
    }

    fn changed(&self, dir: &File) -> io::Result<Duration> {
        System.changed(dir)
    }

    fn stat(&self, dir: &File, name: &str) -> io::Result<Stat> {
        System.stat(dir, name)
    }

    fn open(&self, dir: &File, name: &str) -> io::Result<File> {
        self.read()?;
        self.done.lock().unwrap().opened += 1;
        System.open(dir, name)
    }

    fn create(&self, dir: &File, name: &str) -> io::Result<File> {
        self.change()?;
        System.create(dir, name)
    }

    fn append(&self, dir: &File, name: &str) -> io::Result<File> {
        self.change()?;
        System.append(dir, name)
    }

    fn folder(&self, dir: &File, name: &str) -> io::Result<File> {
        System.folder(dir, name)
    }

    fn read_at(&self, file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read()?;
        let most = self.most(bytes.len());
        let count = System.read_at(file, &mut bytes[..most], offset)?;
        self.done.lock().unwrap().bytes_read += count as u64;
        Ok(count)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.done.lock().unwrap().unsynced.insert(file.metadata()?.ino());
        if let Err(error) = self.change() {
            // A write that fails may have written something.
            System.write_at(file, &bytes[..bytes.len() / 2], offset)?;
            return Err(error);
        }
        System.write_at(file, &bytes[..self.most(bytes.len())], offset)
    }

    fn write_end(&self, file: &File, bytes: &[u8]) -> io::Result<usize> {
        self.change()?;
        System.write_end(file, bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.change()?;
        if !self.fault.lock().unwrap().fast {
            System.sync(file)?;
        }
        let metadata = file.metadata()?;
        let mut done = self.done.lock().unwrap();
        match metadata.is_dir() {
            true => done.unsynced_names.clear(),
            false => drop(done.unsynced.remove(&metadata.ino())),
        }
        Ok(())
    }

    fn rename(&self, dir: &File, from: &str, to_dir: &File, to: &str) -> io::Result<()> {
        self.change()?;
        System.rename(dir, from, to_dir, to)?;
        let names = (from.to_owned(), to.to_owned());
        self.done.lock().unwrap().unsynced_names.push(names);
        Ok(())
    }

    fn remove(&self, dir: &File, name: &str) -> io::Result<()> {
        self.change()?;
        System.remove(dir, name)
    }

    fn space(&self, dir: &File) -> io::Result<Space> {
        let space = System.space(dir)?;
        Ok(match self.fault.lock().unwrap().free {
            Some(free) => Space { free, ..space },
            None => Space { total: 1 << 50, free: 1 << 50 },
        })
    }

    fn try_lock(&self, dir: &File) -> io::Result<bool> {
        System.try_lock(dir)
    }

    fn unlock(&self, dir: &File) -> io::Result<()> {
        System.unlock(dir)
    }
}
