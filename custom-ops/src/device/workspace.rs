//! Preallocated outputs: after the first step of a shape, a step allocates nothing.

use std::cell::{Cell, RefCell};

use candle_core::{bail, CpuStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Tensor};

use super::{host_mut, trim};

/// Rows that a buffer is made larger by at a time, once it has so many: chunks of a prompt differ in length
/// by little, and each longer one would have all buffers made anew.
const ROW_STEP: usize = 256;
/// Bytes of buffers given up from which on a device's memory pool is asked to give up theirs.
const WORTH_TRIMMING: usize = 16 << 20;

/// Hands out output tensors in the order in which a step asks for them.
///
/// A step asks for the same tensors in the same order each time, so the n-th request for rows of some width
/// is served from the n-th buffer for rows of that width: addresses are stable (a captured CUDA graph needs
/// that), no allocator runs, and a step of more rows takes more memory for each buffer but not more
/// buffers, whatever the layers before it asked for. [`Workspace::frame`] marks a stretch whose tensors are
/// dead at its end, so that one layer's buffers serve the next layer too.
///
/// A tensor taken inside a frame must not be read after the frame's end: it would show a later
/// op's values. What outlives a frame is taken before the frame is opened.
///
/// One exception: the first op after a frame's end may read a tensor of which the frame had taken *another*
/// of the same width before. That op's outputs are the first buffers of their widths, so they cannot be it. A
/// layer takes its input `[tokens, hidden]` first and its result, of the same shape, last; the next layer's
/// first op reads that result while it writes its own input.
pub struct Workspace {
    device: Device,
    lists: RefCell<Vec<List>>,
    /// The list of each tensor that is taken, in order.
    taken: RefCell<Vec<usize>>,
    /// Bytes that it may hold.
    limit: Cell<usize>,
    #[cfg(cuda_kernels)]
    scratch: RefCell<Option<Tensor>>,
    #[cfg(cuda_kernels)]
    errand: RefCell<Option<crate::hyper_connection::Errand>>,
    poison: bool,
}

/// Buffers for rows of one width. A request of another type must not displace one whose address may be
/// recorded, so each type has its own.
struct List {
    dtype: DType,
    width: usize,
    buffers: Vec<Tensor>,
    /// How many of them are taken.
    next: usize,
}

impl List {
    /// The buffer that the next request is served from.
    fn waiting(&self) -> Option<&Tensor> {
        self.buffers.get(self.next)
    }

    fn remove(&mut self) {
        self.buffers.remove(self.next);
    }

    fn insert(&mut self, buffer: Tensor) {
        self.buffers.insert(self.next, buffer);
    }
}

/// Returns what was taken since [`Workspace::frame`] when it goes out of scope.
pub struct Frame<'a> {
    workspace: &'a Workspace,
    mark: usize,
}

impl Workspace {
    /// An empty workspace; it grows as the first steps ask.
    pub fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            lists: RefCell::default(),
            taken: RefCell::default(),
            limit: Cell::new(usize::MAX),
            #[cfg(cuda_kernels)]
            scratch: RefCell::new(None),
            #[cfg(cuda_kernels)]
            errand: RefCell::new(None),
            poison: cfg!(any(test, debug_assertions)),
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
        Frame { workspace: self, mark: self.taken.borrow().len() }
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
        let lists = self.lists.borrow();
        let all: usize = lists.iter().flat_map(|list| &list.buffers).map(bytes).sum();
        #[cfg(cuda_kernels)]
        let all = all + self.scratch.borrow().as_ref().map_or(0, bytes);
        all
    }

    /// Refuses from now on to hold more than so many bytes, as a device does that has no more.
    pub fn set_limit(&self, bytes: usize) {
        self.limit.set(bytes);
    }

    /// Gives up all buffers that are not taken, and the scratch. What a recorded step works on must not be
    /// given up.
    ///
    /// # Errors
    /// The device's.
    pub fn shed(&self) -> Result<()> {
        let before = self.bytes();
        for list in self.lists.borrow_mut().iter_mut() {
            list.buffers.truncate(list.next);
        }
        #[cfg(cuda_kernels)]
        self.scratch.replace(None);
        match before - self.bytes() >= WORTH_TRIMMING {
            true => trim(&self.device),
            false => Ok(()),
        }
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
        let large = |tensor: &Tensor| tensor.elem_count() >= bytes;
        if !self.scratch.borrow().as_ref().is_some_and(large) {
            // What was there goes first: two of them may not fit.
            let old = self.scratch.replace(None).map_or(0, |old| old.elem_count());
            if old >= WORTH_TRIMMING {
                trim(&self.device)?;
            }
            self.scratch.replace(Some(self.allocate(bytes, DType::U8)?));
        }
        Ok(self.scratch.borrow().clone())
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
        let wanted = shape.elem_count();
        let width = shape.dims().iter().skip(1).product();
        let list = self.list(dtype, width);
        let found = self.lists.borrow()[list].waiting().cloned();
        let long = found.as_ref().map(|buffer| buffer.elem_count() >= wanted);
        let buffer = match found.filter(|_| long == Some(true)) {
            Some(buffer) => buffer,
            None => {
                if long == Some(false) && self.taken.borrow().is_empty() {
                    // A longer step than any before: its other buffers will be too short as well, and what
                    // they leave in the device's pool is in pieces that longer ones do not fit into.
                    self.shed()?;
                } else if long == Some(false) {
                    // Within a step the others stay: what a step has had once it will not allocate again.
                    self.lists.borrow_mut()[list].remove();
                }
                let rows = shape.dims().first().copied().unwrap_or(1);
                let rows = if rows < ROW_STEP { rows } else { rows.next_multiple_of(ROW_STEP) };
                // At least one element: candle refuses to narrow an empty tensor.
                let fresh = self.allocate((rows * width).max(1), dtype)?;
                self.lists.borrow_mut()[list].insert(fresh.clone());
                fresh
            }
        };
        let tensor = buffer.narrow(0, 0, wanted)?.reshape(shape)?;
        self.lists.borrow_mut()[list].next += 1;
        self.taken.borrow_mut().push(list);
        if self.poison && wanted > 0 {
            tensor.inplace_op1(&Poison)?;
        }
        Ok(tensor)
    }

    fn list(&self, dtype: DType, width: usize) -> usize {
        let mut lists = self.lists.borrow_mut();
        let known = lists.iter().position(|list| list.dtype == dtype && list.width == width);
        known.unwrap_or_else(|| {
            lists.push(List { dtype, width, buffers: Vec::new(), next: 0 });
            lists.len() - 1
        })
    }

    /// A buffer; if there is no memory for it, after the device's pool has given up what nobody uses.
    fn allocate(&self, len: usize, dtype: DType) -> Result<Tensor> {
        let (more, limit) = (len * dtype.size_in_bytes(), self.limit.get());
        if self.bytes().saturating_add(more) > limit {
            bail!("out of memory: {more} bytes more than {} are above {limit}", self.bytes());
        }
        Tensor::zeros(len, dtype, &self.device).or_else(|_| {
            trim(&self.device)?;
            Tensor::zeros(len, dtype, &self.device)
        })
    }
}

