//! Memory that a device's pool keeps though nobody uses it.

use candle_core::{Device, Error, Result};

/// Gives back to the driver what the device's memory pool holds and nobody uses, once what is queued has
/// been done. Only CUDA has such a pool.
///
/// # Errors
/// The device's.
pub fn trim(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => super::cuda::trim(cuda),
        _ => Ok(()),
    }
}

/// Whether a device failed because it has no memory left.
pub fn is_out_of_memory(error: &Error) -> bool {
    // The driver's number is lost on the way here, its words are not.
    let words = error.to_string();
    words.contains("OUT_OF_MEMORY") || words.contains("out of memory")
}
