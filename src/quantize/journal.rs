//! How far an interrupted run came: a line beside the unfinished file.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::error::{QuantizeError, Result};

/// The number of finished tensors, bound to what was asked for.
pub(super) struct Journal {
    path: PathBuf,
    fingerprint: u64,
}

impl Journal {
    /// The journal of an output file; `inputs` and `options` tell runs apart that would write other
    /// bytes.
    pub(super) fn new(out: &Path, inputs: &[PathBuf], options: &[u8]) -> Result<Self> {
        let mut hash = Fnv::new();
        hash.add(options);
        for input in inputs {
            let info = fs::metadata(input).map_err(QuantizeError::io(input, "open"))?;
            let modified = info.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            hash.add(input.as_os_str().as_encoded_bytes());
            hash.add(&info.len().to_le_bytes());
            hash.add(&modified.map_or(0, |t| t.as_nanos()).to_le_bytes());
        }
        let mut path = out.as_os_str().to_owned();
        path.push(".part.journal");
        Ok(Self { path: path.into(), fingerprint: hash.0 })
    }

    /// Tensors that are finished, 0 if there is no journal of the same run.
    pub(super) fn finished(&self) -> usize {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let mut words = text.split_ascii_whitespace();
        let same = words.next() == Some(&format!("{:016x}", self.fingerprint));
        let finished = words.next().and_then(|n| n.parse().ok());
        finished.filter(|_| same).unwrap_or(0)
    }

    /// Says that so many tensors are on the disk.
    pub(super) fn record(&self, finished: usize) -> std::io::Result<()> {
        let mut next = self.path.clone().into_os_string();
        next.push(".new");
        let mut file = File::create(&next)?;
        file.write_all(format!("{:016x} {finished}\n", self.fingerprint).as_bytes())?;
        file.sync_all()?;
        fs::rename(next, &self.path)
    }

    /// Removes it.
    pub(super) fn remove(&self) {
        // Without its unfinished file it means nothing.
        let _ = fs::remove_file(&self.path);
    }
}

/// FNV-1a: tells runs apart, guards against nobody.
pub(super) struct Fnv(pub(super) u64);

impl Fnv {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().chain(&(bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
