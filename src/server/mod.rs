//! The HTTP server: four dialects around one stream of events.
//!
//! ```text
//! bytes ─ listen ─▶ guard (host, origin, key) ─▶ dialect reads Request ─▶ App::ask ─▶ engine
//! engine ─ Update ─▶ Answer ─ Event ─▶ dialect encodes ─▶ one object, or frames of a stream
//! ```

#![forbid(unsafe_code)]

mod access;
mod answer;
mod app;
mod asking;
mod body;
mod chat;
mod common;
mod completions;
mod connection;
mod error;
mod event;
mod fields;
mod health;
mod listen;
mod messages;
mod metrics;
mod models;
pub mod page;
#[cfg(test)]
mod played;
mod readers;
mod reference;
mod replay;
mod request;
mod responses;
mod sse;
mod stop;
mod structure;
mod tokenize;
mod trace;
mod whole;

pub use access::{Access, Keys};
pub use answer::{Answer, AnswerError, Content, Keep, Reading, Sampled};
pub use app::{App, Caller, Settings, Stopper};
pub use asking::Answers;
pub use chat::encode::{whole as chat_completion, Chunks as ChatChunks, Head as ChatHead};
pub use error::{ApiError, Dialect, Kind};
pub use event::{End, Event, Finish, Usage};
pub use listen::serve;
pub use metrics::Metrics;
pub use replay::{Replay, Secret, SecretError, REPLAY_BYTES};
pub use request::{Format, Input, Request, ToolChoice};
pub use sse::{Encode, Frames};
pub use stop::{Passed, Stops, LONGEST_STOP, MOST_STOPS};
pub use structure::guide;
pub use whole::Whole;
