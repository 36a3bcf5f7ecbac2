//! What a device needs once, whatever the op: borrowed host slices and preallocated outputs.

mod host;
mod workspace;

pub(crate) use host::{host, host_mut, Host};
pub use workspace::{Frame, Workspace};