fn bytes(buffer: &Tensor) -> usize {
    buffer.elem_count() * buffer.dtype().size_in_bytes()
}

impl Drop for Frame<'_> {
    fn drop(&mut self) {
        let mut lists = self.workspace.lists.borrow_mut();
        let mut taken = self.workspace.taken.borrow_mut();
        // What an outer frame has given back already, by being dropped first, is not there any more.
        let mark = self.mark.min(taken.len());
        for list in taken.drain(mark..) {
            lists[list].next -= 1;
        }
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

    /// Of a layer with one width more than the next: a buffer serves its width only, or the next layer's
    /// wide rows would fall on other buffers than this one's, and all would come to be wide.
    #[test]
    fn layers_that_ask_in_another_order_share_their_wide_buffers() -> Result<()> {
        let ws = Workspace::new(&Device::Cpu);
        for widths in [&[2, 1000, 1000][..], &[2, 3, 1000, 3, 1000], &[1000, 3, 1000]] {
            let _frame = ws.frame();
            for &width in widths {
                ws.f32((7, width))?;
            }
        }
        assert_eq!(ws.bytes(), 4 * 7 * (2 + 2 * 3 + 2 * 1000));
        Ok(())
    }

    #[test]
    fn a_longer_step_takes_the_place_of_shorter_ones() -> Result<()> {
        let ws = Workspace::new(&Device::Cpu);
        let kept = ws.f32((3, 5))?;
        kept.inplace_op1(&Fill(7.0))?;
        let mut held = Vec::new();
        // Within a step of rows nothing is made anew.
        for rows in [8, 300, 512, 257, 1000, 8] {
            let _frame = ws.frame();
            for width in [4, 4, 6] {
                let _inner = ws.frame();
                ws.f32((rows, width))?;
                ws.f32((rows, width))?;
            }
            held.push((ws.bytes() - 4 * 3 * 5) / 4 / (2 * 4 + 2 * 6));
        }
        assert_eq!(held, [8, 512, 512, 512, 1024, 1024]);
        assert_eq!(
            kept.flatten_all()?.to_vec1::<f32>()?,
            [7.0; 15],
            "what is taken is not given up"
        );
        ws.shed()?;
        assert_eq!(ws.bytes(), 4 * 3 * 5);
        Ok(())
    }

    /// A recorded step must not allocate, and is recorded the second time.
    #[test]
    fn a_step_that_is_made_again_allocates_nothing() -> Result<()> {
        let ws = Workspace::new(&Device::Cpu);
        let step = || -> Result<()> {
            let _pass = ws.frame();
            ws.f32((8, 11))?;
            for rows in [[8, 2], [2, 8], [1, 3]] {
                let _layer = ws.frame();
                for rows in rows {
                    ws.f32((rows, 5))?;
                }
                ws.u32((rows[1], 5))?;
            }
            Ok(())
        };
        step()?;
        ws.set_limit(0);
        step()?;
        let longer = ws.f32((9, 11)).unwrap_err();
        assert!(crate::device::is_out_of_memory(&longer), "{longer}");
        Ok(())
    }

    #[test]
    fn a_frame_that_outlives_the_one_around_it_gives_nothing_back_twice() -> Result<()> {
        let ws = Workspace::new(&Device::Cpu);
        let outer = ws.frame();
        ws.f32((2, 3))?;
        let inner = ws.frame();
        ws.f32((2, 3))?;
        drop(outer);
        drop(inner);
        let (a, b) = (ws.f32((2, 3))?, ws.f32((2, 3))?);
        a.inplace_op1(&Fill(1.0))?;
        b.inplace_op1(&Fill(2.0))?;
        assert_eq!(a.sum_all()?.to_scalar::<f32>()?, 6.0, "two tensors of one buffer");
        assert_eq!(ws.bytes(), 2 * 4 * 2 * 3);
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
