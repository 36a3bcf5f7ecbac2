//! Bytes of one piece to ids: byte-pair merges, strongest first, leftmost first among equals.
//!
//! Short pieces, which is nearly all of them, are merged by scanning for the strongest pair. A long
//! piece (a megabyte of one letter) would make that quadratic, so it goes through buckets of
//! positions by rank: each merge costs a constant, and a heap holds only the distinct ranks.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::{alphabet, Error};

/// Bytes above which a piece is merged through buckets.
const SHORT: usize = 96;

/// Bytes above which a piece is cut, so that a position fits `u32`. No prompt comes near.
const LONGEST: usize = 1 << 30;

/// What two adjacent tokens merge into, and how early.
#[derive(Debug, Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

/// One multiplication: keys are pairs of ids from the file, and speed here is encoding speed.
#[derive(Debug, Default, Clone, Copy)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, key: u64) {
        let mixed = (self.0 ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn write_u32(&mut self, key: u32) {
        self.write_u64(u64::from(key));
    }
}

type PairMap<V> = HashMap<u64, V, BuildHasherDefault<PairHasher>>;

/// The id of every byte and the merge of every pair that has one.
#[derive(Debug, Clone)]
pub(super) struct Merges {
    byte_ids: Box<[u32; 256]>,
    pairs: PairMap<Merge>,
}

/// Buffers that pieces of one text share.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
}

/// A token of a short piece, and the merge with its right neighbour if there is one.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    id: u32,
    merge: Option<Merge>,
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Merges {
    /// Resolves `merges` (strongest first) against the ordinary tokens.
    pub(super) fn new(ordinary: &HashMap<&str, u32>, merges: &[String]) -> Result<Self, Error> {
        let mut byte_ids = Box::new([0; 256]);
        for (byte, slot) in (0..=255u8).zip(byte_ids.iter_mut()) {
            let written = alphabet::encode(byte).to_string();
            *slot = *ordinary.get(written.as_str()).ok_or(Error::MissingByte(byte))?;
        }
        let mut pairs = PairMap::with_capacity_and_hasher(merges.len(), Default::default());
        for (index, merge) in merges.iter().enumerate() {
            let (Some((left, right)), Ok(rank)) = (merge.split_once(' '), u32::try_from(index))
            else {
                return Err(Error::MergeSyntax { index, merge: merge.clone() });
            };
            let id = |token: &str| {
                let missing = || Error::MergeToken { index, token: token.to_owned() };
                ordinary.get(token).copied().ok_or_else(missing)
            };
            let pair = key(id(left)?, id(right)?);
            let id = id(&format!("{left}{right}"))?;
            pairs.entry(pair).or_insert(Merge { rank, id });
        }
        Ok(Self { byte_ids, pairs })
    }

    fn merge(&self, left: u32, right: u32) -> Option<Merge> {
        self.pairs.get(&key(left, right)).copied()
    }

    fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }

    /// Appends the ids of one piece.
    pub(super) fn encode(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        match piece {
            [] => {}
            [byte] => ids.push(self.byte_id(*byte)),
            _ if piece.len() <= SHORT => self.encode_short(piece, scratch, ids),
            _ => piece.chunks(LONGEST).for_each(|chunk| self.encode_long(chunk, ids)),
        }
    }

    fn encode_short(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let symbols = &mut scratch.symbols;
        symbols.clear();
        let mut bytes = piece.iter().map(|&byte| self.byte_id(byte)).peekable();
        while let Some(id) = bytes.next() {
            let merge = bytes.peek().and_then(|&right| self.merge(id, right));
            symbols.push(Symbol { id, merge });
        }
        loop {
            let strongest = symbols
                .iter()
                .enumerate()
                .filter_map(|(at, symbol)| symbol.merge.map(|merge| (merge.rank, at, merge.id)))
                .min();
            let Some((_, at, id)) = strongest else { break };
            symbols.remove(at + 1);
            let merge = symbols.get(at + 1).and_then(|right| self.merge(id, right.id));
            symbols[at] = Symbol { id, merge };
            if let Some(left) = at.checked_sub(1).and_then(|left| symbols.get_mut(left)) {
                left.merge = self.merge(left.id, id);
            }
        }
        ids.extend(symbols.iter().map(|symbol| symbol.id));
    }

    fn encode_long(&self, piece: &[u8], ids: &mut Vec<u32>) {
        let mut chain = Chain::new(piece.iter().map(|&byte| self.byte_id(byte)).collect());
        let mut queue = Queue::default();
        for at in 1..piece.len() {
            if let Some(merge) = self.merge(chain.ids[at - 1], chain.ids[at]) {
                queue.push(merge.rank, at - 1);
            }
        }
        while let Some((rank, mut positions)) = queue.pop() {
            positions.sort_unstable();
            for (done, &at) in positions.iter().enumerate() {
                let at = at as usize;
                let Some(right) = chain.right_of(at) else { continue };
                let Some(merge) = self.merge(chain.ids[at], chain.ids[right]) else { continue };
                // An earlier merge took a neighbour: the pair seen when this was queued is gone.
                if merge.rank != rank {
                    continue;
                }
                chain.join(at, right, merge.id);
                let mut strongest = rank;
                let right = chain.right_of(at).map(|right| (at, right));
                let left = chain.left_of(at).map(|left| (left, at));
                for (left, right) in [left, right].into_iter().flatten() {
                    if let Some(merge) = self.merge(chain.ids[left], chain.ids[right]) {
                        queue.push(merge.rank, left);
                        strongest = strongest.min(merge.rank);
                    }
                }
                if strongest < rank {
                    queue.extend(rank, &positions[done + 1..]);
                    break;
                }
            }
        }
        ids.extend(chain.ids.iter().copied().filter(|&id| id != GONE));
    }
}

