//! What a device needs once, whatever the op: borrowed host slices and preallocated outputs.

#[cfg(cuda_kernels)]
pub mod cuda;
mod graph;
mod host;
#[cfg(metal_kernels)]
pub mod metal;
mod profile;
mod rows;
mod timeline;
mod trim;
mod upload;
mod workspace;

pub use graph::{can_record, capture, has_room_to_record, Graph};
pub(crate) use host::{host, host_mut, Host};
pub(crate) use profile::timed;
pub use profile::{profile, profiling, Class};
pub(crate) use rows::for_each_row;
pub use timeline::{timeline, Block};
pub use trim::{is_out_of_memory, trim};
pub use upload::{upload, Upload};
pub use workspace::{Frame, Workspace};

/// Whether ops on this device are launches of Metal kernels, which may want intermediate tensors.
pub(crate) fn on_metal(device: &candle_core::Device) -> bool {
    #[cfg(metal_kernels)]
    let metal = metal::on_gpu(device);
    #[cfg(not(metal_kernels))]
    let metal = device.is_metal();
    metal
}

/// In an op's `impl InplaceOp1`: the way to its Metal kernel, `on_metal` of its `metal.rs`.
macro_rules! metal_forward {
    () => {
        #[cfg(feature = "metal")]
        fn metal_fwd(
            &self,
            out: &mut candle_core::MetalStorage,
            layout: &candle_core::Layout,
        ) -> candle_core::Result<()> {
            self.on_metal(&$crate::device::metal::Output::device(self.name(), out, layout)?)
        }
    };
}
pub(crate) use metal_forward;

/// First in an op's `cpu_fwd`: the same way if Metal is emulated.
macro_rules! metal_emulated {
    ($op:ident, $out:ident, $layout:ident) => {
        #[cfg(feature = "metal-emulator")]
        if $crate::device::metal::emulating() {
            let out = $crate::device::metal::Output::host($op.name(), $out, $layout)?;
            return $op.on_metal(&out);
        }
    };
}
pub(crate) use metal_emulated;
