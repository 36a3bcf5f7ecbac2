//! Candle tensors as plain slices, for the CPU implementation of an op.

use std::marker::PhantomData;
use std::ops::{Deref, Range};

use candle_core::{bail, CpuStorage, Layout, Result, Storage, StorageRef, Tensor, WithDType};

/// The values of a contiguous CPU tensor, borrowed for as long as this guard lives.
pub(crate) struct Host<'a, T> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    dtype: PhantomData<T>,
}

impl<T: WithDType> Deref for Host<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // `host` has checked device, type and range; the guard keeps the storage from changing.
        match &*self.storage {
            Storage::Cpu(cpu) => cpu
                .as_slice::<T>()
                .ok()
                .and_then(|values| values.get(self.range.clone()))
                .unwrap_or(&[]),
            _ => &[],
        }
    }
}

/// Borrows a contiguous CPU tensor as a slice in row-major order.
///
/// # Errors
/// If the tensor is on another device, has another type, or is not contiguous.
pub(crate) fn host<'a, T: WithDType>(op: &'static str, tensor: &'a Tensor) -> Result<Host<'a, T>> {
    let (storage, layout) = tensor.storage_and_layout();
    let range = contiguous(op, layout)?;
    let Storage::Cpu(cpu) = &*storage else {
        bail!("{op}: an input is on {:?}, the output on the CPU", tensor.device().location());
    };
    let len = cpu.as_slice::<T>()?.len();
    if range.end > len {
        bail!("{op}: a view of {range:?} reaches past its storage of {len} values");
    }
    Ok(Host { storage, range, dtype: PhantomData })
}

/// The element types that our ops write.
pub trait Element: WithDType {
    /// The values of a storage of this type.
    fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Element for f32 {
    fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }
}

impl Element for u8 {
    fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::U8(values) => Some(values),
            _ => None,
        }
    }
}

impl Element for u32 {
    fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::U32(values) => Some(values),
            _ => None,
        }
    }
}

impl Element for i64 {
    fn values_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::I64(values) => Some(values),
            _ => None,
        }
    }
}

/// The same for the output that an in-place op was handed.
pub(crate) fn host_mut<'a, T: Element>(
    op: &'static str,
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<&'a mut [T]> {
    let range = contiguous(op, layout)?;
    let Some(values) = T::values_mut(storage) else {
        bail!("{op}: the output is not of type {:?}", T::DTYPE);
    };
    let len = values.len();
    match values.get_mut(range.clone()) {
        Some(values) => Ok(values),
        None => bail!("{op}: a view of {range:?} reaches past its storage of {len} values"),
    }
}

fn contiguous(op: &'static str, layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("{op}: needs contiguous tensors, got {:?}", layout.shape()),
    }
}
