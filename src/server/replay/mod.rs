//! Exact replay: what the model chose is put back when a client sends it back.
//!
//! A client of these dialects keeps the conversation and sends all of it each time, as JSON: without
//! the white space the model wrote between arguments, often without its reasoning. Rendered anew,
//! that is another prompt than the one whose state is cached, and everything after the first
//! difference would have to be computed again. So the ids of every answer are kept here, and a
//! message that a client sends back is recognised
//!
//! * by the ids of its calls, which are 128 random bits each,
//! * by what was sent along with its reasoning (Anthropic's `signature`, the Responses API's
//!   `encrypted_content`): a sealed note that nobody else can write, or
//! * by its text, if the conversation before it is the same.
//!
//! It is replaced by those ids if, and only if, what the client shows of it is what was said: text,
//! reasoning (unless it was left out), names and arguments of calls. An edited message is rendered
//! as it stands. Nothing matches across namespaces.
//!
//! The note holds the ids of the reasoning itself, so that reasoning survives a server that has
//! forgotten the rest or was started again with the same [`Secret`]. The records can go with a
//! cached prompt as bytes: [`Attach`].

mod note;
mod pack;
mod record;
mod secret;
mod store;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::engine::{self, Attach, Chosen, Namespace, Outcome, Update};
use crate::prompt::{
    Conversation, Fingerprint, Message, Recall, Recorded, Rendered, Replayed, Role,
};
use crate::tokenizer::Tokenizer;

use super::{Answer, Content, Finish, Keep, Reading, Sampled, Whole};
use note::Note;
use record::{call_key, Call, Record};
pub use secret::{Secret, SecretError};
use store::Store;

/// Bytes of records that a server keeps unless told otherwise.
pub const REPLAY_BYTES: usize = 256 << 20;

/// The answers that a server remembers.
pub struct Replay {
    tokenizer: Arc<Tokenizer>,
    secret: Secret,
    store: Mutex<Store>,
}

impl Replay {
    /// Remembers up to `bytes` of answers; the ones not used for longest are forgotten first.
    pub fn new(tokenizer: Arc<Tokenizer>, secret: Secret, bytes: usize) -> Self {
        Self { tokenizer, secret, store: Mutex::new(Store::new(bytes)) }
    }

    /// Renders a conversation with what is remembered of its assistant's messages.
    pub fn render(&self, namespace: Namespace, conversation: &Conversation) -> Replayed {
        let messages = self.gather(namespace, &conversation.messages);
        let mut recalling = Recalling { replay: self, namespace };
        match messages {
            None => conversation.render_with(&mut recalling),
            Some(messages) => Conversation {
                messages,
                tools: conversation.tools.clone(),
                thinking: conversation.thinking,
                response_schema: conversation.response_schema.clone(),
                ending: conversation.ending,
            }
            .render_with(&mut recalling),
        }
    }

    /// What remembers one answer.
    ///
    /// `before` is what [`Replay::render`] said of its prompt, `reading` how it is read.
    pub fn keeper(
        self: &Arc<Self>,
        namespace: Namespace,
        before: Fingerprint,
        reading: Reading,
    ) -> Box<dyn Keep> {
        let replay = Arc::clone(self);
        Box::new(Keeper { replay, namespace, before, reading, id: rand::random() })
    }

    /// Bytes of what is remembered.
    pub fn bytes(&self) -> usize {
        self.locked().bytes()
    }

