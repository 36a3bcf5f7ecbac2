//! The two kinds of files, byte for byte: docs/kv-format.md says the same in tables.
//!
//! A parser takes whatever is on the disk: it checks every length against the size of the file
//! before it makes room for anything, and the checksum before it believes anything else.

use super::fingerprint::Fingerprint;
use super::key::{Key, Namespace};
use super::FORMAT_VERSION;

/// First bytes of a file of pages.
const PAGES_MAGIC: &[u8; 8] = b"ds4-kvp\n";
/// First bytes of a file with a frontier.
const FRONTIER_MAGIC: &[u8; 8] = b"ds4-kvf\n";
/// Bytes of a checksum.
const SUM: usize = 32;
/// Bytes in front of the table of pages.
const PAGES_FIXED: usize = 128;
/// Bytes in front of the tail's ids.
const FRONTIER_FIXED: usize = 272;

/// Most pages in one file.
const MAX_PAGES: usize = 64;
/// Most tokens of a page, and of all pages in one file.
pub(super) const MAX_PAGE_TOKENS: usize = 8192;
/// Most bytes of one page.
pub(super) const MAX_PAGE_BYTES: u64 = 64 << 20;
/// Most bytes of a frontier's state.
pub(super) const MAX_STATE_BYTES: u64 = 1 << 30;
/// Most logits.
pub(super) const MAX_LOGITS: u64 = 1 << 22;
/// Most bytes of an attachment.
pub(super) const MAX_ATTACHMENT_BYTES: u64 = 64 << 20;
/// Most bytes of a label.
pub(super) const MAX_LABEL_BYTES: usize = 256;
/// Most bytes in front of the first page of a file, or in front of a frontier's state.
pub(super) const MAX_HEAD_BYTES: usize =
    FRONTIER_FIXED + 4 * MAX_PAGE_TOKENS + MAX_PAGES * SUM + SUM;

/// Why a file is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It is too short for what it should be.
    #[error("it has {found} bytes, {wanted} are needed")]
    Length {
        /// Bytes that its header asks for, at least.
        wanted: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// It does not begin as files of its kind do.
    #[error("the first 8 bytes are not those of its kind of file")]
    Magic,
    /// A part does not have the checksum that was written with it.
    #[error("{part}: the checksum is wrong")]
    Checksum {
        /// Which part.
        part: String,
    },
    /// A number is out of its range.
    #[error("{field} is {value}, out of range")]
    Field {
        /// Which.
        field: &'static str,
        /// What it is.
        value: u64,
    },
    /// The file's name is not the one that its content has.
    #[error("its name is that of another file")]
    Name,
}

/// What a header says, if it can be read at all.
#[derive(Debug)]
pub(super) enum Parsed<T> {
    /// All of it.
    Known(T),
    /// The file is of another version of the format.
    Foreign,
}

/// What both kinds of file have in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// The model.
    pub fingerprint: Fingerprint,
    /// Whose tokens.
    pub namespace: Namespace,
    /// Tokens of each page.
    pub page_tokens: usize,
    /// Bytes of each page.
    pub page_bytes: u64,
    /// When it was written, seconds since 1970.
    pub created: u64,
}

impl Origin {
    /// Where chains of this model and namespace begin.
    pub fn root(&self) -> Key {
        Key::root(&self.fingerprint, &self.namespace, self.page_tokens, self.page_bytes)
    }
}

/// The header of a file of pages: pages that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PagesHead {
    pub origin: Origin,
    /// Pages in front of the first.
    pub first: u64,
    /// The key of the page in front of the first, or the root.
    pub parent: Key,
    /// Ids of all pages.
    pub ids: Vec<u32>,
    /// Checksums of the pages.
    pub sums: Vec<[u8; 32]>,
}

impl PagesHead {
    /// Bytes in front of the first page of a file of `pages`.
    pub fn len(pages: usize, page_tokens: usize) -> usize {
        PAGES_FIXED + pages * (4 * page_tokens + SUM) + SUM
    }

    /// Bytes of a file of `pages`.
    pub fn file_len(pages: usize, page_tokens: usize, page_bytes: u64) -> u64 {
        Self::len(pages, page_tokens) as u64 + pages as u64 * page_bytes
    }

    /// Most pages that a file may have.
    pub fn most_pages(page_tokens: usize) -> usize {
        (MAX_PAGE_TOKENS / page_tokens.max(1)).clamp(1, MAX_PAGES)
    }

