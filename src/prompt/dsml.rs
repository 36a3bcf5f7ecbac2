//! What the model writes, as it writes it, to reasoning, text and tool calls: the parser.
//!
//! A reply is `reasoning</think>text`, then perhaps a block of calls. With `¤` for the marker,
//! which is one control token:
//!
//! ```text
//! \n\n<¤tool_calls>\n
//! <¤invoke name="NAME">\n
//! <¤parameter name="KEY" string="true">raw text</¤parameter>\n
//! <¤parameter name="KEY" string="false">JSON</¤parameter>\n
//! </¤invoke>\n
//! </¤tool_calls>
//! ```
//!
//! The parser takes any sequence of pieces, cut anywhere, and loses nothing. What it decides, and
//! why:
//!
//! * **Control tokens make structure, spelling does not.** A model that writes about DSML, or
//!   repeats a message that does, spells the marker in ordinary tokens; that stays text. A marker
//!   token never appears in text, names or arguments: where it makes no tag, the piece of markup
//!   comes out as [`Event::Malformed`].
//! * `<think>` and `</think>` count where they belong: `</think>` ends reasoning, and either
//!   is swallowed where a model repeats what the prompt ended with. Elsewhere, such as in a
//!   parameter that holds source code, they are what they say, since the model has no other way to
//!   write them.
//! * **Reasoning ends with `</think>` only.** A block of calls inside it is a rehearsal, not a
//!   call: running it would do what the model has not decided to do.
//! * Between tags any white space is accepted; within them, none but the template's.
//! * A string parameter streams; its end is held back only as far as it may be a tag. Any other
//!   parameter waits for its end and is checked; what is not JSON (`True`, say) becomes a string, so
//!   that the tool's schema check can complain to the model rather than the client's JSON parser
//!   to the user.
//! * The fragments of a call's arguments, joined, are one JSON object even if the call is cut short
//!   or malformed; [`Event::Malformed`] then names the call, and it must not be run.

use std::collections::HashSet;

use super::{json, Event, Fault, Piece};
use crate::tokenizer::{DSML, END_THINK, THINK};

/// What the parser is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reasoning,
    Text,
    /// After a marker in text that opens no tag; what looks like the rest of a tag goes with it.
    Stray,
    /// After `<¤` in text.
    BlockOpen,
    /// In a block, outside a call.
    Block,
    /// After `</¤` in a block.
    BlockClose,
    /// After `<¤` in a block.
    CallOpen,
    /// In a call, outside a parameter.
    Call,
    /// After `</¤` in a call.
    CallClose,
    /// After `<¤` in a call.
    ParameterOpen,
    /// In a parameter that streams.
    StringValue,
    /// In a parameter that waits.
    JsonValue,
    /// After `</¤` in a parameter of the first, or second, kind.
    StringClose,
    /// As above.
    JsonClose,
    /// In a block that makes no sense, until it ends.
    Broken(Fault),
}

/// What a step left to do.
enum Step {
    /// The buffer holds what only more input can decide.
    Wait,
    /// Look at the buffer again.
    Again,
}

/// Splits a reply into [`Event`]s as it streams.
#[derive(Debug, Clone)]
pub struct Parser {
    state: State,
    /// Text that the state has not decided on.
    buffer: String,
    /// The name of a parameter that waits, as it opens the next fragment of arguments.
    key: String,
    /// Its value so far.
    value: String,
    /// Everything since the last complete event of a block.
    raw: String,
    /// Whether the current reasoning or text has not begun.
    fresh: bool,
    /// The next call's index, or the current one's.
    index: usize,
    in_call: bool,
    calls_in_block: usize,
    parameters: HashSet<String>,
    /// In a broken block: where in `raw` the text after the last `</¤` begins.
    closing: Option<usize>,
}

const OPEN: &str = "<";
const CLOSE: &str = "</";
const CALLS: &str = "tool_calls>";
const INVOKE: &str = "invoke>";
const INVOKE_NAME: &str = "invoke name=\"";
const PARAMETER: &str = "parameter>";
const PARAMETER_NAME: &str = "parameter name=\"";
const STRING: &str = "\" string=\"true\">";
const NO_STRING: &str = "\" string=\"false\">";

/// Bytes above which a tag that has not ended is none.
const LONGEST_HEAD: usize = 4096;

