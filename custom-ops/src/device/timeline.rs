//! When each block of each launch ran: what events between launches cannot tell of overlapping ones.

use candle_core::{Device, Result};

/// One block of a launch. Times are nanoseconds of the GPU's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// By the name that it has in the sources.
    pub kernel: &'static str,
    /// Blocks of the launch.
    pub blocks: u32,
    /// Its index among them.
    pub block: u32,
    /// The multiprocessor that it ran on.
    pub processor: u32,
    /// When its first thread began.
    pub begin: u64,
    /// When its wait for the launches before it was over.
    pub ready: u64,
    /// When its last thread ended.
    pub end: u64,
}

/// The blocks that ran on `device` since the last call, in no order, as many as there was room for.
/// `None` if the kernels keep no record: they do if built with `DS4_CUDA_TIMELINE=1`.
///
/// # Errors
/// The driver's.
pub fn timeline(device: &Device) -> Result<Option<Vec<Block>>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => super::cuda::timeline(cuda),
        _ => Ok(None),
    }
}