    /// The keys of the pages, in order.
    pub fn keys(&self) -> Vec<Key> {
        let mut key = self.parent;
        let next = |ids: &[u32]| {
            key = key.page(ids);
            key
        };
        self.ids.chunks_exact(self.origin.page_tokens).map(next).collect()
    }

    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::len(self.sums.len(), self.origin.page_tokens));
        out.extend_from_slice(PAGES_MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&(self.sums.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.origin.page_bytes.to_le_bytes());
        out.extend_from_slice(&self.origin.created.to_le_bytes());
        out.extend_from_slice(&(self.origin.page_tokens as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.origin.namespace);
        out.extend_from_slice(self.origin.fingerprint.as_bytes());
        out.extend_from_slice(&self.parent.0);
        for (ids, sum) in self.ids.chunks_exact(self.origin.page_tokens).zip(&self.sums) {
            ids.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
            out.extend_from_slice(sum);
        }
        seal(&mut out);
        out
    }

    /// Reads a header from the first [`MAX_HEAD_BYTES`] of a file of `file_len` bytes.
    pub fn parse(start: &[u8], file_len: u64) -> Result<Parsed<Self>, Damage> {
        let fixed = Bytes::new(start, PAGES_FIXED, file_len)?;
        if fixed.array(0) != *PAGES_MAGIC {
            return Err(Damage::Magic);
        }
        if fixed.u32(8) != FORMAT_VERSION {
            return Ok(Parsed::Foreign);
        }
        let page_tokens = fixed.count("tokens of a page", 40, 1, MAX_PAGE_TOKENS as u32)?;
        let most = Self::most_pages(page_tokens);
        let pages = fixed.count("number of pages", 12, 1, most as u32)?;
        let page_bytes = fixed.size("bytes of a page", 24, MAX_PAGE_BYTES)?;
        exact_len(Self::file_len(pages, page_tokens, page_bytes), file_len)?;
        let all = Bytes::new(start, Self::len(pages, page_tokens), file_len)?;
        all.check_seal("header")?;
        // The checksum is right: the fields below are what was written.
        let origin = Origin {
            fingerprint: Fingerprint::from_bytes(all.array(64)),
            namespace: all.array(48),
            page_tokens,
            page_bytes,
            created: all.u64(32),
        };
        let (first, parent) = (all.u64(16), Key(all.array(96)));
        if first > u64::from(u32::MAX) || (first == 0 && parent != origin.root()) {
            return Err(Damage::Field { field: "first page", value: first });
        }
        let entry = |page: usize| PAGES_FIXED + page * (4 * page_tokens + SUM);
        let ids = (0..pages).flat_map(|page| all.ids(entry(page), page_tokens)).collect();
        let sums = (0..pages).map(|page| all.array(entry(page) + 4 * page_tokens)).collect();
        Ok(Parsed::Known(Self { origin, first, parent, ids, sums }))
    }
}

/// The header of a frontier: what is known of a sequence beyond its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FrontierHead {
    pub origin: Origin,
    /// Tokens of the sequence.
    pub tokens: u64,
    /// The key of the last whole page, or the root.
    pub parent: Key,
    /// Ids after that page.
    pub tail: Vec<u32>,
    /// What a user may know it by.
    pub label: String,
    pub state_bytes: u64,
    /// How many.
    pub logits: u64,
    pub attachment_bytes: u64,
    /// Checksums of state, logits and attachment.
    pub sums: [[u8; 32]; 3],
}

impl FrontierHead {
    /// Its key.
    pub fn key(&self) -> Key {
        self.parent.frontier(&self.tail)
    }

    /// Pages in front of it.
    pub fn pages(&self) -> usize {
        usize::try_from(self.tokens).unwrap_or(usize::MAX) / self.origin.page_tokens
    }

    /// Bytes in front of the state.
    pub fn len(&self) -> usize {
        FRONTIER_FIXED + 4 * self.tail.len() + self.label.len() + SUM
    }

    /// Bytes of the whole file.
    pub fn file_len(&self) -> u64 {
        self.len() as u64 + self.state_bytes + 4 * self.logits + self.attachment_bytes
    }

    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        out.extend_from_slice(FRONTIER_MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&(self.tail.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.tokens.to_le_bytes());
        out.extend_from_slice(&self.origin.page_bytes.to_le_bytes());
        out.extend_from_slice(&self.origin.created.to_le_bytes());
        out.extend_from_slice(&self.state_bytes.to_le_bytes());
        out.extend_from_slice(&(self.logits as u32).to_le_bytes());
        out.extend_from_slice(&(self.attachment_bytes as u32).to_le_bytes());
        out.extend_from_slice(&(self.label.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.origin.page_tokens as u32).to_le_bytes());
        out.extend_from_slice(&self.origin.namespace);
        out.extend_from_slice(self.origin.fingerprint.as_bytes());
        out.extend_from_slice(&self.parent.0);
        out.extend_from_slice(&self.key().0);
        self.sums.iter().for_each(|sum| out.extend_from_slice(sum));
        self.tail.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
        out.extend_from_slice(self.label.as_bytes());
        seal(&mut out);
        out
    }

