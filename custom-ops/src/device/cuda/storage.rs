//! Candle tensors as device addresses.

#[cfg(feature = "cuda-emulator")]
use candle_core::CpuStorage;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{bail, DType, Layout, Result, Storage, StorageRef, Tensor};

use super::Gpu;

/// A place in the memory that kernels see.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) u64);

impl Address {
    /// Of what is absent.
    pub(crate) const NULL: Self = Self(0);

    /// The place `bytes` further on.
    pub(crate) fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// What an in-place op was handed to write to.
pub(crate) struct Target<'a> {
    storage: TargetStorage<'a>,
    layout: &'a Layout,
}

enum TargetStorage<'a> {
    #[cfg(feature = "cuda")]
    Cuda(&'a mut CudaStorage),
    #[cfg(feature = "cuda-emulator")]
    Host(&'a mut CpuStorage),
}

impl<'a> Target<'a> {
    #[cfg(feature = "cuda")]
    pub(crate) fn cuda(storage: &'a mut CudaStorage, layout: &'a Layout) -> Self {
        Self { storage: TargetStorage::Cuda(storage), layout }
    }

    #[cfg(feature = "cuda-emulator")]
    pub(crate) fn emulated(storage: &'a mut CpuStorage, layout: &'a Layout) -> Self {
        Self { storage: TargetStorage::Host(storage), layout }
    }

    /// The output of `op` as an address, with the GPU that it is on.
    ///
    /// # Errors
    /// If it is of another type or not contiguous.
    pub(crate) fn of(self, op: &'static str, dtype: DType) -> Result<Output<'a>> {
        let start = start(op, self.layout)?;
        let (gpu, base) = match self.storage {
            #[cfg(feature = "cuda")]
            TargetStorage::Cuda(storage) => {
                let base = device_address(op, storage, dtype)?;
                (Gpu::Device(super::real::executor(&storage.device)?), base)
            }
            #[cfg(feature = "cuda-emulator")]
            TargetStorage::Host(storage) => (Gpu::Emulated, host_address_mut(op, storage, dtype)?),
        };
        let address = base.offset(start * dtype.size_in_bytes());
        Ok(Output { gpu, address, borrowed: std::marker::PhantomData })
    }
}

/// An output, borrowed for as long as this lives.
pub(crate) struct Output<'a> {
    gpu: Gpu,
    address: Address,
    borrowed: std::marker::PhantomData<&'a mut ()>,
}

impl Output<'_> {
    pub(crate) fn gpu(&self) -> Gpu {
        self.gpu.clone()
    }

    pub(crate) fn address(&self) -> Address {
        self.address
    }
}

/// An input, borrowed for as long as this lives.
pub(crate) struct Input<'a> {
    address: Address,
    _storage: StorageRef<'a>,
}

impl Input<'_> {
    pub(crate) fn address(&self) -> Address {
        self.address
    }
}

impl Gpu {
    /// The address of a contiguous tensor on this GPU.
    ///
    /// It must not share its storage with the output of the op that asks: candle holds that locked.
    ///
    /// # Errors
    /// If it is on another device, of another type or not contiguous.
    pub(crate) fn input<'a>(
        &self,
        op: &'static str,
        tensor: &'a Tensor,
        dtype: DType,
    ) -> Result<Input<'a>> {
        let (storage, layout) = tensor.storage_and_layout();
        let start = start(op, layout)?;
        let base = match (self, &*storage) {
            #[cfg(feature = "cuda")]
            (Self::Device(executor), Storage::Cuda(cuda)) if executor.is_of(&cuda.device) => {
                device_address(op, cuda, dtype)?
            }
            #[cfg(feature = "cuda-emulator")]
            (Self::Emulated, Storage::Cpu(cpu)) => host_address(op, cpu, dtype)?,
            _ => bail!("{op}: an input is on {:?}, the output is not", tensor.device().location()),
        };
        let address = base.offset(start * dtype.size_in_bytes());
        Ok(Input { address, _storage: storage })
    }

    /// [`Gpu::input`] of f32 values.
    pub(crate) fn f32<'a>(&self, op: &'static str, tensor: &'a Tensor) -> Result<Input<'a>> {
        self.input(op, tensor, DType::F32)
    }

    /// [`Gpu::input`] of u32 values.
    pub(crate) fn u32<'a>(&self, op: &'static str, tensor: &'a Tensor) -> Result<Input<'a>> {
        self.input(op, tensor, DType::U32)
    }
}

/// Where a contiguous view begins, in values.
fn start(op: &'static str, layout: &Layout) -> Result<usize> {
    match layout.contiguous_offsets() {
        Some((start, _)) => Ok(start),
        None => bail!("{op}: needs contiguous tensors, got {:?}", layout.shape()),
    }
}

/// Where a device storage begins.
#[cfg(feature = "cuda")]
fn device_address(op: &'static str, storage: &CudaStorage, dtype: DType) -> Result<Address> {
    use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};

    fn of<T>(slice: &CudaSlice<T>) -> Address {
        // Nothing is tracked on this stream, so that the guard has nothing to record.
        Address(slice.device_ptr(slice.stream()).0)
    }
    match dtype {
        DType::F32 => Ok(of(storage.as_cuda_slice::<f32>()?)),
        DType::U32 => Ok(of(storage.as_cuda_slice::<u32>()?)),
        DType::I64 => Ok(of(storage.as_cuda_slice::<i64>()?)),
        DType::U8 => Ok(of(storage.as_cuda_slice::<u8>()?)),
        other => bail!("{op}: no kernel works on tensors of type {other:?}"),
    }
}

/// Where a host storage begins.
#[cfg(feature = "cuda-emulator")]
fn host_address(op: &'static str, storage: &CpuStorage, dtype: DType) -> Result<Address> {
    let pointer = match dtype {
        DType::F32 => storage.as_slice::<f32>()?.as_ptr().cast::<u8>(),
        DType::U32 => storage.as_slice::<u32>()?.as_ptr().cast(),
        DType::I64 => storage.as_slice::<i64>()?.as_ptr().cast(),
        DType::U8 => storage.as_slice::<u8>()?.as_ptr(),
        other => bail!("{op}: no kernel works on tensors of type {other:?}"),
    };
    Ok(Address(pointer as u64))
}

/// The same of one that is written to.
#[cfg(feature = "cuda-emulator")]
fn host_address_mut(op: &'static str, storage: &mut CpuStorage, dtype: DType) -> Result<Address> {
    let pointer = match (storage, dtype) {
        (CpuStorage::F32(values), DType::F32) => values.as_mut_ptr().cast::<u8>(),
        (CpuStorage::U32(values), DType::U32) => values.as_mut_ptr().cast(),
        (CpuStorage::I64(values), DType::I64) => values.as_mut_ptr().cast(),
        (CpuStorage::U8(values), DType::U8) => values.as_mut_ptr(),
        (_, other) => bail!("{op}: the output is not of type {other:?}"),
    };
    Ok(Address(pointer as u64))
}
