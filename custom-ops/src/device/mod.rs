//! What a device needs once, whatever the op: borrowed host slices and preallocated outputs.

#[cfg(cuda_kernels)]
pub mod cuda;
mod host;
mod profile;
mod rows;
mod upload;
mod workspace;

pub(crate) use host::{host, host_mut, Host};
pub(crate) use profile::timed;
pub use profile::{profile, Class};
pub(crate) use rows::for_each_row;
pub(crate) use upload::upload;
pub use workspace::{Frame, Workspace};
