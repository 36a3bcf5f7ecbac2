//! Weights where an Apple GPU reads them: in the mapped file itself, or in a copy.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;
use candle_core::{bail, MetalDevice, Result};
use candle_metal_kernels::metal::Buffer;
use candle_metal_kernels::RESOURCE_OPTIONS;
use objc2_metal::MTLDevice;

use super::Binding;
use crate::matrix::METAL_ALIGN;

/// Bytes of a page of an Apple CPU's memory: what a buffer without a copy is made of.
const PAGE: usize = 16_384;

/// Weights in a buffer of the device's residency set.
#[derive(Clone)]
pub(crate) struct MetalWeights {
    held: Arc<Held>,
    offset: usize,
    len: usize,
}

struct Held {
    buffer: Buffer,
    device: MetalDevice,
    /// The map that the buffer shows, if it is not a copy.
    _map: Option<Bytes>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Whoever drops a model has waited for its last logits; what is still queued must not lose
        // the memory under it all the same.
        if self.device.wait_until_completed().is_ok() {
            self.device.unregister_buffers([&self.buffer]);
        }
    }
}

impl MetalWeights {
    /// `bytes` as the device sees them: without a copy if they are a part of a memory `mapped` file.
    ///
    /// # Errors
    /// If the device refuses the buffer, or the bytes lie where no kernel reads.
    pub(crate) fn new(bytes: &Bytes, mapped: bool, device: &MetalDevice) -> Result<Self> {
        let address = bytes.as_ptr() as usize;
        let (start, map) = match mapped && !bytes.is_empty() {
            true => (address / PAGE * PAGE, Some(bytes.clone())),
            false => (address, None),
        };
        let (offset, len) = (address - start, bytes.len());
        if offset % METAL_ALIGN != 0 {
            bail!(
                "a weight at byte {offset} of a page: kernels read at multiples of {METAL_ALIGN}"
            );
        }
        let made = match map {
            Some(_) => {
                // A map is whole pages: those of its first and last byte are there as well.
                let length = (offset + len).next_multiple_of(PAGE);
                no_copy(start, length, device)
            }
            None => device
                .device()
                .new_buffer_with_data(bytes.as_ptr().cast(), len.max(1), RESOURCE_OPTIONS)
                .ok(),
        };
        let Some(buffer) = made else {
            bail!(
                "the GPU cannot take {len} bytes of weights: it has room for {} in all",
                device.device().recommended_max_working_set_size()
            );
        };
        device.register_buffers([&buffer]);
        Ok(Self { held: Arc::new(Held { buffer, device: device.clone(), _map: map }), offset, len })
    }

    pub(crate) fn binding(&self) -> Binding<'_> {
        Binding::buffer(&self.held.buffer, self.offset)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

fn no_copy(start: usize, length: usize, device: &MetalDevice) -> Option<Buffer> {
    let pointer = NonNull::new(start as *mut c_void)?;
    // SAFETY: whole pages of a map that outlives the buffer, for `Held` keeps it; kernels bind it as
    // an input only, so nothing writes to pages that are mapped for reading.
    let raw = unsafe {
        device.device().as_ref().newBufferWithBytesNoCopy_length_options_deallocator(
            pointer,
            length,
            RESOURCE_OPTIONS,
            None,
        )
    };
    raw.map(Buffer::new)
}
