//! Preallocated outputs: after the first step of a shape, a step allocates nothing.

use std::cell::{Cell, RefCell};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Tensor};

use super::host_mut;

/// Hands out output tensors in the order in which a step asks for them.
///
/// A step asks for the same tensors in the same order each time, so the n-th request of a step is
/// served from the n-th buffer: addresses are stable (a captured CUDA graph needs that) and no
/// allocator runs. [`Workspace::frame`] marks a stretch whose tensors are dead at its end, so that
/// one layer's buffers serve the next layer too.
///
/// A tensor taken inside a frame must not be read after the frame's end: it would show a later
/// op's values. What outlives a frame is taken before the frame is opened. The one exception is what a
/// frame took late: the first op of the next frame may read it, because its outputs are the frame's first
/// buffers.
pub struct Workspace {
    device: Device,
    /// By type, f32 and u32: a request of one type must not displace a buffer of the other, whose address
    /// may be recorded.
    buffers: [RefCell<Vec<Tensor>>; 2],
    next: Cell<[usize; 2]>,
    #[cfg(cuda_kernels)]
    scratch: RefCell<Option<Tensor>>,
    #[cfg(cuda_kernels)]
    errand: RefCell<Option<crate::hyper_connection::Errand>>,
    poison: bool,
}

/// Returns what was taken since [`Workspace::frame`] when it goes out of scope.
pub struct Frame<'a> {
    workspace: &'a Workspace,
    mark: [usize; 2],
}

impl Workspace {
    /// An empty workspace; it grows as the first steps ask.
    pub fn new(device: &Device) -> Self {
        let poison = cfg!(any(test, debug_assertions));
        let (buffers, next) = Default::default();
        Self {
            device: device.clone(),
            buffers,
            next,
            #[cfg(cuda_kernels)]
            scratch: RefCell::new(None),
            #[cfg(cuda_kernels)]
            errand: RefCell::new(None),
            poison,
        }
    }

    /// The same, but tensors are filled with values that cannot pass for results before they are handed
    /// out, so that an op that leaves a gap, or a read after a frame's end, shows. In debug builds every
    /// workspace does that.
    pub fn poisoned(device: &Device) -> Self {
        Self { poison: true, ..Self::new(device) }
    }

    /// The device its tensors live on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Opens a frame: what is taken from now on is taken back when the frame is dropped.
    pub fn frame(&self) -> Frame<'_> {
        Frame { workspace: self, mark: self.next.get() }
    }

    /// An f32 tensor of this shape with undefined content, for an op to overwrite.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn f32(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        self.take(shape.into(), DType::F32)
    }

    /// A u32 tensor of this shape with undefined content, for an op to overwrite.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn u32(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        self.take(shape.into(), DType::U32)
    }

    /// Bytes held, used or not.
    pub fn bytes(&self) -> usize {
        let bytes = |b: &Tensor| b.elem_count() * b.dtype().size_in_bytes();
        let all: usize =
            self.buffers.iter().map(|all| all.borrow().iter().map(bytes).sum::<usize>()).sum();
        #[cfg(cuda_kernels)]
        let all = all + self.scratch.borrow().as_ref().map_or(0, bytes);
        all
    }

    /// At least so many bytes for what an op keeps between its own launches; none for 0. The next op
    /// that asks gets the same memory, so it must not outlive the op.
    ///
    /// # Errors
    /// If the device has no memory left.
    #[cfg(cuda_kernels)]
    pub(crate) fn scratch(&self, bytes: usize) -> Result<Option<Tensor>> {
        if bytes == 0 {
            return Ok(None);
        }
        let mut scratch = self.scratch.borrow_mut();
        match &*scratch {
            Some(tensor) if tensor.elem_count() >= bytes => {}
            // What was there goes first: two of them may not fit.
            _ => {
                *scratch = None;
                *scratch = Some(Tensor::zeros(bytes, DType::U8, &self.device)?);
            }
        }
        Ok(scratch.clone())
    }

    /// Leaves work for a later launch to run along.
    #[cfg(cuda_kernels)]
    pub(crate) fn leave_errand(&self, errand: crate::hyper_connection::Errand) {
        *self.errand.borrow_mut() = Some(errand);
    }

    /// The work that was left, for whoever runs it.
    #[cfg(cuda_kernels)]
    pub(crate) fn take_errand(&self) -> Option<crate::hyper_connection::Errand> {
        self.errand.borrow_mut().take()
    }

    fn take(&self, shape: Shape, dtype: DType) -> Result<Tensor> {
        let kind = usize::from(dtype != DType::F32);
        let mut next = self.next.get();
        let index = next[kind];
        let wanted = shape.elem_count();
        let mut buffers = self.buffers[kind].borrow_mut();
        let fits = |b: &Tensor| b.elem_count() >= wanted;
        if !buffers.get(index).is_some_and(fits) {
            // At least one element: candle refuses to narrow an empty tensor.
            let fresh = Tensor::zeros(wanted.max(1), dtype, &self.device)?;
            match buffers.get_mut(index) {
                Some(old) => *old = fresh,
                None => buffers.push(fresh),
            }
        }
        let tensor = buffers[index].narrow(0, 0, wanted)?.reshape(shape)?;
        drop(buffers);
        next[kind] += 1;
        self.next.set(next);
        if self.poison && wanted > 0 {
            tensor.inplace_op1(&Poison)?;
        }
        Ok(tensor)
    }
}

