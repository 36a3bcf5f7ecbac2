//! A prompt as text that remembers which parts of it are control tokens.

use std::ops::Range;
use std::sync::Arc;

use crate::tokenizer::{Error, Tokenizer, BOS, DSML};

/// Prompt text, and the byte ranges of it that are control tokens rather than text that happens
/// to be spelled like one; between them, ids that were recorded when a model chose them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    text: String,
    control: Vec<Range<usize>>,
    recorded: Vec<RecordedIds>,
    landmarks: Vec<usize>,
}

/// Ids in a prompt that no text stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecordedIds {
    /// Bytes of the text before them.
    pub at: usize,
    /// Control tokens before them.
    pub control: usize,
    /// The ids.
    pub ids: Arc<[u32]>,
}

/// A prompt as a model reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// The ids.
    pub ids: Vec<u32>,
    /// Lengths of prefixes of `ids` that other prompts are likely to share, ascending: the end of
    /// instructions and tools, the ends of turns.
    pub landmarks: Vec<usize>,
}

impl Rendered {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// BOS and plain text, for completion without a template.
    pub fn completion(text: &str) -> Self {
        let mut prompt = Self::new();
        prompt.push_control(BOS);
        prompt.push(text);
        prompt
    }

    /// The beginning of a block of tool calls, or of a call of this tool: what to append to a
    /// prompt (or to a reply after its reasoning) when the model must call.
    pub fn call_opening(tool: Option<&str>) -> Self {
        let mut opening = Self::new();
        opening.push("\n\n");
        opening.push_tag("<", "tool_calls>\n");
        if let Some(name) = tool {
            opening.push_tag("<", "invoke name=\"");
            opening.push(name);
            opening.push("\">\n");
        }
        opening
    }

    /// The end of a block of tool calls, on a line of its own if `new_line`.
    pub fn call_closing(new_line: bool) -> Self {
        let mut closing = Self::new();
        closing.push_tag(if new_line { "\n</" } else { "</" }, "tool_calls>");
        closing
    }

    /// Appends plain text: whatever it says, it yields no control token.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Appends a control token by its spelling.
    pub fn push_control(&mut self, spelling: &str) {
        let start = self.text.len();
        self.text.push_str(spelling);
        self.control.push(start..self.text.len());
    }

    /// Appends a tag of the tool call syntax: `open`, the marker, `rest`.
    pub(super) fn push_tag(&mut self, open: &str, rest: &str) {
        self.push(open);
        self.push_control(DSML);
        self.push(rest);
    }

    /// Appends ids as they are: what a model chose for an earlier turn, which the same text need
    /// not yield again.
    pub fn push_ids(&mut self, ids: Arc<[u32]>) {
        self.recorded.push(RecordedIds { at: self.text.len(), control: self.control.len(), ids });
    }

    /// Remembers that other prompts are likely to share this one up to the next control token.
    pub(super) fn push_landmark(&mut self) {
        self.landmarks.push(self.control.len());
    }

    /// Appends another prompt.
    pub fn append(&mut self, other: &Self) {
        let (shift, controls) = (self.text.len(), self.control.len());
        self.text.push_str(&other.text);
        self.control.extend(other.control.iter().map(|r| r.start + shift..r.end + shift));
        self.landmarks.extend(other.landmarks.iter().map(|control| control + controls));
        self.recorded.extend(other.recorded.iter().map(|span| RecordedIds {
            at: span.at + shift,
            control: span.control + controls,
            ids: Arc::clone(&span.ids),
        }));
    }

    /// The text, control tokens spelled out, recorded ids left out.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Byte ranges of control tokens: ascending, disjoint, one token each.
    pub fn control(&self) -> &[Range<usize>] {
        &self.control
    }

    pub(super) fn recorded(&self) -> &[RecordedIds] {
        &self.recorded
    }

    /// The ids a model reads.
    ///
    /// # Errors
    /// [`Error::MissingControl`] if the vocabulary lacks a control token that the prompt has.
    pub fn ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, Error> {
        Ok(self.tokens(tokenizer)?.ids)
    }

    /// The ids a model reads, and where other prompts are likely to part from them.
    ///
    /// # Errors
    /// As [`ids`](Self::ids).
    pub fn tokens(&self, tokenizer: &Tokenizer) -> Result<Tokens, Error> {
        let mut ids = Vec::with_capacity(self.text.len() / 4 + self.control.len());
        let mut landmarks: Vec<usize> = Vec::with_capacity(self.landmarks.len());
        let mut recorded = self.recorded.iter().peekable();
        let mut marks = self.landmarks.iter().peekable();
        let mut end = 0;
        let mut text_to = |control: usize, end: usize, start: usize, ids: &mut Vec<u32>| {
            let mut from = end;
            while let Some(span) = recorded.next_if(|span| span.control <= control) {
                tokenizer.encode_into(&self.text[from..span.at], ids);
                ids.extend_from_slice(&span.ids);
                from = span.at;
            }
            tokenizer.encode_into(&self.text[from..start], ids);
        };
        for (index, range) in self.control.iter().enumerate() {
            text_to(index, end, range.start, &mut ids);
            while marks.next_if(|&&mark| mark <= index).is_some() {
                if landmarks.last() != Some(&ids.len()) {
                    landmarks.push(ids.len());
                }
            }
            let spelling = &self.text[range.clone()];
            let id = tokenizer.control_id(spelling);
            ids.push(id.ok_or_else(|| Error::MissingControl(spelling.to_owned()))?);
            end = range.end;
        }
        text_to(self.control.len(), end, self.text.len(), &mut ids);
        Ok(Tokens { ids, landmarks })
    }
}
