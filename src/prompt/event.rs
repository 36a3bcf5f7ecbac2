//! What goes into the parser, and what comes out.

/// A piece of what the model writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'t> {
    /// Ordinary text, or the spelling of a control token that means nothing here.
    Text(&'t str),
    /// The control token `<think>`.
    Think,
    /// The control token `</think>`.
    EndThink,
    /// The control token `｜DSML｜`.
    Marker,
}

/// What a reply consists of, in order. Neighbours of one kind belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Reasoning.
    Reasoning(String),
    /// Text for the user.
    Text(String),
    /// A call begins.
    ToolCallBegin {
        /// Which of the reply's calls, from 0.
        index: usize,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments. Joined, a call's fragments are one JSON object.
    ToolArguments {
        /// Which call.
        index: usize,
        /// What to append.
        fragment: String,
    },
    /// A call is complete.
    ToolCallEnd {
        /// Which call.
        index: usize,
    },
    /// The block of calls is complete; the reply should end here.
    ToolCallsEnd,
    /// Markup that makes no calls, or a call that was never completed.
    Malformed {
        /// The call that had begun, if one had. It must not be run.
        call: Option<usize>,
        /// Everything since the last complete event, as the model wrote it.
        raw: String,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// What is wrong with tool call markup.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The stream ended inside it.
    #[error("the reply ended inside a tool call")]
    Unterminated,
    /// A marker outside a block that opens no block.
    #[error("a tool call marker outside a block of tool calls")]
    Stray,
    /// A block without calls.
    #[error("a block of tool calls without a call")]
    Empty,
    /// A tag that is unknown, incomplete or not allowed where it is.
    #[error("a tool call tag that is unknown or out of place")]
    Tag,
    /// Text where only tags may be.
    #[error("text between tool call tags")]
    Text,
    /// A parameter given twice.
    #[error("a tool call parameter given twice")]
    Duplicate,
}
