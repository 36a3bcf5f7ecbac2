//! Ids to text as they stream, whole characters only.

use super::Tokenizer;

/// Turns ids into text one at a time and never cuts a character in two.
///
/// A character may be spread over several tokens; its first bytes wait here until the last one
/// arrives. The texts of all pushes and of [`finish`](Self::finish), joined, equal
/// [`String::from_utf8_lossy`] of the joined bytes.
#[derive(Debug, Clone, Default)]
pub struct Decoder {
    /// The beginning of a character: at most three bytes between pushes.
    pending: Vec<u8>,
}

impl Decoder {
    /// A decoder with nothing pending.
    pub fn new() -> Self {
        Self::default()
    }

    /// The text that `id` completes; empty while a character is still incomplete, and for an id
    /// outside the vocabulary.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        match tokenizer.token_bytes(id) {
            Some(bytes) => self.push_bytes(bytes),
            None => String::new(),
        }
    }

    /// As [`push`](Self::push), for bytes.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> String {
        if self.pending.is_empty() {
            if let Ok(text) = std::str::from_utf8(bytes) {
                return text.to_owned();
            }
        }
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut waiting = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && may_continue(invalid) {
                waiting = invalid.len();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending.drain(..self.pending.len() - waiting);
        text
    }

    /// What is left at the end of the stream: U+FFFD if a character was never completed.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// Whether more bytes could make a character of these.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut decoder = Decoder::new();
        let texts: Vec<String> =
            "a𝄞é".as_bytes().iter().map(|&byte| decoder.push_bytes(&[byte])).collect();
        assert_eq!(texts, ["a", "", "", "", "𝄞", "", "é"]);
        assert_eq!(decoder.finish(), "");
    }

    #[test]
    fn a_dangling_character_becomes_one_replacement() {
        let mut decoder = Decoder::new();
        assert_eq!(decoder.push_bytes(&[b'a', 0xf0, 0x9d, 0x84]), "a");
        assert_eq!(decoder.finish(), "\u{fffd}");
        assert_eq!(decoder.finish(), "");
    }

    proptest! {
        #[test]
        fn any_bytes_cut_anywhere_decode_as_the_whole(
            bytes in prop::collection::vec(
                prop_oneof![any::<u8>(), 0x80..=0xbfu8, 0xc0..=0xffu8, 0x20..0x7fu8], 0..64),
            cuts in prop::collection::vec(1usize..6, 64),
        ) {
            let mut decoder = Decoder::new();
            let mut text = String::new();
            let mut rest = bytes.as_slice();
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                text.push_str(&decoder.push_bytes(now));
                rest = later;
            }
            text.push_str(&decoder.push_bytes(rest));
            text.push_str(&decoder.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