    /// Reads a header from the first [`MAX_HEAD_BYTES`] of a file of `file_len` bytes.
    pub fn parse(start: &[u8], file_len: u64) -> Result<Parsed<Self>, Damage> {
        let fixed = Bytes::new(start, FRONTIER_FIXED, file_len)?;
        if fixed.array(0) != *FRONTIER_MAGIC {
            return Err(Damage::Magic);
        }
        if fixed.u32(8) != FORMAT_VERSION {
            return Ok(Parsed::Foreign);
        }
        let page_tokens = fixed.count("tokens of a page", 60, 1, MAX_PAGE_TOKENS as u32)?;
        let tail = fixed.count("ids after the last page", 12, 0, page_tokens as u32 - 1)?;
        let tokens = fixed.size("number of tokens", 16, u64::from(u32::MAX))?;
        let page_bytes = fixed.size("bytes of a page", 24, MAX_PAGE_BYTES)?;
        let state_bytes = fixed.size("bytes of the state", 40, MAX_STATE_BYTES)?;
        let logits = fixed.count("number of logits", 48, 0, MAX_LOGITS as u32)? as u64;
        let attachment_bytes =
            fixed.count("bytes of the attachment", 52, 0, MAX_ATTACHMENT_BYTES as u32)? as u64;
        let label = fixed.count("bytes of the label", 56, 0, MAX_LABEL_BYTES as u32)?;
        let len = FRONTIER_FIXED + 4 * tail + label + SUM;
        exact_len(len as u64 + state_bytes + 4 * logits + attachment_bytes, file_len)?;
        let all = Bytes::new(start, len, file_len)?;
        all.check_seal("header")?;
        // The checksum is right: the fields below are what was written.
        let origin = Origin {
            fingerprint: Fingerprint::from_bytes(all.array(80)),
            namespace: all.array(64),
            page_tokens,
            page_bytes,
            created: all.u64(32),
        };
        let parent = Key(all.array(112));
        if tokens % page_tokens as u64 != tail as u64
            || (tokens < page_tokens as u64 && parent != origin.root())
        {
            return Err(Damage::Field { field: "number of tokens", value: tokens });
        }
        let text = FRONTIER_FIXED + 4 * tail;
        let head = Self {
            origin,
            tokens,
            parent,
            tail: all.ids(FRONTIER_FIXED, tail).collect(),
            label: String::from_utf8(all.slice(text, label).to_vec())
                .map_err(|_| Damage::Field { field: "label", value: text as u64 })?,
            state_bytes,
            logits,
            attachment_bytes,
            sums: [all.array(176), all.array(208), all.array(240)],
        };
        if head.key().0 != all.array(144) {
            return Err(Damage::Name);
        }
        Ok(Parsed::Known(head))
    }
}

/// Adds the checksum of a header to it.
fn seal(header: &mut Vec<u8>) {
    let sum = blake3::hash(header);
    header.extend_from_slice(sum.as_bytes());
}

fn exact_len(wanted: u64, found: u64) -> Result<(), Damage> {
    match wanted == found {
        true => Ok(()),
        false => Err(Damage::Length { wanted, found }),
    }
}

