//! Which bytes are asked for next: the pieces of one file and what is known of each.

use std::ops::Range;

/// What is known of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Missing,
    /// A connection is at work on it.
    Claimed,
    /// Its bytes are in the file and have this CRC-32.
    Present {
        crc: u32,
        /// Written by this process, not found on resuming.
        fresh: bool,
    },
}

/// The pieces of one file. Connections claim runs of missing ones, always the first ones left, so
/// that the bytes arrive nearly in order and can be hashed on the way.
#[derive(Debug)]
pub(super) struct Plan {
    pieces: Vec<State>,
    piece: u64,
    size: u64,
    /// Every piece before this one is claimed or present.
    first: usize,
    missing: usize,
    present: u64,
}

impl Plan {
    /// All `size` bytes missing, in pieces of `piece` bytes.
    pub fn new(size: u64, piece: u64) -> Self {
        let count = usize::try_from(size.div_ceil(piece)).unwrap_or(usize::MAX);
        Self {
            pieces: vec![State::Missing; count],
            piece,
            size,
            first: 0,
            missing: count,
            present: 0,
        }
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that are in the file.
    pub fn present(&self) -> u64 {
        self.present
    }

    /// The bytes of a piece, as a range of the file.
    pub fn bytes(&self, index: usize) -> Range<u64> {
        let start = (index as u64).saturating_mul(self.piece).min(self.size);
        start..start.saturating_add(self.piece).min(self.size)
    }

    /// Claims the first missing pieces: a run without a gap, of `chunk` bytes at most, and no more
    /// than a fair share of what is left, so that `connections` end together.
    pub fn claim(&mut self, chunk: u64, connections: usize) -> Option<Range<usize>> {
        let offset = self.pieces.get(self.first..)?.iter().position(|s| *s == State::Missing)?;
        self.first += offset;
        let fair = self.missing.div_ceil(2 * connections.max(1));
        let most = usize::try_from(chunk / self.piece).unwrap_or(usize::MAX).min(fair).max(1);
        let rest = self.pieces.get_mut(self.first..)?;
        let run = rest.iter().take(most).take_while(|s| **s == State::Missing).count();
        rest.iter_mut().take(run).for_each(|s| *s = State::Claimed);
        let start = self.first;
        self.missing -= run;
        self.first += run;
        Some(start..start + run)
    }

    /// Records that a piece's bytes are in the file.
    pub fn complete(&mut self, index: usize, crc: u32, fresh: bool) {
        let len = self.bytes(index);
        if let Some(state) = self.pieces.get_mut(index) {
            match state {
                State::Present { .. } => return,
                State::Missing => self.missing -= 1,
                State::Claimed => {}
            }
            *state = State::Present { crc, fresh };
            self.present += len.end - len.start;
        }
    }

    /// The CRC of a piece that is in the file.
    pub fn crc(&self, index: usize) -> Option<u32> {
        match self.pieces.get(index) {
            Some(State::Present { crc, .. }) => Some(*crc),
            _ => None,
        }
    }

    /// Puts a piece back to be fetched again. Whether this process had written it.
    pub fn reject(&mut self, index: usize) -> bool {
        let len = self.bytes(index);
        match self.pieces.get_mut(index) {
            Some(state @ State::Present { .. }) => {
                let fresh = matches!(state, State::Present { fresh: true, .. });
                *state = State::Missing;
                self.missing += 1;
                self.present -= len.end - len.start;
                self.first = self.first.min(index);
                fresh
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    #[test]
    fn every_byte_is_claimed_once_whatever_is_present_and_whoever_claims() {
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..300 {
            let size = rng.random_range(1..100_000);
            let mut plan = Plan::new(size, 512);
            let mut covered = vec![0u8; plan.len()];
            for (index, count) in covered.iter_mut().enumerate() {
                if rng.random_bool(0.4) {
                    plan.complete(index, 0, false);
                    *count += 1;
                }
            }
            let (chunk, connections) = (rng.random_range(1..20_000), rng.random_range(1..9));
            let mut rejected = 0;
            while let Some(run) = plan.claim(chunk, connections) {
                assert!(run.len() as u64 * 512 <= chunk.max(512));
                for index in run {
                    plan.complete(index, 1, true);
                    if rejected < 5 && rng.random_bool(0.1) {
                        rejected += 1;
                        assert!(plan.reject(index));
                    } else {
                        covered[index] += 1;
                    }
                }
            }
            assert!(covered.iter().all(|c| *c == 1));
            assert_eq!(plan.present(), size);
        }
    }

    #[test]
    fn the_last_piece_ends_with_the_file() {
        let plan = Plan::new(1025, 512);
        assert_eq!((plan.len(), plan.bytes(2), plan.bytes(3)), (3, 1024..1025, 1025..1025));
        assert_eq!(Plan::new(0, 512).claim(1, 1), None);
    }
}
