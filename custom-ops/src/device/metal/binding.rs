//! Tensors and weights as a kernel's buffers.

use std::marker::PhantomData;

#[cfg(feature = "metal-emulator")]
use candle_core::CpuStorage;
use candle_core::{bail, DType, Layout, Result, Storage, Tensor};

use super::Gpu;

/// Memory that a kernel reads or writes, from some byte on.
pub(crate) struct Binding<'a> {
    pub(super) memory: Memory,
    pub(super) offset: usize,
    /// Whoever owns the memory lives as long.
    owner: PhantomData<&'a ()>,
}

#[derive(Clone)]
pub(super) enum Memory {
    #[cfg(feature = "metal")]
    Device(candle_metal_kernels::metal::Buffer),
    #[cfg(feature = "metal-emulator")]
    Host(*mut u8),
}

impl<'a> Binding<'a> {
    /// A contiguous tensor of this type.
    ///
    /// # Errors
    /// If it is not, or is on a device that has no Metal kernels.
    pub(crate) fn tensor(op: &'static str, tensor: &'a Tensor, dtype: DType) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            #[cfg(feature = "metal-emulator")]
            Storage::Cpu(storage) => Self::host(op, storage, layout, dtype),
            #[cfg(feature = "metal")]
            Storage::Metal(storage) => Self::device(op, storage, layout, dtype),
            _ => bail!(
                "{op}: an input is on {:?}, the output on another device",
                tensor.device().location()
            ),
        }
    }

    #[cfg(feature = "metal")]
    fn device(
        op: &'static str,
        storage: &candle_core::MetalStorage,
        layout: &Layout,
        dtype: DType,
    ) -> Result<Self> {
        use candle_core::backend::BackendStorage;
        let start = start(op, storage.dtype(), layout, dtype)?;
        let memory = Memory::Device(storage.buffer().clone());
        Ok(Self { memory, offset: start * dtype.size_in_bytes(), owner: PhantomData })
    }

    #[cfg(feature = "metal-emulator")]
    fn host(op: &'static str, storage: &CpuStorage, layout: &Layout, dtype: DType) -> Result<Self> {
        use candle_core::backend::BackendStorage;
        let start = start(op, storage.dtype(), layout, dtype)?;
        let base: *const u8 = match storage {
            CpuStorage::F32(values) => values.as_ptr().cast(),
            CpuStorage::U32(values) => values.as_ptr().cast(),
            CpuStorage::U8(values) => values.as_ptr(),
            other => bail!("{op}: no kernel reads {:?}", other.dtype()),
        };
        let memory = Memory::Host(base.cast_mut());
        Ok(Self { memory, offset: start * dtype.size_in_bytes(), owner: PhantomData })
    }

    /// Bytes in host memory, for the emulator.
    #[cfg(feature = "metal-emulator")]
    pub(crate) fn bytes(bytes: &'a [u8]) -> Self {
        let memory = Memory::Host(bytes.as_ptr().cast_mut());
        Self { memory, offset: 0, owner: PhantomData }
    }

    /// A buffer from some byte on.
    #[cfg(feature = "metal")]
    pub(crate) fn buffer(buffer: &'a candle_metal_kernels::metal::Buffer, offset: usize) -> Self {
        Self { memory: Memory::Device(buffer.clone()), offset, owner: PhantomData }
    }

    /// The same from `bytes` further on.
    #[must_use]
    pub(crate) fn skip(mut self, bytes: usize) -> Self {
        self.offset += bytes;
        self
    }

    /// Its address on the device.
    pub(super) fn address(&self) -> u64 {
        match &self.memory {
            #[cfg(feature = "metal")]
            Memory::Device(buffer) => {
                use objc2_metal::MTLBuffer;
                buffer.as_ref().gpuAddress() + self.offset as u64
            }
            #[cfg(feature = "metal-emulator")]
            Memory::Host(base) => *base as u64 + self.offset as u64,
        }
    }
}

impl Clone for Binding<'_> {
    fn clone(&self) -> Self {
        Self { memory: self.memory.clone(), offset: self.offset, owner: PhantomData }
    }
}

/// The tensor that an op was handed to write, and where it is.
pub(crate) struct Output<'a> {
    pub(crate) binding: Binding<'a>,
    pub(crate) gpu: Gpu,
    /// Values that it has room for.
    pub(crate) elements: usize,
}

impl<'a> Output<'a> {
    /// Of an op on an Apple GPU.
    ///
    /// # Errors
    /// If the tensor is not contiguous.
    #[cfg(feature = "metal")]
    pub(crate) fn device(
        op: &'static str,
        storage: &'a mut candle_core::MetalStorage,
        layout: &Layout,
    ) -> Result<Self> {
        use candle_core::backend::BackendStorage;
        let gpu = Gpu::Device(storage.device().clone());
        let elements = layout.shape().elem_count();
        Ok(Self { binding: Binding::device(op, storage, layout, storage.dtype())?, gpu, elements })
    }

    /// Of an op on the CPU whose kernel is emulated.
    ///
    /// # Errors
    /// If the tensor is not contiguous.
    #[cfg(feature = "metal-emulator")]
    pub(crate) fn host(
        op: &'static str,
        storage: &'a mut CpuStorage,
        layout: &Layout,
    ) -> Result<Self> {
        use candle_core::backend::BackendStorage;
        let binding = Binding::host(op, storage, layout, storage.dtype())?;
        Ok(Self { binding, gpu: Gpu::Emulated, elements: layout.shape().elem_count() })
    }
}

/// The first element of a contiguous tensor of this type.
fn start(op: &'static str, found: DType, layout: &Layout, wanted: DType) -> Result<usize> {
    if found != wanted {
        bail!("{op}: a tensor of {found:?} where {wanted:?} is needed");
    }
    match layout.contiguous_offsets() {
        Some((start, _)) => Ok(start),
        None => bail!("{op}: needs contiguous tensors, got {:?}", layout.shape()),
    }
}
