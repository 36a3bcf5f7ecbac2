//! The records that fit into memory, and the ways to find them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::record::{Digest, Record};
use crate::engine::Namespace;
use crate::prompt::Fingerprint;
use crate::tokenizer::Control;

/// What a record is found by, in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Id([u8; 16]),
    Call([u8; 16]),
    /// The prompt and the text.
    Text(Fingerprint, Digest),
    /// Its ids in a prompt, with reasoning or without.
    Span(Digest),
}

/// Records, the least recently used of which are forgotten.
pub struct Store {
    budget: usize,
    bytes: usize,
    clock: u64,
    /// By when they were used last.
    records: BTreeMap<u64, (Namespace, Arc<Record>)>,
    used: HashMap<(Namespace, Key), [u8; 16]>,
    times: HashMap<(Namespace, [u8; 16]), u64>,
}

impl Store {
    /// Holds at most `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self {
            budget,
            bytes: 0,
            clock: 0,
            records: BTreeMap::new(),
            used: HashMap::new(),
            times: HashMap::new(),
        }
    }

    /// Bytes that it holds, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a record; one with the same id is the same.
    pub fn insert(&mut self, namespace: Namespace, record: Record, control: &Control) {
        if self.times.contains_key(&(namespace, record.id)) || record.bytes() > self.budget {
            return;
        }
        for key in keys(&record, control) {
            self.used.insert((namespace, key), record.id);
        }
        self.bytes += record.bytes();
        self.clock += 1;
        self.times.insert((namespace, record.id), self.clock);
        self.records.insert(self.clock, (namespace, Arc::new(record)));
        while self.bytes > self.budget {
            let Some((_, (namespace, record))) = self.records.pop_first() else { break };
            self.bytes -= record.bytes();
            self.times.remove(&(namespace, record.id));
            for key in keys(&record, control) {
                let key = (namespace, key);
                // A later record may have the same text.
                if self.used.get(&key) == Some(&record.id) {
                    self.used.remove(&key);
                }
            }
        }
    }

    /// The record that a note names.
    pub fn by_id(&mut self, namespace: Namespace, id: [u8; 16]) -> Option<Arc<Record>> {
        self.find(namespace, Key::Id(id))
    }

    /// The record of the answer that made a call.
    pub fn by_call(&mut self, namespace: Namespace, key: [u8; 16]) -> Option<Arc<Record>> {
        self.find(namespace, Key::Call(key))
    }

    /// The record of the answer to a prompt that has this text.
    pub fn by_text(
        &mut self,
        namespace: Namespace,
        before: Fingerprint,
        text: Digest,
    ) -> Option<Arc<Record>> {
        self.find(namespace, Key::Text(before, text))
    }

    /// The records of the answers that are in `tokens`, in their order.
    pub fn within(
        &mut self,
        namespace: Namespace,
        tokens: &[u32],
        control: &Control,
    ) -> Vec<Arc<Record>> {
        let starts = tokens.iter().enumerate().filter(|(_, &id)| id == control.assistant);
        let starts: Vec<usize> = starts.map(|(at, _)| at + 2).collect();
        let mut found: Vec<Arc<Record>> = Vec::new();
        for start in starts {
            let Some(after) = tokens.get(start..) else { continue };
            let end = after.iter().position(|&id| id == control.eos).unwrap_or(after.len());
            let span = Key::Span(span(&[&after[..end]]));
            if let Some(record) = self.find(namespace, span) {
                if found.iter().all(|known| known.id != record.id) {
                    found.push(record);
                }
            }
        }
        found
    }

    fn find(&mut self, namespace: Namespace, key: Key) -> Option<Arc<Record>> {
        let id = *self.used.get(&(namespace, key))?;
        let time = self.times.get_mut(&(namespace, id))?;
        let entry = self.records.remove(time)?;
        let record = Arc::clone(&entry.1);
        self.clock += 1;
        *time = self.clock;
        self.records.insert(self.clock, entry);
        Some(record)
    }
}

