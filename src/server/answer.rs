//! One answer: what the engine tells about it, made into what a client is told.
//!
//! The ids go through the prompt's [`Reader`], the text of that through [`Stops`]. The result
//! depends on the ids alone, never on how they come; so an answer that is streamed and the same
//! answer in one piece cannot differ.

use std::collections::VecDeque;
use std::sync::Arc;

use super::stop::Stops;
use super::{End, Event, Finish, Usage};
use crate::engine::{self, Chosen, EngineError, TokenLogprob, Update};
use crate::prompt::{Event as Piece, Fault, Reader, Thinking};
use crate::tokenizer::{Decoder, Tokenizer, DSML};

/// How an answer is to be read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// What the ids are.
    pub content: Content,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Whether there may be more than one call.
    pub parallel_tool_calls: bool,
    /// What the ids of calls begin with.
    pub call_prefix: &'static str,
}

/// What the ids of an answer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A reply of the prompt template.
    Reply {
        /// It begins with reasoning.
        reasoning: bool,
        /// It may call tools. If it may not, tool call markers are dropped and the rest is text.
        tools: bool,
    },
    /// Text, control tokens spelled out.
    Text,
}

/// Why an answer did not come to its end.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The engine could not go on.
    #[error("{0}")]
    Engine(Arc<EngineError>),
    /// A call had begun, and what followed makes no call.
    #[error("the model wrote a tool call that cannot be read ({0}); try again")]
    Call(Fault),
    /// Nobody works on it any more.
    #[error("the server is shutting down")]
    Stopped,
}

/// The ids of an answer as the model chose them.
#[derive(Clone, Copy, Debug)]
pub struct Sampled<'a> {
    /// All of them, without the end-of-sequence token. After calls they end with the last one's
    /// closing tag or that of their block.
    pub ids: &'a [u32],
    /// How many of the first are reasoning, the token that ends it included.
    pub reasoning: usize,
    /// Ids of the complete calls, in order.
    pub calls: &'a [String],
    /// Why it ended.
    pub finish: &'a Finish,
}

/// Keeps what was sampled for when a client sends the answer back.
pub trait Keep: Send {
    /// What brings the answer back, as text that a client keeps with its reasoning. Once at most,
    /// before [`keep`](Self::keep).
    fn note(&mut self, reasoning: &[u32]) -> Option<String>;

    /// The answer is complete.
    fn keep(&mut self, sampled: Sampled<'_>);
}

/// Turns the updates of one job into events.
pub struct Answer {
    tokenizer: Arc<Tokenizer>,
    reader: Read,
    /// The reply may call tools.
    tools: bool,
    stops: Stops,
    parallel_tool_calls: bool,
    call_prefix: &'static str,
    keep: Option<Box<dyn Keep>>,
    /// Reasoning was told, and perhaps not its end.
    thinking: bool,
    note: Option<String>,
    begun: bool,
    usage: Usage,
    ids: Vec<u32>,
    /// Of `ids`, those up to the end of reasoning.
    reasoning: usize,
    calls: Vec<String>,
    /// The call that has begun and not ended.
    open: Option<String>,
    logprobs: Waiting,
}

/// What reads the ids.
enum Read {
    Reply(Box<Reader>),
    Text(Decoder),
    /// The end was told.
    Done,
}

/// Probabilities of tokens whose text is not told yet.
#[derive(Default)]
struct Waiting {
    tokens: VecDeque<(usize, (TokenLogprob, Vec<TokenLogprob>))>,
    /// Bytes of text that tokens gave, and that were told.
    given: usize,
    told: usize,
}

impl Waiting {
    fn push(&mut self, bytes: usize, chosen: Chosen) {
        if let Some(logprobs) = chosen.logprobs {
            self.tokens.push_back((self.given, logprobs));
        }
        self.given += bytes;
    }

    /// The tokens that the next `bytes` of text come from.
    fn tell(&mut self, bytes: usize) -> Vec<(TokenLogprob, Vec<TokenLogprob>)> {
        self.told += bytes;
        let told = self.tokens.iter().take_while(|(start, _)| *start < self.told).count();
        self.tokens.drain(..told).map(|(_, logprobs)| logprobs).collect()
    }

