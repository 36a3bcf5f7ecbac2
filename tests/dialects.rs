//! The Messages and Responses dialects, and chat beside them, as clients use them: over HTTP, with
//! the demo model.

#[path = "dialects/again.rs"]
mod again;
#[path = "dialects/asked.rs"]
mod asked;
#[path = "dialects/server.rs"]
mod server;
#[path = "dialects/shaped.rs"]
mod shaped;
#[path = "dialects/talk.rs"]
mod talk;
#[path = "dialects/tools.rs"]
mod tools;