fn keys(record: &Record, control: &Control) -> Vec<Key> {
    let thought = [&record.reasoning[..], &[control.end_think], &record.rest];
    let spans = [Key::Span(span(&thought)), Key::Span(span(&[&record.rest]))];
    let calls = record.calls.iter().map(|call| Key::Call(call.key));
    let text = record.calls.is_empty().then_some(Key::Text(record.before, record.text));
    calls.chain(text).chain([Key::Id(record.id)]).chain(spans).collect()
}

fn span(parts: &[&[u32]]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for id in parts.iter().copied().flatten() {
        hasher.update(&id.to_le_bytes());
    }
    let mut digest = Digest::default();
    hasher.finalize_xof().fill(&mut digest);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROL: Control = Control {
        bos: 0,
        eos: 1,
        user: 2,
        assistant: 3,
        think: 4,
        end_think: 5,
        dsml: 6,
        latest_reminder: None,
    };
    const OWNER: Namespace = Namespace([1; 16]);

    fn record(seed: u8) -> Record {
        Record {
            id: [seed; 16],
            before: Fingerprint([0; 32]),
            reasoning: [100 + u32::from(seed)].into(),
            rest: [200 + u32::from(seed), 300].into(),
            text: [seed; 16],
            thought: [0; 16],
            calls: Vec::new(),
        }
    }

    #[test]
    fn the_least_recently_used_is_forgotten() {
        let one = record(1).bytes();
        let mut store = Store::new(3 * one);
        for seed in 1..=3 {
            store.insert(OWNER, record(seed), &CONTROL);
        }
        assert!(store.by_id(OWNER, [1; 16]).is_some());
        store.insert(OWNER, record(4), &CONTROL);
        let known = [1, 2, 3, 4].map(|seed| store.by_id(OWNER, [seed; 16]).is_some());
        assert_eq!(known, [true, false, true, true]);
        assert_eq!(store.bytes(), 3 * one);
        for seed in 0..100 {
            store.insert(Namespace([seed; 16]), record(seed), &CONTROL);
        }
        assert_eq!(store.bytes(), 3 * one);
        assert_eq!((store.records.len(), store.times.len(), store.used.len()), (3, 3, 3 * 4));
    }

    #[test]
    fn nothing_is_found_in_another_namespace() {
        let mut store = Store::new(1 << 20);
        store.insert(OWNER, record(1), &CONTROL);
        let other = Namespace([2; 16]);
        assert!(store.by_id(other, [1; 16]).is_none());
        assert!(store.by_text(other, Fingerprint([0; 32]), [1; 16]).is_none());
        assert!(store.by_text(OWNER, Fingerprint([0; 32]), [1; 16]).is_some());
        assert!(store.by_text(OWNER, Fingerprint([1; 32]), [1; 16]).is_none());
        assert!(store.within(other, &[3, 5, 201, 300], &CONTROL).is_empty());
    }

    #[test]
    fn answers_are_found_in_a_prompt_with_reasoning_and_without() {
        let mut store = Store::new(1 << 20);
        for seed in 1..=3 {
            store.insert(OWNER, record(seed), &CONTROL);
        }
        let tokens = [0, 2, 9, 3, 5, 201, 300, 1, 2, 9, 3, 4, 102, 5, 202, 300, 1, 2, 3, 4];
        let found = |store: &mut Store, tokens: &[u32]| -> Vec<u8> {
            store.within(OWNER, tokens, &CONTROL).iter().map(|record| record.id[0]).collect()
        };
        assert_eq!(found(&mut store, &tokens), [1, 2]);
        assert_eq!(found(&mut store, &tokens[..16]), [1, 2], "the last one needs no end");
        assert_eq!(found(&mut store, &tokens[..15]), [1], "but it must be whole");
    }
}