/// Id of a symbol that its left neighbour has absorbed.
const GONE: u32 = u32::MAX;

/// Symbols of a long piece as a doubly linked list in arrays; positions are those of first bytes.
struct Chain {
    ids: Vec<u32>,
    left: Vec<u32>,
    right: Vec<u32>,
}

impl Chain {
    fn new(ids: Vec<u32>) -> Self {
        // No piece is longer than LONGEST, so every position fits.
        let length = ids.len() as u32;
        let left = (0..length).map(|at| at.wrapping_sub(1)).collect();
        Self { ids, left, right: (1..=length).collect() }
    }

    /// The symbol after `at`, unless `at` is gone or last.
    fn right_of(&self, at: usize) -> Option<usize> {
        let right = self.right[at] as usize;
        (self.ids[at] != GONE && right < self.ids.len()).then_some(right)
    }

    fn left_of(&self, at: usize) -> Option<usize> {
        let left = self.left[at] as usize;
        (left < self.ids.len()).then_some(left)
    }

    fn join(&mut self, at: usize, right: usize, id: u32) {
        self.ids[at] = id;
        self.ids[right] = GONE;
        let after = self.right[right];
        self.right[at] = after;
        if let Some(left) = self.left.get_mut(after as usize) {
            *left = at as u32;
        }
    }
}

/// Positions waiting to merge, by rank.
#[derive(Default)]
struct Queue {
    ranks: BinaryHeap<Reverse<u32>>,
    positions: HashMap<u32, Vec<u32>, BuildHasherDefault<PairHasher>>,
}

impl Queue {
    fn push(&mut self, rank: u32, at: usize) {
        self.extend(rank, &[at as u32]);
    }

    fn extend(&mut self, rank: u32, positions: &[u32]) {
        let waiting = self.positions.entry(rank).or_insert_with(|| {
            self.ranks.push(Reverse(rank));
            Vec::new()
        });
        waiting.extend_from_slice(positions);
    }

    fn pop(&mut self) -> Option<(u32, Vec<u32>)> {
        let Reverse(rank) = self.ranks.pop()?;
        Some((rank, self.positions.remove(&rank)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A vocabulary of the 256 bytes and of what `merges` join, in this order.
    fn vocabulary(merges: &[(String, String)]) -> Merges {
        let mut tokens: Vec<String> =
            (0..=255).map(|byte| alphabet::encode(byte).to_string()).collect();
        tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
        let ordinary = tokens.iter().map(String::as_str).zip(0..).collect();
        let merges: Vec<String> =
            merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        Merges::new(&ordinary, &merges).unwrap()
    }

    /// The definition: join the strongest, leftmost pair until there is none.
    fn by_definition(merges: &Merges, piece: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = piece.iter().map(|&byte| merges.byte_id(byte)).collect();
        loop {
            let pairs = ids.windows(2).enumerate();
            let strongest = pairs
                .filter_map(|(at, pair)| Some((merges.merge(pair[0], pair[1])?, at)))
                .min_by_key(|(merge, at)| (merge.rank, *at));
            let Some((merge, at)) = strongest else { return ids };
            ids.splice(at..at + 2, [merge.id]);
        }
    }

    /// Merges that build on each other, in any order, the same token in several ways.
    fn any_merges() -> impl Strategy<Value = Vec<(String, String)>> {
        let joins = prop::collection::vec((any::<u16>(), any::<u16>()), 1..24);
        (joins, any::<bool>()).prop_flat_map(|(joins, shuffled)| {
            let mut tokens: Vec<String> = ["a", "b"].map(str::to_owned).into();
            let mut merges = Vec::new();
            for (left, right) in joins {
                let pick = |at: u16| tokens[usize::from(at) % tokens.len()].clone();
                let (left, right) = (pick(left), pick(right));
                tokens.push(format!("{left}{right}"));
                merges.push((left, right));
            }
            if shuffled {
                Just(merges).prop_shuffle().boxed()
            } else {
                Just(merges).boxed()
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn short_and_long_pieces_merge_by_definition(
            merges in any_merges(),
            piece in "[ab]{2,160}",
        ) {
            let merges = vocabulary(&merges);
            let expected = by_definition(&merges, piece.as_bytes());
            let (mut short, mut long) = (Vec::new(), Vec::new());
            merges.encode_short(piece.as_bytes(), &mut Scratch::default(), &mut short);
            merges.encode_long(piece.as_bytes(), &mut long);
            prop_assert_eq!(&short, &expected);
            prop_assert_eq!(&long, &expected);
        }
    }
}
