//! What is remembered of one answer.

use std::sync::Arc;

use serde_json::Value;

use crate::prompt::{Fingerprint, Message};

/// A short hash: long enough that nobody finds two texts with the same one.
pub type Digest = [u8; 16];

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What the note of it says.
    pub id: [u8; 16],
    /// The prompt it answers.
    pub before: Fingerprint,
    /// Ids of its reasoning, without the token that ends it.
    pub reasoning: Arc<[u32]>,
    /// Ids of the rest.
    pub rest: Arc<[u32]>,
    /// Of its text.
    pub text: Digest,
    /// Of its reasoning.
    pub thought: Digest,
    /// Its calls.
    pub calls: Vec<Call>,
}

/// One call of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its id.
    pub key: [u8; 16],
    /// Of name and arguments.
    pub said: Digest,
}

impl Call {
    /// A call by what identifies it and what it says.
    pub fn new(key: [u8; 16], name: &str, arguments: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hash_text(name, &mut hasher);
        match serde_json::from_str(arguments) {
            Ok(value) => hash_value(&value, &mut hasher),
            Err(_) if arguments.trim().is_empty() => {
                hash_value(&Value::Object(serde_json::Map::new()), &mut hasher);
            }
            Err(_) => hash_text(arguments.trim(), &mut hasher),
        }
        Self { key, said: short(&hasher) }
    }
}

impl Record {
    /// Whether a client's message says what this answer said: reasoning may be left out, white
    /// space at the ends and the spelling of JSON may differ.
    pub fn is(&self, message: &Message) -> bool {
        let calls = &message.tool_calls;
        let thought = message.reasoning.as_deref().unwrap_or_default();
        self.calls.len() == calls.len()
            && digest(&message.content) == self.text
            && (thought.trim().is_empty() || digest(thought) == self.thought)
            && calls.iter().zip(&self.calls).all(|(call, known)| {
                call_key(&call.id)
                    .is_some_and(|key| Call::new(key, &call.name, &call.arguments) == *known)
            })
    }

    /// Bytes that it takes, about.
    pub fn bytes(&self) -> usize {
        let ids = self.reasoning.len() + self.rest.len();
        // Its entries in the tables count too.
        512 + 4 * ids + 128 * self.calls.len()
    }
}

/// What an id stands for: its last 32 characters, which are 128 bits. What is before them differs
/// between dialects.
pub fn call_key(id: &str) -> Option<[u8; 16]> {
    let digits = id.len().checked_sub(32).and_then(|start| id.get(start..))?;
    let lower = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let key = lower.then(|| u128::from_str_radix(digits, 16).ok())??;
    Some(key.to_be_bytes())
}

/// The hash of a text, white space at its ends apart.
pub fn digest(text: &str) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hash_text(text.trim(), &mut hasher);
    short(&hasher)
}

fn short(hasher: &blake3::Hasher) -> Digest {
    let mut short = [0; 16];
    hasher.finalize_xof().fill(&mut short);
    short
}

fn hash_text(text: &str, hasher: &mut blake3::Hasher) {
    hash_length(b'"', text.len(), hasher);
    hasher.update(text.as_bytes());
}

fn hash_length(kind: u8, length: usize, hasher: &mut blake3::Hasher) {
    hasher.update(&[kind]);
    hasher.update(&(length as u64).to_le_bytes());
}

/// Hashes what a value means rather than how it is written: a client in JavaScript writes `1.0` as
/// `1`, and other clients sort keys.
fn hash_value(value: &Value, hasher: &mut blake3::Hasher) {
    match value {
        Value::Null => hash_length(b'n', 0, hasher),
        Value::Bool(value) => hash_length(b'b', usize::from(*value), hasher),
        Value::Number(number) => {
            // Adding 0 makes -0 a 0.
            let number = number.as_f64().unwrap_or(f64::NAN) + 0.0;
            hash_length(b'0', 8, hasher);
            hasher.update(&number.to_le_bytes());
        }
        Value::String(text) => hash_text(text, hasher),
        Value::Array(values) => {
            hash_length(b'[', values.len(), hasher);
            values.iter().for_each(|value| hash_value(value, hasher));
        }
        Value::Object(members) => {
            hash_length(b'{', members.len(), hasher);
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(key, _)| *key);
            for (key, value) in members {
                hash_text(key, hasher);
                hash_value(value, hasher);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(arguments: &str) -> Call {
        Call::new([0; 16], "f", arguments)
    }

    #[test]
    fn spelling_of_arguments_makes_no_difference() {
        let same = [
            ("{\"a\": 1.0, \"b\": [true, null]}", "{\"b\":[true,null],\"a\":1}"),
            ("{}", ""),
            ("{\"a\": -0.0}", "{\"a\":0}"),
            ("{\"a\": \"\\u00e9\"}", "{\"a\":\"é\"}"),
            ("no json ", "no json"),
        ];
        for (one, other) in same {
            assert_eq!(said(one), said(other), "{one}");
        }
    }

    #[test]
    fn what_arguments_say_makes_a_difference() {
        let all = [
            "{}",
            "[]",
            "null",
            "{\"a\":1}",
            "{\"a\":\"1\"}",
            "{\"a\":true}",
            "{\"a\":[1]}",
            "{\"a\":{\"b\":1}}",
            "{\"a\":1,\"b\":1}",
            "{\"a\":[],\"b\":1}",
            "{\"a\":1",
            "\"{}\"",
        ];
        for (index, one) in all.iter().enumerate() {
            for other in &all[..index] {
                assert_ne!(said(one), said(other), "{one} {other}");
            }
        }
        assert_ne!(Call::new([0; 16], "g", "{}"), said("{}"));
    }

    #[test]
    fn ids_are_128_bits_in_hexadecimal() {
        let digits = "00112233445566778899aabbccddeeff";
        let key = call_key(&format!("call_{digits}"));
        assert_eq!(key.map(|key| key[1]), Some(0x11));
        assert_eq!(call_key(&format!("toolu_{digits}")), key);
        assert_eq!(call_key(digits), key);
        for other in
            ["", "call_1", &digits[1..], &digits.to_uppercase(), "é0112233445566778899aabbccddeeff"]
        {
            assert_eq!(call_key(other), None, "{other}");
        }
        assert_eq!(call_key("call_+0112233445566778899aabbccddeeff"), None);
    }
}
