//! Custom candle ops for DeepSeek V4.
#![deny(missing_docs)]

pub mod device;
mod rms_norm;

pub use device::Workspace;
pub use rms_norm::rms_norm;
