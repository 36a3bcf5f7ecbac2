//! The HTTP server as clients meet it: shapes, limits, and what happens when they misbehave.

#[path = "server/client.rs"]
mod client;
#[path = "server/gate.rs"]
mod gate;
#[path = "server/life.rs"]
mod life;
#[path = "server/poison.rs"]
mod poison;
#[path = "server/process.rs"]
mod process;
#[path = "server/shapes.rs"]
mod shapes;
#[path = "server/streams.rs"]
mod streams;
#[path = "support/wait.rs"]
mod wait;
