//! An answer in one piece, put together from its events.

use super::{End, Event, Usage};
use crate::engine::TokenLogprob;
use crate::prompt::ToolCall;

/// An answer in one piece.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Whole {
    /// Reasoning.
    pub reasoning: String,
    /// Text for the user.
    pub text: String,
    /// Calls; the last one may have been cut off, its arguments are a JSON object nevertheless.
    pub calls: Vec<ToolCall>,
    /// Whether the last call was cut off.
    pub cut: bool,
    /// Probabilities of the tokens of the text, if they were asked for.
    pub logprobs: Vec<(TokenLogprob, Vec<TokenLogprob>)>,
    /// Tokens, as far as they are known.
    pub usage: Usage,
    /// How it ended, if it did.
    pub end: Option<End>,
}

impl Whole {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next event.
    pub fn push(&mut self, event: Event) {
        match event {
            Event::Prefill { .. } | Event::ReasoningEnd { .. } => {}
            Event::ToolEnd { .. } => self.cut = false,
            Event::Begin(usage) => self.usage = usage,
            Event::Reasoning(text) => self.reasoning.push_str(&text),
            Event::Text(text) => self.text.push_str(&text),
            Event::ToolBegin { id, name, .. } => {
                self.cut = true;
                self.calls.push(ToolCall { id, name, arguments: String::new() });
            }
            Event::ToolArguments { index, fragment } => {
                if let Some(call) = self.calls.get_mut(index) {
                    call.arguments.push_str(&fragment);
                }
            }
            Event::Logprobs(logprobs) => self.logprobs.extend(logprobs),
            Event::End(end) => {
                self.usage = end.usage;
                self.end = Some(end);
            }
        }
    }
}