/// Bytes that are known to be there.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn new(start: &'a [u8], len: usize, file_len: u64) -> Result<Self, Damage> {
        let too_short = || Damage::Length { wanted: len as u64, found: file_len };
        start.get(..len).map(Self).ok_or_else(too_short)
    }

    fn slice(&self, offset: usize, len: usize) -> &'a [u8] {
        self.0.get(offset..offset + len).unwrap_or_default()
    }

    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.slice(offset, N).try_into().unwrap_or([0; N])
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.array(offset))
    }

    fn ids(&self, offset: usize, count: usize) -> impl Iterator<Item = u32> + 'a {
        let id = |id: &[u8]| u32::from_le_bytes(id.try_into().unwrap_or_default());
        self.slice(offset, 4 * count).chunks_exact(4).map(id)
    }

    fn count(
        &self,
        field: &'static str,
        offset: usize,
        least: u32,
        most: u32,
    ) -> Result<usize, Damage> {
        match self.u32(offset) {
            value if (least..=most).contains(&value) => Ok(value as usize),
            value => Err(Damage::Field { field, value: value.into() }),
        }
    }

    fn size(&self, field: &'static str, offset: usize, most: u64) -> Result<u64, Damage> {
        match self.u64(offset) {
            value if value <= most => Ok(value),
            value => Err(Damage::Field { field, value }),
        }
    }

    fn check_seal(&self, part: &str) -> Result<(), Damage> {
        let (bytes, sum) = self.0.split_at(self.0.len().saturating_sub(SUM));
        match blake3::hash(bytes).as_bytes() == sum {
            true => Ok(()),
            false => Err(Damage::Checksum { part: part.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin {
            fingerprint: Fingerprint::from_bytes([7; 32]),
            namespace: [9; 16],
            page_tokens: 128,
            page_bytes: 3,
            created: 1_700_000_000,
        }
    }

    fn pages() -> PagesHead {
        let origin = origin();
        let parent = origin.root();
        let ids = (0..256).collect();
        PagesHead { origin, first: 0, parent, ids, sums: vec![[1; 32], [2; 32]] }
    }

    fn frontier() -> FrontierHead {
        FrontierHead {
            origin: origin(),
            tokens: 130,
            parent: origin().root().page(&[5; 128]),
            tail: vec![70_000, 3],
            label: "héllo".to_owned(),
            state_bytes: 10,
            logits: 2,
            attachment_bytes: 1,
            sums: [[1; 32], [2; 32], [3; 32]],
        }
    }

    fn known<T>(parsed: Result<Parsed<T>, Damage>) -> Option<T> {
        match parsed {
            Ok(Parsed::Known(head)) => Some(head),
            _ => None,
        }
    }

    #[test]
    fn headers_come_back_as_they_were() {
        let (pages, frontier) = (pages(), frontier());
        let bytes = pages.encode();
        assert_eq!(bytes.len(), PagesHead::len(2, 128));
        let len = PagesHead::file_len(2, 128, 3);
        assert_eq!(known(PagesHead::parse(&bytes, len)), Some(pages.clone()));
        assert_eq!(pages.keys()[1], pages.parent.page(&pages.ids[..128]).page(&pages.ids[128..]));
        let bytes = frontier.encode();
        assert_eq!(bytes.len(), frontier.len());
        let len = frontier.file_len();
        assert_eq!(known(FrontierHead::parse(&bytes, len)), Some(frontier));
        const { assert!(MAX_HEAD_BYTES >= FRONTIER_FIXED + 4 * MAX_PAGE_TOKENS + MAX_LABEL_BYTES + SUM) };
    }

    #[test]
    fn no_changed_byte_of_a_header_is_believed() {
        let (pages, frontier) = (pages().encode(), frontier().encode());
        let (pages_len, frontier_len) =
            (PagesHead::file_len(2, 128, 3), 272 + 8 + 6 + 32 + 10 + 8 + 1);
        for bit in 0..8 * pages.len() {
            let mut bytes = pages.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(known(PagesHead::parse(&bytes, pages_len)).is_none(), "bit {bit}");
        }
        for bit in 0..8 * frontier.len() {
            let mut bytes = frontier.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(known(FrontierHead::parse(&bytes, frontier_len)).is_none(), "bit {bit}");
        }
        for len in 0..pages.len() {
            assert!(known(PagesHead::parse(&pages[..len], len as u64)).is_none());
        }
        for len in [pages_len - 1, pages_len + 1] {
            assert!(known(PagesHead::parse(&pages, len)).is_none());
        }
        for len in 0..frontier.len() {
            assert!(known(FrontierHead::parse(&frontier[..len], len as u64)).is_none());
        }
    }

    #[test]
    fn a_header_with_a_right_checksum_but_wrong_numbers_is_refused() {
        // (offset, value of 4 bytes) in a frontier whose checksum is made anew.
        for (offset, value) in [
            (12, 128),
            (60, 0),
            (60, 8193),
            (16, 131),
            (44, 1),
            (48, u32::MAX),
            (52, u32::MAX),
            (56, 257),
            (144, 0),
        ] {
            let mut bytes = frontier().encode();
            bytes[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(value));
            let len = bytes.len() - SUM;
            bytes.truncate(len);
            seal(&mut bytes);
            let parsed = FrontierHead::parse(&bytes, frontier().file_len());
            assert!(known(parsed).is_none(), "offset {offset}");
        }
        for (offset, value) in [(12, 0), (12, 65), (40, 0), (40, 8193), (24, u32::MAX), (96, 0)] {
            let mut bytes = pages().encode();
            bytes[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(value));
            let len = bytes.len() - SUM;
            bytes.truncate(len);
            seal(&mut bytes);
            let parsed = PagesHead::parse(&bytes, PagesHead::file_len(2, 128, 3));
            assert!(known(parsed).is_none(), "offset {offset}");
        }
    }
}
