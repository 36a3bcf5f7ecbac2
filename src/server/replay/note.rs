//! The note that goes out with reasoning and comes back with it: opaque, and nobody else's.

use std::sync::Arc;

use base64::engine::general_purpose::STANDARD_NO_PAD;
use base64::Engine as _;
use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey, CHACHA20_POLY1305, NONCE_LEN};

use super::pack::{push_ids, Bytes};
use super::Secret;
use crate::engine::Namespace;

/// Characters of a note at most; longer ones are not ours.
const LONGEST: usize = 8 << 20;

/// Which answer this is, and what was thought before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The record of the answer.
    pub record: [u8; 16],
    /// Ids of the reasoning.
    pub reasoning: Arc<[u32]>,
}

impl Note {
    /// As text that only the holder of `secret` can open, for this namespace only.
    pub fn seal(&self, secret: &Secret, namespace: Namespace) -> Option<String> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = self.record.to_vec();
        push_ids(&self.reasoning, &mut sealed);
        let unique = Nonce::assume_unique_for_key(nonce);
        key(secret)?.seal_in_place_append_tag(unique, about(namespace), &mut sealed).ok()?;
        sealed.extend_from_slice(&nonce);
        Some(STANDARD_NO_PAD.encode(sealed))
    }

    /// Opens a note. `None` for any text that is none, of another server or another namespace.
    pub fn open(text: &str, secret: &Secret, namespace: Namespace, vocab: usize) -> Option<Self> {
        if text.len() > LONGEST {
            return None;
        }
        let mut sealed = STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
        let nonce = sealed.split_off(sealed.len().checked_sub(NONCE_LEN)?);
        let nonce = Nonce::try_assume_unique_for_key(&nonce).ok()?;
        let opened = key(secret)?.open_in_place(nonce, about(namespace), &mut sealed).ok()?;
        let mut bytes = Bytes(opened);
        let note = Self { record: bytes.array()?, reasoning: bytes.ids(vocab)? };
        bytes.0.is_empty().then_some(note)
    }
}

fn key(secret: &Secret) -> Option<LessSafeKey> {
    UnboundKey::new(&CHACHA20_POLY1305, secret.bytes()).ok().map(LessSafeKey::new)
}

fn about(namespace: Namespace) -> Aad<[u8; 24]> {
    let mut about = *b"ds4note1................";
    about[8..].copy_from_slice(&namespace.0);
    Aad::from(about)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Namespace = Namespace([7; 16]);

    fn note() -> Note {
        Note { record: [9; 16], reasoning: [1, 300, 129_279].into() }
    }

    #[test]
    fn a_note_comes_back() {
        let secret = Secret::random();
        for note in [note(), Note { reasoning: [].into(), ..note() }] {
            let sealed = note.seal(&secret, OWNER).unwrap();
            assert_eq!(Note::open(&sealed, &secret, OWNER, 129_280), Some(note.clone()));
            // Some clients pad what they take for base64.
            assert_eq!(Note::open(&format!("{sealed}=="), &secret, OWNER, 129_280), Some(note));
        }
    }

    #[test]
    fn no_other_note_is_opened() {
        let secret = Secret::random();
        let sealed = note().seal(&secret, OWNER).unwrap();
        assert_ne!(note().seal(&secret, OWNER).unwrap(), sealed, "notes tell that they are equal");
        assert_eq!(Note::open(&sealed, &Secret::random(), OWNER, 129_280), None);
        assert_eq!(Note::open(&sealed, &secret, Namespace::default(), 129_280), None);
        assert_eq!(Note::open(&sealed, &secret, OWNER, 129_279), None, "an id out of range");
        for at in 0..sealed.len() {
            let mut forged = sealed.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            assert_eq!(Note::open(&forged, &secret, OWNER, 129_280), None, "{at}");
            assert_eq!(Note::open(&sealed[..at], &secret, OWNER, 129_280), None, "{at}");
        }
        for foreign in ["", "é", "ErUBCkYIBxgCIkD", "msg_0123", "===="] {
            assert_eq!(Note::open(foreign, &secret, OWNER, 129_280), None, "{foreign}");
        }
    }
}
