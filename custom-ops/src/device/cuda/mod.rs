//! Our kernels on an NVIDIA GPU, or emulated on the CPU.
//!
//! An op's `cuda.rs` computes a `#[repr(C)]` parameter struct out of device addresses, a grid and the
//! shared memory, and calls [`Gpu::launch`]. Everything above that call is the same for both executors:
//! the real one (`real.rs`, feature `cuda`) and the emulated one (`emulated.rs`, feature
//! `cuda-emulator`), in which addresses point into the memory of CPU tensors.

mod batch;
#[cfg(feature = "cuda-emulator")]
mod emulated;
#[cfg(feature = "cuda")]
mod graph;
mod launch;
pub(crate) mod layout;
#[cfg(feature = "cuda")]
mod load;
mod memory;
#[cfg(feature = "cuda")]
mod real;
mod scratch;
mod storage;
#[cfg(feature = "cuda")]
mod timeline;

#[cfg(feature = "cuda-emulator")]
pub use emulated::emulate;
#[cfg(feature = "cuda-emulator")]
pub(crate) use emulated::{emulating, record, Recording};
#[cfg(feature = "cuda")]
pub(crate) use graph::{capture, Graph};
#[cfg(feature = "cuda")]
pub use load::Loader;
#[cfg(feature = "cuda")]
pub(crate) use real::timeline;
#[cfg(feature = "cuda")]
pub(crate) use real::{between, has_room, mark, poison, trim};
#[cfg(feature = "cuda")]
pub use real::{open, Memory};

pub(crate) use batch::{Batch, Rings, MAX_SEQUENCES};
pub(crate) use launch::{Gpu, Kernel, Launch};
pub(crate) use layout::{Planes, Weight};
pub(crate) use memory::Packed;
pub(crate) use scratch::{Scratch, ScratchSize};
pub(crate) use storage::{Address, Input, Target};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
