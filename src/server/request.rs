//! What a client wants, whatever dialect it said it in.

use serde_json::Value;

use crate::prompt::Conversation;
use crate::sample::Sampling;

/// One request for answers.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to answer.
    pub input: Input,
    /// How tokens are chosen; each of the `n` answers has the next seed.
    pub sampling: Sampling,
    /// Tokens of an answer at most; `None` leaves it to the server.
    pub max_tokens: Option<usize>,
    /// Text that ends an answer and is not part of it.
    pub stop: Vec<String>,
    /// How many answers.
    pub n: usize,
    /// How many of the likeliest tokens to report beside each chosen one, if any are wanted.
    pub logprobs: Option<usize>,
    /// Whether and which tools must be called.
    pub tool_choice: ToolChoice,
    /// Names of the tools that may be called, if not all may. The prompt has the others too, so
    /// that it begins as it did when they could be called.
    pub allowed_tools: Option<Vec<String>>,
    /// Whether an answer may have more than one call.
    pub parallel_tool_calls: bool,
    /// What the text of an answer must look like.
    pub format: Format,
}

/// What is to be answered or continued.
#[derive(Clone, Debug)]
pub enum Input {
    /// A conversation, to be rendered by the model's template.
    Chat(Conversation),
    /// Text to be continued as it is.
    Text(String),
    /// The same as ids.
    Tokens(Vec<u32>),
}

/// Whether and which tools must be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// No call; the tools are not even in the prompt.
    None,
    /// At least one call of any tool that may be called.
    Required,
    /// A call of this tool.
    Named(String),
}

/// What the text of an answer must look like.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Format {
    /// Anything.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that follows this schema.
    JsonSchema(Value),
}