    fn locked(&self) -> MutexGuard<'_, Store> {
        // Every change to the store is complete before anything in it can panic.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts together the messages of one answer that a client has taken apart: text and calls as
    /// two messages, or every call followed by its result. `None` if there are none.
    fn gather(&self, namespace: Namespace, messages: &[Message]) -> Option<Vec<Message>> {
        let mut store = self.locked();
        let mut answer = |message: &Message| {
            let call = (message.role == Role::Assistant).then(|| message.tool_calls.first())??;
            store.by_call(namespace, call_key(&call.id)?)
        };
        let mut gathered: Vec<Message> = Vec::with_capacity(messages.len());
        // Where the answer that is being put together is, and which it is.
        let mut open: Option<(usize, Arc<Record>)> = None;
        let mut changed = false;
        for message in messages {
            if message.role == Role::Assistant {
                match (answer(message), &open) {
                    (Some(record), Some((at, same)))
                        if record.id == same.id && message.content.is_empty() =>
                    {
                        let whole = &mut gathered[*at];
                        whole.tool_calls.extend(message.tool_calls.iter().cloned());
                        changed = true;
                        continue;
                    }
                    (Some(record), _) => {
                        let said = gathered.last_mut().filter(|said| {
                            said.role == Role::Assistant
                                && said.tool_calls.is_empty()
                                && message.content.is_empty()
                                && !said.content.is_empty()
                                && record::digest(&said.content) == record.text
                        });
                        if let Some(said) = said {
                            said.tool_calls.extend(message.tool_calls.iter().cloned());
                            said.reasoning =
                                said.reasoning.take().or_else(|| message.reasoning.clone());
                            said.replay = said.replay.take().or_else(|| message.replay.clone());
                            changed = true;
                        } else {
                            gathered.push(message.clone());
                        }
                        open = Some((gathered.len() - 1, record));
                        continue;
                    }
                    (None, _) => open = None,
                }
            } else if message.role != Role::Tool {
                open = None;
            }
            gathered.push(message.clone());
        }
        changed.then_some(gathered)
    }
}

impl Attach for Replay {
    /// The records of the answers that are in `tokens`.
    fn attachment(&self, namespace: Namespace, tokens: &[u32]) -> Vec<u8> {
        pack::pack(&self.locked().within(namespace, tokens, self.tokenizer.control()))
    }

    /// Bytes that are damaged, or of another version, hold no records.
    fn restore(&self, namespace: Namespace, attachment: &[u8]) {
        let records = pack::unpack(attachment, self.tokenizer.vocab_size()).unwrap_or_default();
        let mut store = self.locked();
        for record in records {
            store.insert(namespace, record, self.tokenizer.control());
        }
    }
}

/// Remembers one answer.
struct Keeper {
    replay: Arc<Replay>,
    namespace: Namespace,
    before: Fingerprint,
    reading: Reading,
    /// The record's.
    id: [u8; 16],
}

impl Keeper {
    /// Ids of reasoning, without the token that ends it.
    fn thought<'a>(&self, reasoning: &'a [u32]) -> &'a [u32] {
        match reasoning.split_last() {
            Some((&last, before)) if last == self.replay.tokenizer.control().end_think => before,
            _ => reasoning,
        }
    }

    fn record(&self, sampled: &Sampled<'_>) -> Option<Record> {
        let Content::Reply { reasoning: opened, .. } = self.reading.content else { return None };
        let tokenizer = &self.replay.tokenizer;
        let seen = Seen::of(tokenizer, &self.reading, sampled)?;
        // A reply that was not to reason, and did, is repeated as one piece.
        let thought = if opened { sampled.reasoning } else { 0 };
        let (reasoning, rest) = sampled.ids.split_at_checked(thought)?;
        let mut rest = rest.to_vec();
        if let Finish::StopText(_) = sampled.finish {
            rest = shown(tokenizer, &rest, &seen.text);
        }
        if seen.unclosed {
            close_calls(tokenizer, &mut rest);
        }
        let calls = seen.calls.iter().zip(sampled.calls);
        let calls: Option<Vec<Call>> = calls
            .map(|(call, id)| Some(Call::new(call_key(id)?, &call.name, &call.arguments)))
            .collect();
        Some(Record {
            id: self.id,
            before: self.before,
            reasoning: self.thought(reasoning).into(),
            rest: rest.into(),
            text: record::digest(&seen.text),
            thought: record::digest(&seen.reasoning),
            calls: calls?,
        })
    }
}

impl Keep for Keeper {
    fn note(&mut self, reasoning: &[u32]) -> Option<String> {
        let note = Note { record: self.id, reasoning: self.thought(reasoning).into() };
        note.seal(&self.replay.secret, self.namespace)
    }

    fn keep(&mut self, sampled: Sampled<'_>) {
        if let Some(record) = self.record(&sampled) {
            let control = self.replay.tokenizer.control();
            self.replay.locked().insert(self.namespace, record, control);
        }
    }
}

/// One rendering.
struct Recalling<'r> {
    replay: &'r Replay,
    namespace: Namespace,
}