    /// Forgets tokens that became no text.
    fn clear(&mut self) {
        self.tokens.clear();
        self.given = self.told;
    }
}

impl Answer {
    /// An answer of which nothing is known yet.
    pub fn new(tokenizer: Arc<Tokenizer>, reading: Reading, keep: Option<Box<dyn Keep>>) -> Self {
        let (reader, tools) = match reading.content {
            Content::Reply { reasoning, tools } => {
                let thinking = if reasoning { Thinking::On } else { Thinking::Off };
                (Read::Reply(Box::new(Reader::new(&tokenizer, thinking))), tools)
            }
            Content::Text => (Read::Text(Decoder::new()), false),
        };
        Self {
            tokenizer,
            reader,
            tools,
            stops: Stops::new(&reading.stop),
            parallel_tool_calls: reading.parallel_tool_calls,
            call_prefix: reading.call_prefix,
            keep,
            thinking: false,
            note: None,
            begun: false,
            usage: Usage::default(),
            ids: Vec::new(),
            reasoning: 0,
            calls: Vec::new(),
            open: None,
            logprobs: Waiting::default(),
        }
    }

    /// Whether the last event was told: the job need not go on.
    pub fn is_done(&self) -> bool {
        matches!(self.reader, Read::Done)
    }

    /// Tokens so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The ids that were sampled so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Takes an update and appends the events that it completes. After the end there are none.
    ///
    /// # Errors
    /// The job failed, or a call that had begun is none: there will be no more events.
    pub fn push(&mut self, update: Update, events: &mut Vec<Event>) -> Result<(), AnswerError> {
        if self.is_done() {
            return Ok(());
        }
        let result = match update {
            Update::Prefill { cached, done, total } => {
                (self.usage.prompt, self.usage.cached) = (total, cached);
                if !self.begun {
                    events.push(Event::Prefill { cached, done, total });
                }
                if done >= total {
                    self.begin(events);
                }
                Ok(())
            }
            Update::Token(chosen) => {
                self.begin(events);
                self.token(chosen, events)
            }
            Update::End(outcome) => {
                if !self.begun {
                    (self.usage.prompt, self.usage.cached) =
                        (outcome.prompt_tokens, outcome.cached_tokens);
                }
                self.begin(events);
                self.finish(outcome.finish, events)
            }
            Update::Failed(error) => Err(AnswerError::Engine(error)),
        };
        if result.is_err() {
            self.reader = Read::Done;
        }
        result
    }

    fn begin(&mut self, events: &mut Vec<Event>) {
        if !self.begun {
            self.begun = true;
            events.push(Event::Begin(self.usage));
        }
    }

    fn token(&mut self, chosen: Chosen, events: &mut Vec<Event>) -> Result<(), AnswerError> {
        let id = chosen.token;
        self.usage.completion += 1;
        self.ids.push(id);
        let bytes = self.tokenizer.token_bytes(id).map_or(0, <[u8]>::len);
        match &mut self.reader {
            Read::Done => Ok(()),
            Read::Text(decoder) => {
                let text = decoder.push(&self.tokenizer, id);
                self.logprobs.push(bytes, chosen);
                self.text(&text, events);
                Ok(())
            }
            Read::Reply(reader) => {
                let control = *self.tokenizer.control();
                let reasoning = reader.parser().in_reasoning();
                if reasoning {
                    self.usage.reasoning += 1;
                    self.reasoning = self.ids.len();
                }
                let marker = id == control.dsml;
                let pieces = match marker && !self.tools && !reasoning {
                    true => Vec::new(),
                    false => reader.push(&self.tokenizer, id),
                };
                let swallowed = (id == control.think || id == control.end_think)
                    && pieces.is_empty()
                    && self.open.is_none();
                if !reasoning && !swallowed && self.open.is_none() {
                    self.logprobs.push(if marker { 0 } else { bytes }, chosen);
                }
                self.pieces(pieces, false, events)
            }
        }
    }

