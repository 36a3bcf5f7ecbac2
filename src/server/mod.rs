//! The HTTP server: four dialects around one stream of events.

mod event;
pub mod page;
mod request;
mod structure;

pub use event::{End, Event, Finish, Usage};
pub use request::{Format, Input, Request, ToolChoice};
pub use structure::guide;
