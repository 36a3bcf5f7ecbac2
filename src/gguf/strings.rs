//! An array of strings, kept as it lies in the file.

#![forbid(unsafe_code)]

use std::fmt;

use bytes::Bytes;

/// Bytes in front of each string: its length as a little-endian u64.
const PREFIX: usize = 8;

/// An array of strings that may hold any bytes (tokens need not be UTF-8).
///
/// A vocabulary has more than a hundred thousand of them, so they stay in the file's own layout
/// (length, bytes, length, bytes, …) with one index entry each, instead of an allocation each.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Strings {
    raw: Bytes,
    /// Where each string ends in `raw`.
    ends: Vec<usize>,
}

impl Strings {
    /// Wraps `raw`, whose strings end at `ends`; the parser has checked the lengths.
    pub(super) fn from_parts(raw: Bytes, ends: Vec<usize>) -> Self {
        Self { raw, ends }
    }

    /// The array as a file stores it, without type and count.
    pub(super) fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no string.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// String `i` as bytes.
    pub fn get(&self, i: usize) -> Option<&[u8]> {
        let end = *self.ends.get(i)?;
        let before = match i.checked_sub(1) {
            Some(j) => *self.ends.get(j)?,
            None => 0,
        };
        self.raw.get(before.checked_add(PREFIX)?..end)
    }

    /// String `i` as text, `None` if there is no such string or it is not UTF-8.
    pub fn get_str(&self, i: usize) -> Option<&str> {
        std::str::from_utf8(self.get(i)?).ok()
    }

    /// The strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + '_ {
        (0..self.len()).map(|i| self.get(i).unwrap_or_default())
    }
}

impl<S: AsRef<[u8]>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut raw = Vec::new();
        let mut ends = Vec::new();
        for s in strings {
            let s = s.as_ref();
            raw.extend_from_slice(&(s.len() as u64).to_le_bytes());
            raw.extend_from_slice(s);
            ends.push(raw.len());
        }
        Self { raw: raw.into(), ends }
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.iter().take(8).map(String::from_utf8_lossy);
        write!(f, "{} strings ", self.len())?;
        f.debug_list().entries(shown).finish()
    }
}