    /// Tells what the reader found; `cut` says that the answer was cut off there.
    fn pieces(
        &mut self,
        pieces: Vec<Piece>,
        cut: bool,
        events: &mut Vec<Event>,
    ) -> Result<(), AnswerError> {
        for piece in pieces {
            if !matches!(piece, Piece::Reasoning(_)) {
                self.end_reasoning(events);
            }
            match piece {
                Piece::Reasoning(text) => {
                    if !text.is_empty() {
                        self.thinking = true;
                        events.push(Event::Reasoning(text));
                    }
                }
                Piece::Text(text) => self.text(&text, events),
                Piece::ToolCallBegin { index, name } => {
                    self.release(events);
                    self.logprobs.clear();
                    let id = format!("{}{:032x}", self.call_prefix, rand::random::<u128>());
                    self.open = Some(id.clone());
                    events.push(Event::ToolBegin { index, id, name });
                }
                Piece::ToolArguments { index, fragment } => {
                    events.push(Event::ToolArguments { index, fragment });
                }
                Piece::ToolCallEnd { index } => {
                    self.calls.extend(self.open.take());
                    events.push(Event::ToolEnd { index });
                    if !self.parallel_tool_calls {
                        self.end(Finish::ToolCalls, events);
                    }
                }
                Piece::ToolCallsEnd => self.end(Finish::ToolCalls, events),
                Piece::Malformed { call: Some(_), fault: Fault::Unterminated, .. } if cut => {
                    self.open = None;
                }
                Piece::Malformed { call: Some(_), fault, .. } => {
                    return Err(AnswerError::Call(fault));
                }
                // Half a tag is no text; what follows complete calls does not undo them.
                Piece::Malformed { fault: Fault::Unterminated, .. } if cut => {}
                Piece::Malformed { .. } if !self.calls.is_empty() => {
                    if !cut {
                        self.end(Finish::ToolCalls, events);
                    }
                }
                Piece::Malformed { raw, .. } => self.text(&raw.replace(DSML, ""), events),
            }
            if self.is_done() {
                break;
            }
        }
        Ok(())
    }

    /// Tells the end of reasoning, if there is one to be told.
    fn end_reasoning(&mut self, events: &mut Vec<Event>) {
        if !std::mem::take(&mut self.thinking) {
            return;
        }
        let ids = self.ids.get(..self.reasoning).unwrap_or_default();
        self.note = self.keep.as_mut().and_then(|keep| keep.note(ids));
        events.push(Event::ReasoningEnd { replay: self.note.clone() });
    }

    /// Tells text, as far as it is no stop.
    fn text(&mut self, text: &str, events: &mut Vec<Event>) {
        let passed = self.stops.push(text);
        self.tell(passed.text, events);
        if let Some(stop) = passed.stop {
            self.end(Finish::StopText(stop), events);
        }
    }

    fn release(&mut self, events: &mut Vec<Event>) {
        let held = self.stops.release();
        self.tell(held, events);
    }

    fn tell(&mut self, text: String, events: &mut Vec<Event>) {
        if text.is_empty() {
            return;
        }
        let logprobs = self.logprobs.tell(text.len());
        if !logprobs.is_empty() {
            events.push(Event::Logprobs(logprobs));
        }
        events.push(Event::Text(text));
    }

    /// The engine has ended the answer.
    fn finish(
        &mut self,
        finish: engine::Finish,
        events: &mut Vec<Event>,
    ) -> Result<(), AnswerError> {
        let (finish, cut) = match finish {
            engine::Finish::Stop => (Finish::Stop, false),
            engine::Finish::Length => (Finish::Length, true),
            engine::Finish::Context => (Finish::Context, true),
            engine::Finish::Caller | engine::Finish::Stopping => return Err(AnswerError::Stopped),
        };
        match &mut self.reader {
            Read::Done => {}
            Read::Text(decoder) => {
                let text = decoder.finish();
                self.text(&text, events);
            }
            Read::Reply(reader) => {
                let pieces = reader.clone().finish();
                self.pieces(pieces, cut, events)?;
            }
        }
        let called = !cut && !self.calls.is_empty();
        self.end(if called { Finish::ToolCalls } else { finish }, events);
        Ok(())
    }

    /// Tells the end, once.
    fn end(&mut self, finish: Finish, events: &mut Vec<Event>) {
        if self.is_done() {
            return;
        }
        self.end_reasoning(events);
        self.release(events);
        self.reader = Read::Done;
        let sampled = Sampled {
            ids: &self.ids,
            reasoning: self.reasoning,
            calls: &self.calls,
            finish: &finish,
        };
        if let Some(keep) = &mut self.keep {
            keep.keep(sampled);
        }
        let replay = self.note.take();
        events.push(Event::End(End { finish, usage: self.usage, replay }));
    }
}
