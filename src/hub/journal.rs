//! Which pieces of an unfinished blob are on disk: a text file beside it, one line a piece.
//!
//! The first line is a JSON object; each further one is a piece's index and the CRC-32 of its
//! bytes, both in hexadecimal. A line is appended in one write after the piece's own bytes, so
//! that a killed process leaves at most a line too few. After a power failure the journal may be
//! newer than the data: whoever resumes checks each piece against its CRC while hashing the file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::Error;

/// More than any journal has: a file of 2^40 bytes in pieces of 4 MiB needs 5 MB.
const LONGEST: u64 = 1 << 30;

/// What the journal is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// Of this format.
    pub version: u32,
    /// Path in the repository.
    pub file: String,
    /// Bytes of the whole file.
    pub size: u64,
    /// Bytes of a piece.
    pub piece: u64,
}

/// A journal's content.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    pub header: Header,
    /// Piece index to CRC-32.
    pub pieces: BTreeMap<usize, u32>,
}

impl Contents {
    /// Bytes that the pieces make up.
    pub fn present(&self) -> u64 {
        let Header { size, piece, .. } = self.header;
        self.pieces
            .keys()
            .map(|i| size.saturating_sub((*i as u64).saturating_mul(piece)).min(piece))
            .sum()
    }
}

/// A journal open for more lines.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Reads a journal; `None` when there is none or it is not one.
    pub fn peek(path: &Path) -> Option<Contents> {
        let mut text = Vec::new();
        File::open(path).ok()?.take(LONGEST).read_to_end(&mut text).ok()?;
        let mut lines = text.split(|b| *b == b'\n');
        let header: Header = serde_json::from_slice(lines.next()?).ok()?;
        if header.version != 1 || !(512..=1 << 30).contains(&header.piece) || header.size == 0 {
            return None;
        }
        let count = header.size.div_ceil(header.piece);
        let pieces = lines
            .filter_map(|line| {
                let (index, crc) = line.split_at_checked(8)?;
                let (index, crc) = (hexadecimal(index)?, hexadecimal(crc.strip_prefix(b" ")?)?);
                (u64::from(index) < count).then_some((index as usize, crc))
            })
            .collect();
        Some(Contents { header, pieces })
    }

    /// Begins a journal, in place of any there was.
    pub fn create(path: &Path, header: &Header) -> Result<Self, Error> {
        let write = || {
            let mut line = serde_json::to_vec(header)?;
            line.push(b'\n');
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            file.set_len(0)?;
            file.write_all(&line)?;
            Ok(file)
        };
        let file = write().map_err(Error::io("write", path))?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Goes on with a journal that [`Journal::peek`] could read.
    pub fn append_to(path: &Path) -> Result<Self, Error> {
        let open = || {
            let mut file = OpenOptions::new().append(true).open(path)?;
            // Ends a line that a full disk cut short; an empty line is skipped by readers.
            file.write_all(b"\n")?;
            Ok(file)
        };
        let file = open().map_err(Error::io("write", path))?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Records a piece whose bytes have been written.
    pub fn record(&mut self, index: usize, crc: u32) -> Result<(), Error> {
        self.file
            .write_all(format!("{index:08x} {crc:08x}\n").as_bytes())
            .map_err(Error::io("write", &self.path))
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    if digits.len() != 8 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_or_foreign_line_costs_only_its_piece() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j");
        let header = Header { version: 1, file: "f".into(), size: 10_000, piece: 1024 };
        let mut journal = Journal::create(&path, &header).unwrap();
        journal.record(0, 7).unwrap();
        journal.record(9, 0xffff_ffff).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"00000003 0000").unwrap();
        let mut journal = Journal::append_to(&path).unwrap();
        journal.record(4, 5).unwrap();
        file.write_all(b"0000000a 00000000\n\xff\xfe\n+0000001 +0000001\n").unwrap();
        file.write_all(&[0; 40]).unwrap();
        let contents = Journal::peek(&path).unwrap();
        assert_eq!(contents.header, header);
        let pieces: Vec<_> = contents.pieces.clone().into_iter().collect();
        // "+0000001" is a number to the standard library; piece 10 would be beyond the end.
        assert_eq!(pieces, [(0, 7), (4, 5), (9, 0xffff_ffff)]);
        assert_eq!(contents.present(), 2 * 1024 + (10_000 - 9 * 1024));
    }

    #[test]
    fn what_is_no_journal_is_not_taken_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j");
        assert!(Journal::peek(&path).is_none());
        for text in [
            "",
            "\n",
            "{}",
            r#"{"version":2,"file":"f","size":10,"piece":1024}"#,
            r#"{"version":1,"file":"f","size":10,"piece":0}"#,
            r#"{"version":1,"file":"f","size":0,"piece":1024}"#,
        ] {
            std::fs::write(&path, text).unwrap();
            assert!(Journal::peek(&path).is_none(), "{text}");
        }
    }
}
