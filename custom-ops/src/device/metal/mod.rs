//! Metal: launches of our kernels, on an Apple GPU or emulated on the CPU.
//!
//! An op's `metal.rs` fills a parameter struct and describes a [`Launch`]; who executes it is the
//! business of this module. With the feature `metal` it goes to candle's command encoder. With the
//! feature `metal-emulator`, inside [`emulate`], CPU tensors take the same way and the kernels'
//! text, compiled as C++, runs on this CPU: for tests on machines without an Apple GPU.

mod binding;
#[cfg(feature = "metal-emulator")]
mod emulated;
mod launch;
mod log;
#[cfg(feature = "metal")]
mod real;
mod scratch;
#[cfg(test)]
mod tests;
#[cfg(feature = "metal")]
mod weights;

pub(crate) use binding::{Binding, Output};
#[cfg(feature = "metal-emulator")]
pub(crate) use emulated::emulating;
#[cfg(feature = "metal-emulator")]
pub use emulated::{emulate, kernels, plan};
pub(crate) use launch::{library, parameters, Launch, Library, Parameters};
pub use log::{record, Dispatch};
#[cfg(feature = "metal")]
pub use real::open;
#[cfg(feature = "metal")]
pub(crate) use real::put;
pub(crate) use scratch::on_gpu;
#[cfg(feature = "metal")]
pub(crate) use weights::MetalWeights;

/// Where a launch runs.
#[derive(Clone)]
pub(crate) enum Gpu {
    #[cfg(feature = "metal")]
    Device(candle_core::MetalDevice),
    #[cfg(feature = "metal-emulator")]
    Emulated,
}
