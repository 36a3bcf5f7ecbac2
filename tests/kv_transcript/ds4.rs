//! The rules of ds4's server (May 2026) for its KV cache: one live session, and checkpoints of the
//! whole state in files.
//!
//! Where its rules leave a choice, the one that costs it less is taken: a checkpoint that is there
//! already is not written again, text that is the same has the same tokens, and no checkpoint is
//! left out because a tool is being called.

use super::transcript::Request;
use super::Rules;

/// `--kv-cache-min-tokens`: shorter sequences are not stored.
const LEAST: usize = 512;
/// `--kv-cache-cold-max-tokens`: longer prompts are not stored cold, longer files are deleted when
/// they are loaded.
const COLD_MOST: usize = 30_000;
/// `--kv-cache-continued-interval-tokens`, rounded up to the alignment.
const INTERVAL: usize = 10_240;
/// `--kv-cache-boundary-trim-tokens` and `--kv-cache-boundary-align-tokens`.
const TRIM: usize = 32;
const ALIGN: usize = 2048;
/// `--kv-disk-space-mb`.
const BUDGET: u64 = 4096 << 20;
/// The budget test adds a tenth.
const BUDGET_MARGIN: f64 = 1.1;

/// Bytes of a checkpoint of Flash: f32 rows for each token, and what does not grow.
fn file_bytes(tokens: usize) -> u64 {
    23_995_788 + 13_764 * tokens as u64
}

struct File {
    tokens: Vec<u32>,
    hits: u32,
}

/// The server's state.
#[derive(Default)]
pub struct Ds4 {
    live: Vec<u32>,
    files: Vec<File>,
    written: u64,
    checkpoints: usize,
}

impl Ds4 {
    fn store(&mut self, tokens: &[u32]) {
        if self.files.iter().any(|file| file.tokens == tokens) {
            return;
        }
        self.written += file_bytes(tokens.len());
        self.checkpoints += 1;
        self.files.push(File { tokens: tokens.to_vec(), hits: 0 });
        loop {
            let bytes: u64 = self.files.iter().map(|file| file_bytes(file.tokens.len())).sum();
            if bytes as f64 * BUDGET_MARGIN <= BUDGET as f64 || self.files.len() == 1 {
                return;
            }
            // The session is shorter than the six hours that halve the weight of a hit.
            let value = |file: &File| {
                let tokens = file.tokens.len();
                f64::from(file.hits + 1) * tokens as f64 / file_bytes(tokens) as f64
            };
            let last = self.files.len() - 1;
            let least = (0..last)
                .min_by(|a, b| value(&self.files[*a]).total_cmp(&value(&self.files[*b])))
                .unwrap();
            self.files.remove(least);
        }
    }

    fn store_multiples(&mut self, tokens: &[u32], from: usize) {
        let first = (from / INTERVAL + 1) * INTERVAL;
        for len in (first..=tokens.len()).step_by(INTERVAL) {
            self.store(&tokens[..len]);
        }
    }
}

impl Rules for Ds4 {
    fn answer(&mut self, request: &Request) -> usize {
        let prompt = &request.prompt;
        let live = std::mem::take(&mut self.live);
        let mut cached = live.len();
        if live.is_empty() || !prompt.starts_with(&live) {
            if live.len() >= LEAST {
                self.store(&live);
            }
            let fits = (0..self.files.len()).filter(|i| prompt.starts_with(&self.files[*i].tokens));
            let longest = fits.max_by_key(|i| self.files[*i].tokens.len());
            cached = longest.map_or(0, |i| self.files[i].tokens.len());
            if let Some(file) = longest {
                self.files[file].hits += 1;
                if cached > COLD_MOST {
                    self.files.remove(file);
                }
            }
        }
        if cached == 0 && (LEAST..=COLD_MOST).contains(&prompt.len()) {
            let boundary = match request.system_end {
                end if end >= LEAST => end,
                _ => (prompt.len() - TRIM) / ALIGN * ALIGN,
            };
            if boundary >= LEAST {
                self.store(&prompt[..boundary]);
            }
        }
        self.live = request.all();
        let all = self.live.clone();
        self.store_multiples(&all, cached);
        cached
    }

    /// The live session is stored when the server is stopped.
    fn restart(&mut self) {
        let live = std::mem::take(&mut self.live);
        if live.len() >= LEAST {
            self.store(&live);
        }
    }

    fn written(&self) -> (u64, usize) {
        (self.written, self.checkpoints)
    }
}

#[test]
fn checkpoints_have_the_sizes_that_are_published() {
    // Sizes of its benchmark's table.
    for (tokens, bytes) in [(2048, 52_184_460), (4096, 80_373_132), (65_536, 926_033_292)] {
        assert_eq!(file_bytes(tokens), bytes);
    }
}
