//! Whether an op needs what only kernels need.

use candle_core::Device;

/// Whether ops on this device are launches: then they may need intermediate tensors.
pub(crate) fn on_gpu(device: &Device) -> bool {
    #[cfg(feature = "metal-emulator")]
    if super::emulating() && device.is_cpu() {
        return true;
    }
    device.is_metal()
}