impl Recall for Recalling<'_> {
    fn recall(&mut self, before: Fingerprint, message: &Message) -> Option<Recorded> {
        let Self { replay, namespace } = *self;
        let note = message.replay.as_deref();
        let note = note.and_then(|note| {
            Note::open(note, &replay.secret, namespace, replay.tokenizer.vocab_size())
        });
        let record = {
            let mut store = replay.locked();
            let by_call = message.tool_calls.first().and_then(|call| call_key(&call.id));
            by_call
                .and_then(|key| store.by_call(namespace, key))
                .or_else(|| note.as_ref().and_then(|note| store.by_id(namespace, note.record)))
                .filter(|record| record.is(message))
                .or_else(|| {
                    let text = record::digest(&message.content);
                    store.by_text(namespace, before, text).filter(|record| record.is(message))
                })
        };
        if let Some(record) = record {
            return Some(Recorded {
                reasoning: Some(Arc::clone(&record.reasoning)),
                rest: Some(Arc::clone(&record.rest)),
            });
        }
        let note = note?;
        let same = message.reasoning.as_deref().is_none_or(|shown| {
            shown.trim().is_empty()
                || shown.trim() == replay.tokenizer.decode(&note.reasoning).trim()
        });
        same.then_some(Recorded { reasoning: Some(note.reasoning), rest: None })
    }
}

/// What a client has seen of an answer.
struct Seen {
    reasoning: String,
    text: String,
    calls: Vec<crate::prompt::ToolCall>,
    /// The calls are complete, the block of them is not.
    unclosed: bool,
}

impl Seen {
    /// Reads an answer again. `None` if it is not what the model would be shown again: a call was
    /// cut off.
    fn of(tokenizer: &Arc<Tokenizer>, reading: &Reading, sampled: &Sampled<'_>) -> Option<Self> {
        let chosen = |&token: &u32| Update::Token(Chosen { token, logprobs: None });
        let end = Update::End(Outcome {
            prompt_tokens: 0,
            cached_tokens: 0,
            generated_tokens: sampled.ids.len(),
            finish: match sampled.finish {
                Finish::Length => engine::Finish::Length,
                Finish::Context => engine::Finish::Context,
                Finish::Stop | Finish::StopText(_) | Finish::ToolCalls => engine::Finish::Stop,
            },
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        });
        let mut answer = Answer::new(Arc::clone(tokenizer), reading.clone(), None);
        let mut events = Vec::new();
        for update in sampled.ids.iter().map(chosen).chain([end]) {
            answer.push(update, &mut events).ok()?;
        }
        let mut whole = Whole::new();
        events.into_iter().for_each(|event| whole.push(event));
        let calls = whole.calls;
        (calls.len() == sampled.calls.len()).then_some(Self {
            unclosed: !calls.is_empty() && !closes_calls(tokenizer, sampled.ids),
            reasoning: whole.reasoning,
            text: whole.text,
            calls,
        })
    }
}

/// Whether ids end with the tag that ends a block of calls.
fn closes_calls(tokenizer: &Tokenizer, ids: &[u32]) -> bool {
    let marker = tokenizer.control().dsml;
    let after = ids.iter().rposition(|&id| id == marker).map(|at| at + 1);
    after.is_some_and(|after| tokenizer.decode(&ids[after..]).starts_with("tool_calls>"))
}

/// Ends a block of calls that the server has cut short: only one was wanted.
fn close_calls(tokenizer: &Tokenizer, ids: &mut Vec<u32>) {
    let ends_line = ids
        .last()
        .and_then(|&id| tokenizer.token_bytes(id))
        .is_some_and(|bytes| bytes.ends_with(b"\n"));
    let closing = Rendered::call_closing(!ends_line);
    // The vocabulary has the marker, or there would be no call.
    if let Ok(closing) = closing.ids(tokenizer) {
        ids.extend(closing);
    }
}

/// Ids that begin as `ids` and say `text` only.
fn shown(tokenizer: &Tokenizer, ids: &[u32], text: &str) -> Vec<u32> {
    let mut said = 0;
    let mut kept = 0;
    let mut whole = 0;
    for &id in ids {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        match text.as_bytes().get(said..said + bytes.len()) {
            Some(next) if next == bytes => said += bytes.len(),
            _ => break,
        }
        kept += 1;
        if text.is_char_boundary(said) {
            whole = kept;
        }
    }
    let mut shown = ids[..whole].to_vec();
    let said: usize =
        shown.iter().map(|&id| tokenizer.token_bytes(id).map_or(0, <[u8]>::len)).sum();
    tokenizer.encode_into(&text[said..], &mut shown);
    shown
}

#[cfg(test)]
mod tests;
