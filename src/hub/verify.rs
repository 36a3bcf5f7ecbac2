//! Hashing a file in order while it arrives, a piece behind the connections.
//!
//! The pieces are read back from the file, from memory as a rule: so one pass checks what this
//! process wrote, what an earlier one left behind, and the file as a whole.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::error::Error;
use super::plan::Plan;
use super::repository::Digest;

/// Pieces that this process wrote and that read back differently, before the disk is blamed.
const MAX_REJECTED: u32 = 3;

/// Bytes read at a time: few enough to stay in a core's own cache between the two sums.
const STEP: usize = 256 << 10;

/// Bytes between two times that the data is forced to the disk, so that a power failure costs
/// little and the last sync is short.
const SYNC_EVERY: u64 = 2 << 30;

/// The plan, shared between the connections and the hasher.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<Progress>,
    changed: Condvar,
}

/// What the mutex guards.
#[derive(Debug)]
pub(super) struct Progress {
    pub plan: Plan,
    /// Bytes hashed.
    pub verified: u64,
    /// Pieces put back because their bytes were not those recorded.
    pub rejected: u64,
    /// No more work: done, failed or stopped.
    pub over: bool,
}

impl Shared {
    pub fn new(plan: Plan) -> Self {
        let state = Progress { plan, verified: 0, rejected: 0, over: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, Progress> {
        // No code that holds it can panic half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the hasher.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// Ends the hasher's wait.
    pub fn stop(&self) {
        self.lock().over = true;
        self.notify();
    }

    /// Waits for a piece. Its CRC, or nothing when the work is over.
    fn wait_for(&self, index: usize) -> Option<u32> {
        let mut state = self.lock();
        loop {
            if let Some(crc) = state.plan.crc(index) {
                return Some(crc);
            }
            if state.over {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// However the hasher ends, the connections must not wait for it.
struct StopAtEnd<'a>(&'a Shared);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Hashes the whole file, waiting for each piece. The digest in hexadecimal; empty without a
/// digest to make, nothing when stopped before the end.
pub(super) fn hash_in_order(
    shared: &Shared,
    file: &File,
    path: &Path,
    digest: Option<Digest>,
) -> Result<Option<String>, Error> {
    let _stop = StopAtEnd(shared);
    let (count, size) = {
        let state = shared.lock();
        (state.plan.len(), state.plan.size())
    };
    let mut context = match digest {
        Some(Digest::Sha256) => Some(Context::new(&SHA256)),
        Some(Digest::GitSha1) => {
            let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
            context.update(format!("blob {size}\0").as_bytes());
            Some(context)
        }
        None => None,
    };
    let (mut buffer, mut unsynced, mut rejected) = (vec![0; STEP], 0, 0);
    let mut index = 0;
    while index < count {
        let Some(crc) = shared.wait_for(index) else { return Ok(None) };
        let bytes = shared.lock().plan.bytes(index);
        let before = context.clone();
        let found = sum(file, bytes.clone(), &mut buffer, &mut context);
        if found.map_err(Error::io("read", path))? != Some(crc) {
            context = before;
            let mut state = shared.lock();
            rejected += u32::from(state.plan.reject(index));
            state.rejected += 1;
            if rejected > MAX_REJECTED {
                return Err(Error::Disk { path: path.to_path_buf(), offset: bytes.start });
            }
            continue;
        }
        unsynced += bytes.end - bytes.start;
        if unsynced >= SYNC_EVERY {
            unsynced = 0;
            file.sync_data().map_err(Error::io("write to disk", path))?;
        }
        shared.lock().verified = bytes.end;
        index += 1;
    }
    Ok(Some(context.map_or_else(String::new, |context| {
        context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    })))
}

/// Reads `bytes` of the file into the digest and returns their CRC-32; nothing when the file is
/// shorter, as it may be after a power failure.
fn sum(
    file: &File,
    bytes: Range<u64>,
    buffer: &mut [u8],
    context: &mut Option<Context>,
) -> std::io::Result<Option<u32>> {
    let mut crc = crc32fast::Hasher::new();
    let mut offset = bytes.start;
    while offset < bytes.end {
        let left = usize::try_from(bytes.end - offset).unwrap_or(usize::MAX);
        let len = left.min(buffer.len());
        let (part, _) = buffer.split_at_mut(len);
        match file.read_exact_at(part, offset) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        crc.update(part);
        if let Some(context) = context {
            context.update(part);
        }
        offset += len as u64;
    }
    Ok(Some(crc.finalize()))
}