impl Parser {
    /// A parser for a reply that begins with reasoning (the prompt ended with `<think>`) or not.
    pub fn new(reasoning: bool) -> Self {
        Self {
            state: if reasoning { State::Reasoning } else { State::Text },
            buffer: String::new(),
            key: String::new(),
            value: String::new(),
            raw: String::new(),
            fresh: true,
            index: 0,
            in_call: false,
            calls_in_block: 0,
            parameters: HashSet::new(),
            closing: None,
        }
    }

    /// Whether the next token is tool call syntax rather than text, reasoning or a parameter's
    /// value: what a sampler may want to choose greedily.
    pub fn in_syntax(&self) -> bool {
        !matches!(
            self.state,
            State::Reasoning
                | State::Text
                | State::Stray
                | State::Broken(_)
                | State::StringValue
                | State::JsonValue
        )
    }

    /// Whether reasoning has not ended.
    pub fn in_reasoning(&self) -> bool {
        self.state == State::Reasoning
    }

    /// Takes one piece and appends the events it completes.
    pub fn push(&mut self, piece: Piece<'_>, events: &mut Vec<Event>) {
        match piece {
            Piece::Text(text) => self.push_text(text, events),
            Piece::Marker => self.push_marker(events),
            Piece::Think if self.fresh && self.state == State::Reasoning => {}
            Piece::Think if self.fresh && self.state == State::Text => {
                self.state = State::Reasoning;
            }
            Piece::Think => self.push_text(THINK, events),
            Piece::EndThink if self.state == State::Reasoning => {
                self.state = State::Text;
                self.fresh = true;
            }
            Piece::EndThink if self.fresh && self.state == State::Text => {}
            Piece::EndThink => self.push_text(END_THINK, events),
        }
    }

    /// Ends the stream: what was held back, and what was never completed.
    pub fn finish(mut self, events: &mut Vec<Event>) {
        match self.state {
            State::Reasoning => {}
            State::Text => emit_text(std::mem::take(&mut self.buffer), events),
            State::Stray => self.emit_malformed(Fault::Stray, events),
            State::Broken(fault) => self.emit_malformed(fault, events),
            State::Block if self.calls_in_block > 0 && self.raw.trim().is_empty() => {}
            _ => {
                self.close_arguments(events);
                self.emit_malformed(Fault::Unterminated, events);
            }
        }
    }

    fn push_text(&mut self, text: &str, events: &mut Vec<Event>) {
        if text.is_empty() {
            return;
        }
        match self.state {
            State::Reasoning => {
                self.fresh = false;
                events.push(Event::Reasoning(text.to_owned()));
                return;
            }
            State::Text => self.fresh = false,
            _ => self.raw.push_str(text),
        }
        self.buffer.push_str(text);
        while let Step::Again = self.step(events) {}
    }

    fn push_marker(&mut self, events: &mut Vec<Event>) {
        if self.state == State::Reasoning {
            self.push_text(DSML, events);
            return;
        }
        if self.state == State::Stray {
            self.emit_malformed(Fault::Stray, events);
            self.state = State::Text;
        }
        let before = std::mem::take(&mut self.buffer);
        if self.state == State::Text {
            self.fresh = false;
            self.state = if before.ends_with(OPEN) { State::BlockOpen } else { State::Stray };
            if before.ends_with(OPEN) || before.ends_with(CLOSE) {
                self.raw = before;
            } else {
                emit_text(before, events);
            }
            self.raw.push_str(DSML);
            self.calls_in_block = 0;
            return;
        }
        self.raw.push_str(DSML);
        match self.state {
            State::Block if before == OPEN => self.state = State::CallOpen,
            State::Block if before == CLOSE => self.state = State::BlockClose,
            State::Call if before == OPEN => self.state = State::ParameterOpen,
            State::Call if before == CLOSE => self.state = State::CallClose,
            State::StringValue if before == CLOSE => self.state = State::StringClose,
            State::JsonValue if before == CLOSE => self.state = State::JsonClose,
            State::Broken(_) => {
                self.closing = before.ends_with(CLOSE).then_some(self.raw.len());
            }
            _ => {
                self.break_block(Fault::Tag, events);
                self.closing = before.ends_with(CLOSE).then_some(self.raw.len());
            }
        }
    }

