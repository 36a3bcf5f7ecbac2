//! Records as bytes.
//!
//! ```text
//! u8 version · u32 records · each: [16] id · [32] before · [16] text · [16] thought
//!            · ids reasoning · ids rest · u32 calls · each: [16] key · [16] said
//! ids: u32 how many · each as LEB128
//! ```

use std::sync::Arc;

use super::record::{Call, Record};
use crate::prompt::Fingerprint;

const VERSION: u8 = 1;
/// Bytes of the smallest record.
const LEAST_RECORD: usize = 16 + 32 + 16 + 16 + 4 + 4 + 4;
/// Bytes of a call.
const CALL: usize = 16 + 16;

/// Records to bytes; none to none.
pub fn pack(records: &[Arc<Record>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    if records.is_empty() {
        return bytes;
    }
    bytes.push(VERSION);
    push_length(records.len(), &mut bytes);
    for record in records {
        bytes.extend_from_slice(&record.id);
        bytes.extend_from_slice(&record.before.0);
        bytes.extend_from_slice(&record.text);
        bytes.extend_from_slice(&record.thought);
        push_ids(&record.reasoning, &mut bytes);
        push_ids(&record.rest, &mut bytes);
        push_length(record.calls.len(), &mut bytes);
        for call in &record.calls {
            bytes.extend_from_slice(&call.key);
            bytes.extend_from_slice(&call.said);
        }
    }
    bytes
}

/// Bytes to records; `None` if they are not whole, or have an id that is not below `vocab`.
pub fn unpack(bytes: &[u8], vocab: usize) -> Option<Vec<Record>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let mut bytes = Bytes(bytes);
    let [version] = bytes.array()?;
    if version != VERSION {
        return None;
    }
    let count = bytes.length(LEAST_RECORD)?;
    let mut records = Vec::with_capacity(count);
    for _ in 0..count {
        let (id, before) = (bytes.array()?, Fingerprint(bytes.array()?));
        let (text, thought) = (bytes.array()?, bytes.array()?);
        let (reasoning, rest) = (bytes.ids(vocab)?, bytes.ids(vocab)?);
        let count = bytes.length(CALL)?;
        let call = |_| Some(Call { key: bytes.array()?, said: bytes.array()? });
        let calls = (0..count).map(call).collect::<Option<_>>()?;
        records.push(Record { id, before, reasoning, rest, text, thought, calls });
    }
    bytes.0.is_empty().then_some(records)
}

/// Appends ids.
pub fn push_ids(ids: &[u32], bytes: &mut Vec<u8>) {
    push_length(ids.len(), bytes);
    for &id in ids {
        let mut rest = id;
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
    }
}

fn push_length(length: usize, bytes: &mut Vec<u8>) {
    // Nothing here is near 2^32; a length that were would not be read back.
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

/// What is left to be read.
pub struct Bytes<'b>(pub &'b [u8]);

impl Bytes<'_> {
    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    /// The next ids, each below `vocab`.
    pub fn ids(&mut self, vocab: usize) -> Option<Arc<[u32]>> {
        let count = self.length(1)?;
        (0..count).map(|_| self.id().filter(|&id| (id as usize) < vocab)).collect()
    }

    /// The next count of things of at least `least` bytes; there are that many bytes.
    fn length(&mut self, least: usize) -> Option<usize> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        (length.checked_mul(least)? <= self.0.len()).then_some(length)
    }

    fn id(&mut self) -> Option<u32> {
        let mut id = 0u32;
        for shift in [0, 7, 14, 21] {
            let [byte] = self.array()?;
            id |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(id);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(seed: u8, ids: Vec<u32>) -> Arc<Record> {
        Arc::new(Record {
            id: [seed; 16],
            before: Fingerprint([seed ^ 1; 32]),
            reasoning: ids.iter().rev().copied().collect(),
            rest: ids.into(),
            text: [seed ^ 2; 16],
            thought: [seed ^ 3; 16],
            calls: vec![Call { key: [seed ^ 4; 16], said: [seed ^ 5; 16] }; usize::from(seed % 3)],
        })
    }

    #[test]
    fn damage_is_found_or_harmless_and_never_a_panic() {
        let packed = pack(&[record(1, vec![0, 127, 128, 129_279]), record(2, vec![])]);
        for end in 0..packed.len() {
            assert_eq!(unpack(&packed[..end], 129_280).is_some(), end == 0, "{end}");
        }
        for at in 0..packed.len() {
            for bit in 0..8 {
                let mut damaged = packed.clone();
                damaged[at] ^= 1 << bit;
                if let Some(records) = unpack(&damaged, 129_280) {
                    assert!(records.len() <= 2, "{at} {bit}");
                }
            }
        }
        assert_eq!(unpack(&packed, 129_279), None, "an id out of range");
        let mut long = packed;
        long.push(0);
        assert_eq!(unpack(&long, 129_280), None);
    }

    proptest! {
        #[test]
        fn records_come_back(all in prop::collection::vec((any::<u8>(), prop::collection::vec(0u32..129_280, 0..20)), 0..5)) {
            let records: Vec<_> = all.into_iter().map(|(seed, ids)| record(seed, ids)).collect();
            let back = unpack(&pack(&records), 129_280).unwrap();
            prop_assert_eq!(back.into_iter().map(Arc::new).collect::<Vec<_>>(), records);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = unpack(&bytes, 129_280);
        }
    }
}
