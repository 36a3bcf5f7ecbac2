//! What happens in an answer: the one stream that all dialects encode.

use crate::engine::TokenLogprob;

/// A piece of one answer, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt is being read; `done` of `total` tokens are known.
    Prefill {
        /// Known from earlier.
        cached: usize,
        /// Known so far.
        done: usize,
        /// In the prompt.
        total: usize,
    },
    /// The prompt has been read. Exactly once, before what follows.
    Begin(Usage),
    /// Reasoning.
    Reasoning(String),
    /// Reasoning is complete. Exactly once, directly after the last of it, if there was any.
    ReasoningEnd {
        /// As [`End::replay`], which can come too late: Anthropic's stream wants it here.
        replay: Option<String>,
    },
    /// Text for the user; whole characters, nothing of a stop text.
    Text(String),
    /// A call begins.
    ToolBegin {
        /// Which of the answer's calls, from 0.
        index: usize,
        /// What its result will refer to; cannot be guessed.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments; joined, they are one JSON object.
    ToolArguments {
        /// Which call.
        index: usize,
        /// What to append.
        fragment: String,
    },
    /// A call is complete. Of a call that was cut off, it is not told.
    ToolEnd {
        /// Which call.
        index: usize,
    },
    /// Probabilities of the tokens that the next text comes from, if they were asked for.
    Logprobs(Vec<(TokenLogprob, Vec<TokenLogprob>)>),
    /// The answer is complete. Exactly once, last, unless there was an error.
    End(End),
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// Why.
    pub finish: Finish,
    /// Its tokens.
    pub usage: Usage,
    /// What brings back the sampled tokens of this answer, if a client sends it again: an opaque
    /// text that a dialect hides where it can (signature, encrypted content).
    pub replay: Option<String>,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// It contains this text, one of those that the client gave.
    StopText(String),
    /// It has as many tokens as it may have.
    Length,
    /// The context is full.
    Context,
    /// It calls tools.
    ToolCalls,
}

/// Tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt: usize,
    /// Of these, the ones that had not to be computed.
    pub cached: usize,
    /// Of the answer.
    pub completion: usize,
    /// Of these, the ones of the reasoning.
    pub reasoning: usize,
}