    /// Decides as much of the buffer as it can.
    fn step(&mut self, events: &mut Vec<Event>) -> Step {
        match self.state {
            State::Reasoning => Step::Wait,
            State::Text => {
                let decided = self.buffer.len() - undecided_text(&self.buffer);
                let text: String = self.buffer.drain(..decided).collect();
                emit_text(text, events);
                Step::Wait
            }
            State::Stray => self.step_stray(events),
            State::Block | State::Call => {
                let blank = self.buffer.len() - self.buffer.trim_start().len();
                self.buffer.drain(..blank);
                match self.buffer.as_str() {
                    "" | OPEN | CLOSE => Step::Wait,
                    _ => self.break_block(Fault::Text, events),
                }
            }
            State::StringValue => {
                let decided = self.buffer.len() - undecided_value(&self.buffer);
                let text: String = self.buffer.drain(..decided).collect();
                if !text.is_empty() {
                    let mut fragment = String::with_capacity(text.len());
                    json::escape_into(&text, &mut fragment);
                    self.emit_arguments(fragment, events);
                }
                Step::Wait
            }
            State::JsonValue => {
                let decided = self.buffer.len() - undecided_value(&self.buffer);
                self.value.extend(self.buffer.drain(..decided));
                Step::Wait
            }
            State::BlockOpen => self.expect(CALLS, State::Block, events),
            State::BlockClose => match self.expect(CALLS, State::Text, events) {
                Step::Again if self.state == State::Text => self.end_block(events),
                step => step,
            },
            State::CallOpen => self.step_call_open(events),
            State::CallClose => match self.expect(INVOKE, State::Block, events) {
                Step::Again if self.state == State::Block => self.end_call(events),
                step => step,
            },
            State::ParameterOpen => self.step_parameter_open(events),
            State::StringClose => match self.expect(PARAMETER, State::Call, events) {
                Step::Again if self.state == State::Call => {
                    self.emit_arguments("\"".to_owned(), events);
                    Step::Again
                }
                step => step,
            },
            State::JsonClose => match self.expect(PARAMETER, State::Call, events) {
                Step::Again if self.state == State::Call => {
                    let mut fragment = std::mem::take(&mut self.key);
                    push_json(&mut fragment, &std::mem::take(&mut self.value));
                    self.emit_arguments(fragment, events);
                    Step::Again
                }
                step => step,
            },
            State::Broken(fault) => self.step_broken(fault, events),
        }
    }

    /// Takes `literal` from the buffer and goes on to `next`.
    fn expect(&mut self, literal: &str, next: State, events: &mut Vec<Event>) -> Step {
        if self.buffer.starts_with(literal) {
            self.buffer.drain(..literal.len());
            self.state = next;
            Step::Again
        } else if literal.starts_with(&self.buffer) {
            Step::Wait
        } else {
            self.break_block(Fault::Tag, events)
        }
    }

    fn step_stray(&mut self, events: &mut Vec<Event>) -> Step {
        let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let name = self.buffer.find(|character| !is_name(character));
        let Some(end) = name else {
            self.buffer.clear();
            return Step::Wait;
        };
        let end = if self.buffer[end..].starts_with('>') { end + 1 } else { end };
        // The rest is text, not markup.
        self.raw.truncate(self.raw.len() - (self.buffer.len() - end));
        self.buffer.drain(..end);
        self.emit_malformed(Fault::Stray, events);
        self.state = State::Text;
        Step::Again
    }

    fn step_call_open(&mut self, events: &mut Vec<Event>) -> Step {
        let Some(rest) = self.buffer.strip_prefix(INVOKE_NAME) else {
            return self.expect(INVOKE_NAME, State::CallOpen, events);
        };
        let Some(end) = rest.find("\">") else { return self.wait_for_head(events) };
        let name = rest[..end].to_owned();
        self.buffer.drain(..INVOKE_NAME.len() + end + 2);
        self.in_call = true;
        self.parameters.clear();
        events.push(Event::ToolCallBegin { index: self.index, name });
        self.state = State::Call;
        Step::Again
    }

    fn step_parameter_open(&mut self, events: &mut Vec<Event>) -> Step {
        let Some(rest) = self.buffer.strip_prefix(PARAMETER_NAME) else {
            return self.expect(PARAMETER_NAME, State::ParameterOpen, events);
        };
        let found = |attribute: &str| rest.find(attribute).map(|at| (at, attribute.len()));
        let (string, no_string) = (found(STRING), found(NO_STRING));
        let (at, length) = match (string, no_string) {
            (Some(string), Some(no_string)) => string.min(no_string),
            (Some(found), None) | (None, Some(found)) => found,
            (None, None) => return self.wait_for_head(events),
        };
        let name = rest[..at].to_owned();
        self.buffer.drain(..PARAMETER_NAME.len() + at + length);
        let mut fragment = String::from(if self.parameters.is_empty() { "{\"" } else { ", \"" });
        json::escape_into(&name, &mut fragment);
        fragment.push_str("\": ");
        if !self.parameters.insert(name) {
            return self.break_block(Fault::Duplicate, events);
        }
        if string == Some((at, length)) {
            fragment.push('"');
            self.state = State::StringValue;
        } else {
            self.key = fragment;
            self.state = State::JsonValue;
            return Step::Again;
        }
        self.emit_arguments(fragment, events);
        Step::Again
    }

