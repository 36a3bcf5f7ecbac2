//! What a page or a frontier is called: a hash over everything that its bytes depend on.
//!
//! ```text
//! root      = blake3("ds4-kv root\n"     ‖ version u32 ‖ fingerprint 32 ‖ namespace 16
//!                       ‖ tokens of a page u32 ‖ bytes of a page u64)
//! page i    = blake3("ds4-kv page\n"     ‖ page i−1, or root ‖ its ids u32)
//! frontier  = blake3("ds4-kv frontier\n" ‖ its last whole page, or root ‖ the ids after that page)
//! checksum  = blake3("ds4-kv " part "\n" ‖ key of the page or frontier ‖ bytes)
//! ```
//!
//! Integers are little-endian. Two sequences have the same key exactly if they have the same ids
//! so far, in the same namespace of the same model.

use std::fmt;

use super::fingerprint::Fingerprint;
use super::FORMAT_VERSION;

/// Whose tokens these are: entries of one namespace are never found from another.
pub type Namespace = [u8; 16];

/// The hash of a chain of pages, or of a frontier at its end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub(super) [u8; 32]);

/// The name of a file, without its ending: half of a hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(pub(super) [u8; 16]);

/// A part of the state that has a checksum of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Page,
    State,
    Logits,
    Attachment,
}

impl Key {
    /// Where every chain of a model and a namespace begins.
    pub(super) fn root(
        fingerprint: &Fingerprint,
        namespace: &Namespace,
        page_tokens: usize,
        page_bytes: u64,
    ) -> Self {
        Self::hash(&[
            b"ds4-kv root\n",
            &FORMAT_VERSION.to_le_bytes(),
            fingerprint.as_bytes(),
            namespace,
            &(page_tokens as u32).to_le_bytes(),
            &page_bytes.to_le_bytes(),
        ])
    }

    /// The key of the page of `ids` that follows this one.
    pub(super) fn page(&self, ids: &[u32]) -> Self {
        Self::of_ids(b"ds4-kv page\n", self, ids)
    }

    /// The key of the frontier that is `tail`, less than a page, beyond this page.
    pub(super) fn frontier(&self, tail: &[u32]) -> Self {
        Self::of_ids(b"ds4-kv frontier\n", self, tail)
    }

    /// The checksum of a part's bytes; it also says whose bytes they are.
    pub(super) fn checksum(&self, part: Part, bytes: &[u8]) -> [u8; 32] {
        let tag: &[u8] = match part {
            Part::Page => b"ds4-kv rows\n",
            Part::State => b"ds4-kv state\n",
            Part::Logits => b"ds4-kv logits\n",
            Part::Attachment => b"ds4-kv attachment\n",
        };
        Self::hash(&[tag, &self.0, bytes]).0
    }

    /// The name of the file of this frontier.
    pub(super) fn name(&self) -> Name {
        let mut name = [0; 16];
        name.copy_from_slice(&self.0[..16]);
        Name(name)
    }

    /// The name of the file with the pages after this one, up to `last`.
    pub(super) fn run_name(&self, last: &Self) -> Name {
        Self::hash(&[b"ds4-kv pages\n", &self.0, &last.0]).name()
    }

    fn of_ids(tag: &[u8], parent: &Self, ids: &[u32]) -> Self {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        Self::hash(&[tag, &parent.0, &bytes])
    }

    fn hash(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }
}

impl Name {
    /// Reads 32 hexadecimal digits, small letters.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(|number| Self(number.to_be_bytes()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.name(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_in_everything_that_the_bytes_depend_on() {
        let (a, b) = (Fingerprint::from_bytes([1; 32]), Fingerprint::from_bytes([2; 32]));
        let roots = [
            Key::root(&a, &[0; 16], 128, 10),
            Key::root(&b, &[0; 16], 128, 10),
            Key::root(&a, &[1; 16], 128, 10),
            Key::root(&a, &[0; 16], 128, 11),
            Key::root(&a, &[0; 16], 64, 10),
        ];
        let page: Vec<u32> = (0..128).collect();
        let mut keys: Vec<Key> = roots.to_vec();
        for root in roots {
            keys.extend([root.page(&page), root.frontier(&page[..127]), root.frontier(&[])]);
            keys.push(root.page(&page).page(&page));
        }
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);
        let sums = [Part::Page, Part::State, Part::Logits, Part::Attachment]
            .map(|part| roots[0].checksum(part, b"x"));
        assert!((1..4).all(|i| !sums[..i].contains(&sums[i])));
    }

    #[test]
    fn only_our_own_spelling_of_a_name_is_one() {
        let name = Key([0xab; 32]).name();
        assert_eq!(Name::parse(&name.to_string()), Some(name));
        for text in
            ["", "ab", &"AB".repeat(16), &"+b".repeat(16), &"ab".repeat(17), &"é".repeat(16)]
        {
            assert_eq!(Name::parse(text), None, "{text}");
        }
    }
}
