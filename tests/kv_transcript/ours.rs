//! Our rules: whatever prefix has a frontier is found, and saving writes what is new.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use candle_ds4::cache::store::{Fingerprint, Io, Save, Settings, Space, Stat, Store, System};

use super::transcript::Request;
use super::Rules;

const PAGE_TOKENS: usize = 128;
/// Rows and indexer keys of 21 layers that pool 4 tokens, rows of 20 that pool 128.
const PAGE_BYTES: usize = 21 * 32 * (584 + 68) + 20 * 584;
/// A state is written if more than one in so many of its tokens would be lost otherwise.
const LOST_SHARE: usize = 128;

/// Bytes of the state at a length: raw rows of all layers' windows; values and gates of the
/// compressors' unfinished windows in f32; rows after the last whole page.
fn state_bytes(len: usize) -> usize {
    let windows = 43 * 127.min(len) * 584;
    let sparse = 21 * 2 * 4 * (4 + len % 4) * (1024 + 256);
    let heavy = 20 * 2 * 4 * (len % 128) * 512;
    let rows = 21 * (len % 128 / 4) * (584 + 68);
    8 + windows + sparse + heavy + rows
}

/// Tokens at the end of a prompt that may be other ones next time.
const TAIL: usize = 96;
/// A message before them that is worth a frontier of its own.
const LONG_MESSAGE: usize = 512;

/// A server: frontiers in memory, some of them in its store.
pub struct Ours {
    store: Store,
    memory: Vec<Vec<u32>>,
    pages: u64,
    frontiers: u64,
    checkpoints: usize,
}

impl Ours {
    pub fn new(folder: &Path) -> Self {
        let settings = Settings {
            budget: 4096 << 20,
            reserve: Some(0),
            ..Settings::new(Fingerprint::from_bytes([1; 32]), PAGE_BYTES)
        };
        let store = Store::open_with(folder, settings, Arc::new(Holes)).unwrap();
        Self { store, memory: Vec::new(), pages: 0, frontiers: 0, checkpoints: 0 }
    }

    /// Bytes of pages, tokens in them, and bytes of frontiers, as written.
    pub fn stored(&self) -> (u64, usize, u64) {
        let stats = self.store.stats();
        assert_eq!(stats.bytes_written, stats.bytes, "nothing was evicted or written twice");
        (self.pages, stats.pages as usize * PAGE_TOKENS, self.frontiers)
    }

    fn stored_of(&self, ids: &[u32]) -> usize {
        self.store.lookup(&[0; 16], ids).map_or(0, |hit| hit.len())
    }

    fn known(&self, ids: &[u32]) -> usize {
        let here = self.memory.iter().filter(|kept| ids.starts_with(kept)).map(Vec::len);
        here.max().unwrap_or(0).max(self.stored_of(ids))
    }

    fn keep(&mut self, ids: &[u32]) {
        self.memory.push(ids.to_vec());
        if ids.len() - self.stored_of(ids) <= ids.len() / LOST_SHARE {
            return;
        }
        let state = vec![0; state_bytes(ids.len())];
        let save = Save { ids, state: &state, ..Save::default() };
        let saved = self.store.save(&save, &mut |_, rows| {
            rows.fill(0);
            Ok(())
        });
        let saved = saved.unwrap();
        let frontier = if saved.frontier_new { state.len() as u64 + 304 } else { 0 };
        self.frontiers += frontier + 4 * (ids.len() % PAGE_TOKENS) as u64;
        self.pages += saved.bytes_written - frontier - 4 * (ids.len() % PAGE_TOKENS) as u64;
        self.checkpoints += 1;
    }
}

impl Rules for Ours {
    fn answer(&mut self, request: &Request) -> usize {
        let prompt = &request.prompt;
        let cached = self.known(&prompt[..prompt.len() - 1]);
        // Where other prompts may part from this one: after the system prompt, before the last
        // message, before words at its end that are only for this time; and the end.
        let before_tail = (prompt.len() - TAIL) / PAGE_TOKENS * PAGE_TOKENS;
        let mut landmarks = vec![request.system_end, request.last_message];
        if before_tail >= request.last_message.max(cached) + LONG_MESSAGE {
            landmarks.push(before_tail);
        }
        for landmark in landmarks {
            if landmark > cached {
                self.keep(&prompt[..landmark]);
            }
        }
        self.keep(&request.all());
        cached
    }

    fn restart(&mut self) {
        self.memory.clear();
    }

    fn written(&self) -> (u64, usize) {
        (self.store.stats().bytes_written, self.checkpoints)
    }
}

/// The system, but zeros are not written: a file has a hole there and reads the same.
#[derive(Debug)]
struct Holes;

impl Io for Holes {
    fn now(&self) -> Duration {
        System.now()
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
        System.open(dir, name)
    }

    fn create(&self, dir: &File, name: &str) -> io::Result<File> {
        System.create(dir, name)
    }

    fn append(&self, dir: &File, name: &str) -> io::Result<File> {
        System.append(dir, name)
    }

    fn folder(&self, dir: &File, name: &str) -> io::Result<File> {
        System.folder(dir, name)
    }

    fn read_at(&self, file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        System.read_at(file, bytes, offset)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        if bytes.iter().any(|byte| *byte != 0) {
            return System.write_at(file, bytes, offset);
        }
        let end = offset + bytes.len() as u64;
        if file.metadata()?.len() < end {
            file.set_len(end)?;
        }
        Ok(bytes.len())
    }

    fn write_end(&self, file: &File, bytes: &[u8]) -> io::Result<usize> {
        System.write_end(file, bytes)
    }

    fn sync(&self, _: &File) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, dir: &File, from: &str, to_dir: &File, to: &str) -> io::Result<()> {
        System.rename(dir, from, to_dir, to)
    }

    fn remove(&self, dir: &File, name: &str) -> io::Result<()> {
        System.remove(dir, name)
    }

    fn space(&self, dir: &File) -> io::Result<Space> {
        System.space(dir)
    }

    fn try_lock(&self, dir: &File) -> io::Result<bool> {
        System.try_lock(dir)
    }

    fn unlock(&self, dir: &File) -> io::Result<()> {
        System.unlock(dir)
    }
}

#[test]
fn pages_and_frontiers_have_the_documented_sizes() {
    assert_eq!(PAGE_BYTES, 449_824);
    assert!((4_000_000..4_100_000).contains(&state_bytes(128_000)));
    let mean = (128_000..128_128).map(state_bytes).sum::<usize>() / 128;
    assert!(mean < 12_000_000, "{mean}");
}
