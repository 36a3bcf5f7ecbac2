//! Messages to the ids a model reads, and the ids it writes back to messages.
//!
//! ```text
//! Conversation ── render ──▶ Rendered { text, which ranges are control tokens } ── ids ──▶ model
//! model ── ids ──▶ Reader (whole characters, control tokens apart) ── Parser ──▶ Event, Event, …
//! ```
//!
//! The template is that of the model card's reference encoder, to the byte. DeepSeek's own crate
//! `deepseek-recipe-encoding` renders the same conversations for its hosted service; where it goes
//! another way, the model card wins, since the weights came with it:
//!
//! | | here and the model card | `deepseek-recipe-encoding` 0.2.0 |
//! |---|---|---|
//! | system message between turns | in place | moved to the front |
//! | two system messages | joined as they are | joined by a blank line |
//! | order of calls and results | the assistant's | sorted by call id |
//! | history turn without reasoning, tools declared | `<think></think>` | `</think>` |
//! | call without parameters | leaves an empty line | leaves none |
//! | effort not given | no prefix | the prefix that `max` had before |
//! | reasoning after the last user turn, no tools | kept | dropped |
//! | last message is the assistant's | closed; see [`Ending`] | a new turn is opened |
//! | `developer` messages | as user turns | no such role |
//! | grounding tags in assistant text | plain text | control tokens |
//! | floats in arguments | as Python prints them | as Rust does |
//!
//! That crate is a source of golden vectors here, not a dependency: it would bring a regular
//! expression engine in C and a network client, for a template that fits one page.
//!
//! **Text from outside stays text.** Everything a client sends (messages, tool schemas, names,
//! arguments, results) is rendered outside the control ranges and tokenised as plain text, so no
//! spelling in it can open a turn, close reasoning or forge a tool call. The same holds on the way
//! back: the [`Parser`] acts on control *tokens* only, and a marker that the model spells in
//! ordinary tokens is text.

#![forbid(unsafe_code)]

mod dsml;
mod event;
mod fingerprint;
mod json;
mod message;
mod reader;
mod render;
mod rendered;
mod thinking;
mod tool;

pub use dsml::Parser;
pub use event::{Event, Fault, Piece};
pub use fingerprint::Fingerprint;
pub use message::{Message, Role, UnknownRole};
pub use reader::Reader;
pub use render::{Conversation, Ending, Recall, Recorded, Replayed};
pub use rendered::{Rendered, Tokens};
pub use thinking::{Thinking, UnknownEffort};
pub use tool::{Tool, ToolCall};
