//! What a device needs once, whatever the op: borrowed host slices and preallocated outputs.

#[cfg(cuda_kernels)]
pub mod cuda;
mod graph;
mod host;
mod profile;
mod rows;
mod upload;
mod workspace;

pub use graph::{can_record, capture, Graph};
pub(crate) use host::{host, host_mut, Host};
pub(crate) use profile::timed;
pub use profile::{profile, profiling, Class};
pub(crate) use rows::for_each_row;
pub use upload::{upload, Upload};
pub use workspace::{Frame, Workspace};
