//! Host values over those of a tensor that stays where it is.

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

use super::host::{host_mut, Element};

/// Overwrites a contiguous tensor in place with as many values from the host. On a GPU the copy is
/// queued like any other work.
///
/// # Errors
/// If the type or the number of values is another, or the device fails.
pub fn upload<T: Upload>(tensor: &Tensor, values: &[T]) -> Result<()> {
    if tensor.elem_count() != values.len() {
        bail!("upload: {} values into a tensor {:?}", values.len(), tensor.dims());
    }
    tensor.inplace_op1(&Values(values))
}

/// What can be uploaded.
#[cfg(feature = "cuda")]
pub trait Upload:
    Element
    + candle_core::cuda_backend::CudaDType
    + candle_core::cuda_backend::cudarc::driver::DeviceRepr
{
}

/// What can be uploaded.
#[cfg(not(feature = "cuda"))]
pub trait Upload: Element {}

impl Upload for u32 {}
impl Upload for i64 {}

struct Values<'a, T>(&'a [T]);

impl<T: Upload> InplaceOp1 for Values<'_, T> {
    fn name(&self) -> &'static str {
        "upload"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        host_mut::<T>(self.name(), out, layout)?.copy_from_slice(self.0);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("upload: needs a contiguous tensor, got {:?}", layout.shape());
        };
        let device = out.device.clone();
        let mut slice = out.as_cuda_slice_mut::<T>()?.slice_mut(start..end);
        device.memcpy_htod(self.0, &mut slice)
    }
}