    /// Waits for the rest of a tag's attributes, unless it cannot be one.
    fn wait_for_head(&mut self, events: &mut Vec<Event>) -> Step {
        if self.buffer.len() <= LONGEST_HEAD {
            Step::Wait
        } else {
            self.break_block(Fault::Tag, events)
        }
    }

    fn step_broken(&mut self, fault: Fault, events: &mut Vec<Event>) -> Step {
        // Only what may be `</` before a marker matters of the text; `raw` has all of it.
        let decided = self.buffer.len() - undecided_value(&self.buffer);
        self.buffer.drain(..decided);
        let Some(closing) = self.closing else { return Step::Wait };
        let after = &self.raw[closing..];
        if let Some(rest) = after.strip_prefix(CALLS) {
            self.buffer = rest.to_owned();
            self.raw.truncate(closing + CALLS.len());
            self.emit_malformed(fault, events);
            self.state = State::Text;
            return Step::Again;
        }
        if !CALLS.starts_with(after) {
            self.closing = None;
        }
        Step::Wait
    }

    fn end_call(&mut self, events: &mut Vec<Event>) -> Step {
        let fragment = if self.parameters.is_empty() { "{}" } else { "}" };
        self.emit_arguments(fragment.to_owned(), events);
        events.push(Event::ToolCallEnd { index: self.index });
        self.in_call = false;
        self.index += 1;
        self.calls_in_block += 1;
        self.raw = self.buffer.clone();
        Step::Again
    }

    fn end_block(&mut self, events: &mut Vec<Event>) -> Step {
        if self.calls_in_block > 0 {
            self.raw.clear();
            events.push(Event::ToolCallsEnd);
        } else {
            self.raw.truncate(self.raw.len() - self.buffer.len());
            self.emit_malformed(Fault::Empty, events);
        }
        Step::Again
    }

    fn break_block(&mut self, fault: Fault, events: &mut Vec<Event>) -> Step {
        self.close_arguments(events);
        self.closing = None;
        self.state = State::Broken(fault);
        Step::Again
    }

    /// Makes one JSON object of the fragments of a call that ends before its time.
    fn close_arguments(&mut self, events: &mut Vec<Event>) {
        if !self.in_call {
            return;
        }
        let mut fragment = String::new();
        let named = match self.state {
            State::StringValue | State::StringClose => {
                fragment.push('"');
                true
            }
            // The parameter's name waits with its value.
            State::JsonValue | State::JsonClose => self.parameters.len() > 1,
            _ => !self.parameters.is_empty(),
        };
        fragment.push_str(if named { "}" } else { "{}" });
        self.emit_arguments(fragment, events);
    }

    fn emit_arguments(&self, fragment: String, events: &mut Vec<Event>) {
        events.push(Event::ToolArguments { index: self.index, fragment });
    }

    fn emit_malformed(&mut self, fault: Fault, events: &mut Vec<Event>) {
        let call = self.in_call.then_some(self.index);
        if call.is_some() {
            self.in_call = false;
            self.index += 1;
        }
        self.key.clear();
        self.value.clear();
        events.push(Event::Malformed { call, raw: std::mem::take(&mut self.raw), fault });
    }
}

/// Appends a value that should be JSON; as a string if it is not.
fn push_json(fragment: &mut String, value: &str) {
    if json::is_valid(value) {
        fragment.push_str(value);
    } else {
        fragment.push('"');
        json::escape_into(value, fragment);
        fragment.push('"');
    }
}

fn emit_text(text: String, events: &mut Vec<Event>) {
    if !text.is_empty() {
        events.push(Event::Text(text));
    }
}

/// Bytes at the end of text that may belong to a block of calls: `\n\n<`, or `</`.
fn undecided_text(text: &str) -> usize {
    let tag = undecided_value(text);
    let before = &text[..text.len() - tag];
    let line_ends = before.bytes().rev().take(2).take_while(|&byte| byte == b'\n').count();
    tag + line_ends
}

/// Bytes at the end of a value that may belong to a tag: `<` or `</`.
fn undecided_value(text: &str) -> usize {
    [CLOSE, OPEN].into_iter().find(|tag| text.ends_with(tag)).map_or(0, str::len)
}

#[cfg(test)]
mod tests;