impl Drop for Frame<'_> {
    fn drop(&mut self) {
        self.workspace.next.set(self.mark);
    }
}

/// Fills what an op is to overwrite.
struct Poison;

impl InplaceOp1 for Poison {
    fn name(&self) -> &'static str {
        "poison"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match storage {
            CpuStorage::F32(_) => host_mut::<f32>("poison", storage, layout)?.fill(f32::NAN),
            _ => host_mut::<u32>("poison", storage, layout)?.fill(u32::MAX),
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        super::cuda::poison(storage, layout)
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, storage: &mut candle_core::MetalStorage, layout: &Layout) -> Result<()> {
        // All ones is no number to f32, and the largest one to u32.
        super::metal::put(&vec![0xff; layout.shape().elem_count() * 4], storage, layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_gives_its_buffers_to_the_next_one() -> Result<()> {
        let ws = Workspace::new(&Device::Cpu);
        let kept = ws.f32(3)?;
        kept.inplace_op1(&Fill(7.0))?;
        for rows in [4, 2, 4, 1] {
            let _frame = ws.frame();
            let a = ws.f32((rows, 5))?;
            let b = ws.u32(rows)?;
            assert_eq!((a.dims2()?, b.dims1()?), ((rows, 5), rows));
            a.inplace_op1(&Fill(rows as f32))?;
            assert_eq!(a.sum_all()?.to_scalar::<f32>()?, (rows * rows * 5) as f32);
        }
        assert_eq!(ws.bytes(), 4 * (3 + 20 + 4), "later frames fitted into the first one's");
        assert_eq!(kept.to_vec1::<f32>()?, [7.0; 3]);
        Ok(())
    }

    #[test]
    fn an_empty_tensor_is_handed_out_too() -> Result<()> {
        let ws = Workspace::new(&Device::Cpu);
        assert_eq!(ws.f32((0, 4))?.dims2()?, (0, 4));
        Ok(())
    }

    struct Fill(f32);
    impl candle_core::InplaceOp1 for Fill {
        fn name(&self) -> &'static str {
            "fill"
        }

        fn cpu_fwd(
            &self,
            storage: &mut candle_core::CpuStorage,
            layout: &candle_core::Layout,
        ) -> Result<()> {
            super::super::host_mut::<f32>("fill", storage, layout)?.fill(self.0);
            Ok(())
        }
    }
}
