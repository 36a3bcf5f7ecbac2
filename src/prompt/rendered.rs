//! A prompt as text that remembers which parts of it are control tokens.

use std::ops::Range;

use crate::tokenizer::{Error, Tokenizer, BOS, DSML};

/// Prompt text, and the byte ranges of it that are control tokens rather than text that happens
/// to be spelled like one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    text: String,
    control: Vec<Range<usize>>,
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

    /// Appends another prompt.
    pub fn append(&mut self, other: &Self) {
        let shift = self.text.len();
        self.text.push_str(&other.text);
        self.control.extend(other.control.iter().map(|r| r.start + shift..r.end + shift));
    }

    /// The text, control tokens spelled out.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Byte ranges of control tokens: ascending, disjoint, one token each.
    pub fn control(&self) -> &[Range<usize>] {
        &self.control
    }

    /// The ids a model reads.
    ///
    /// # Errors
    /// [`Error::MissingControl`] if the vocabulary lacks a control token that the prompt has.
    pub fn ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::with_capacity(self.text.len() / 4 + self.control.len());
        let mut end = 0;
        for range in &self.control {
            tokenizer.encode_into(&self.text[end..range.start], &mut ids);
            let spelling = &self.text[range.clone()];
            let id = tokenizer.control_id(spelling);
            ids.push(id.ok_or_else(|| Error::MissingControl(spelling.to_owned()))?);
            end = range.end;
        }
        tokenizer.encode_into(&self.text[end..], &mut ids);
        Ok(ids)
    }
}
