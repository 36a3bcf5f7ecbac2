//! The HTTP server: four dialects around one stream of events.

#![forbid(unsafe_code)]

mod answer;
mod event;
mod replay;
mod request;
mod stop;
mod whole;

pub use answer::{Answer, AnswerError, Content, Keep, Reading, Sampled};
pub use event::{End, Event, Finish, Usage};
pub use replay::{Replay, Secret, SecretError, REPLAY_BYTES};
pub use request::{Format, Input, Request, ToolChoice};
pub use stop::{Passed, Stops, LONGEST_STOP, MOST_STOPS};
pub use whole::Whole;
