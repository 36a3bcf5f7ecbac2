//! Which frontiers were used how often and when: a file of records that processes append to.
//!
//! The records only help to choose what to remove. They are not synced, a torn or damaged one is
//! passed over, and the file may be deleted at any time.

use std::collections::HashMap;
use std::io;

use super::folder::{Folder, Writer, USES};
use super::io::{read_exact_at, write_all_at};
use super::key::{Key, Name};

/// Bytes of a record: name 16, seconds since 1970 u64, how often u32, CRC-32 of these.
const RECORD: usize = 32;
/// A larger file is made smaller.
const LARGE: u64 = 1 << 20;
/// What is not read of a file that is larger still.
const LARGEST: u64 = 4 << 20;

/// The uses of one frontier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub hits: u64,
    /// Seconds since 1970.
    pub last: u64,
}

/// The uses of all frontiers.
#[derive(Debug, Default)]
pub(super) struct Uses {
    of: HashMap<Name, Used>,
    /// Bytes of the file.
    pub bytes: u64,
}

impl Uses {
    /// Reads the record; what cannot be read was never used.
    pub fn read(folder: &Folder) -> Self {
        let read = || -> io::Result<(Vec<u8>, u64)> {
            let (file, len) = folder.read(USES)?;
            let taken = len.min(LARGEST);
            let mut bytes = vec![0; usize::try_from(taken).unwrap_or(0)];
            read_exact_at(&*folder.io, &file, &mut bytes, len - taken)?;
            Ok((bytes, len))
        };
        let (bytes, len) = read().unwrap_or_default();
        Self { of: parse(&bytes), bytes: len }
    }

    /// How often a frontier was used, and when last.
    pub fn of(&self, name: Name) -> Used {
        self.of.get(&name).copied().unwrap_or_default()
    }

    /// Records a use now.
    pub fn append(folder: &Folder, name: Name) -> io::Result<()> {
        let file = folder.io.append(&folder.dir, USES)?;
        let used = Used { hits: 1, last: folder.io.now().as_secs() };
        folder.io.write_end(&file, &record(name, used)).map(drop)
    }

    /// Writes one record for each frontier that is still there, if the file has become large.
    pub fn compact(
        &self,
        writer: &Writer<'_>,
        folder: &Folder,
        is_there: impl Fn(Name) -> bool,
    ) -> io::Result<()> {
        if self.bytes < LARGE {
            return Ok(());
        }
        let mut kept: Vec<_> = self.of.iter().filter(|(name, _)| is_there(**name)).collect();
        kept.sort_by_key(|(name, _)| **name);
        let bytes: Vec<u8> = kept.iter().flat_map(|(name, used)| record(**name, **used)).collect();
        let stem = Key([0; 32]).name();
        writer.write(USES, stem, |file| write_all_at(&*folder.io, file, &bytes, 0))
    }
}

fn record(name: Name, used: Used) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..16].copy_from_slice(&name.0);
    record[16..24].copy_from_slice(&used.last.to_le_bytes());
    let hits = u32::try_from(used.hits).unwrap_or(u32::MAX);
    record[24..28].copy_from_slice(&hits.to_le_bytes());
    let sum = crc32fast::hash(&record[..28]);
    record[28..].copy_from_slice(&sum.to_le_bytes());
    record
}

fn parse(mut bytes: &[u8]) -> HashMap<Name, Used> {
    let mut of: HashMap<Name, Used> = HashMap::new();
    while let Some((record, rest)) = bytes.split_first_chunk::<RECORD>() {
        let (body, sum) = record.split_at(28);
        if crc32fast::hash(body).to_le_bytes() != *sum {
            // A record was cut short: the next one begins somewhere behind.
            bytes = &bytes[1..];
            continue;
        }
        let mut name = [0; 16];
        name.copy_from_slice(&body[..16]);
        let last = u64::from_le_bytes(body[16..24].try_into().unwrap_or_default());
        let hits = u32::from_le_bytes(body[24..28].try_into().unwrap_or_default());
        let used = of.entry(Name(name)).or_default();
        used.hits += u64::from(hits);
        used.last = used.last.max(last);
        bytes = rest;
    }
    of
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_record_costs_only_itself() {
        let (a, b) = (Name([1; 16]), Name([2; 16]));
        let mut bytes = record(a, Used { hits: 1, last: 10 }).to_vec();
        bytes.extend(&record(b, Used { hits: 1, last: 11 })[..9]);
        bytes.extend(record(a, Used { hits: 2, last: 12 }));
        let mut damaged = record(b, Used { hits: 1, last: 13 });
        damaged[20] ^= 4;
        bytes.extend(damaged);
        bytes.extend(record(b, Used { hits: 1, last: 9 }));
        bytes.extend([0; 5]);
        let of = parse(&bytes);
        assert_eq!(of[&a], Used { hits: 3, last: 12 });
        assert_eq!(of[&b], Used { hits: 1, last: 9 });
        assert_eq!(of.len(), 2);
    }
}
