//! From a file's blocks to the planes that GPU kernels read (include/cuda/layout.h).
//!
//! On the GPU each chunk of rows is repacked by a kernel as it arrives; the repack here, plane by plane
//! and byte by byte, is what those kernels are compared with, and what the emulator's weights are made by.

#[cfg(any(feature = "cuda", test))]
mod cuda;
#[cfg(any(feature = "cuda-emulator", test))]
mod host;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
pub(crate) use cuda::repack_rows;
#[cfg(any(feature = "cuda-emulator", test))]
pub(crate) use host::repack;

/// Rows from which on a chunk of a matrix may begin.
#[cfg(any(feature = "cuda", test))]
pub(crate) const ROW_STEP: usize = 16;
