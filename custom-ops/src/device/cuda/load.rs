//! From a mapped file to planes in GPU memory.
//!
//! A matrix goes in chunks of rows: threads copy a chunk's pages into pinned memory, the GPU fetches it
//! on a stream of its own and repacks it, and meanwhile the threads fill the next buffer.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{
    result, CudaEvent, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice,
};
use candle_core::{bail, Device, Result};
use rayon::prelude::*;

use super::real::{executor, failed, Executor};
use super::{Address, Packed, Planes};
use crate::blocks::Format;
use crate::repack::{repack_rows, ROW_STEP};

/// Buffers in flight.
const SLOTS: usize = 4;
/// Bytes of each: large against a copy's latency, small against a matrix.
const SLOT_BYTES: usize = 32 << 20;
/// What one thread copies at a time: an expert's matrix, the chunk that most are, has some for each core.
const PIECE: usize = 128 << 10;

/// Uploads weights; keep it for all of a model's.
pub struct Loader {
    executor: Arc<Executor>,
    copies: Arc<CudaStream>,
    slots: Vec<Slot>,
    next: usize,
}

/// A pinned buffer, where it goes on the device, and when both are free again.
struct Slot {
    pinned: PinnedHostSlice<u8>,
    device: CudaSlice<u8>,
    done: CudaEvent,
}

impl Loader {
    /// Takes 128 MiB of pinned memory and as much on the device.
    ///
    /// # Errors
    /// If either is not to be had.
    pub fn new(device: &Device) -> Result<Self> {
        let executor = executor(device.as_cuda_device()?)?;
        let context = executor.stream().context().clone();
        let copies = context.new_stream().map_err(failed("copy stream"))?;
        let mut slots = Vec::with_capacity(SLOTS);
        for _ in 0..SLOTS {
            // SAFETY: written before it is read.
            let pinned = unsafe { context.alloc_pinned::<u8>(SLOT_BYTES) };
            // SAFETY: as above.
            let staged = unsafe { copies.alloc::<u8>(SLOT_BYTES) };
            slots.push(Slot {
                pinned: pinned.map_err(failed("pinned memory"))?,
                device: staged.map_err(failed("staging memory"))?,
                done: context.new_event(None).map_err(failed("event"))?,
            });
        }
        Ok(Self { executor, copies, slots, next: 0 })
    }

    /// Uploads a stack of matrices; `blocks` is as long as its shape says.
    pub(crate) fn upload(&mut self, planes: Planes, blocks: &[u8]) -> Result<Packed> {
        let row_bytes = planes.format.row_bytes(planes.cols)?;
        let stream = self.executor.stream().clone();
        // SAFETY: every byte that a kernel reads is written below: padding by the fill, rows by copies.
        let memory = unsafe { stream.alloc::<u8>(planes.bytes.max(1)) };
        let mut memory = memory.map_err(|error| out_of_memory(planes.bytes, &error))?;
        if planes.bytes != planes.stack * planes.rows * row_bytes {
            stream.memset_zeros(&mut memory).map_err(failed("fill"))?;
        }
        // The allocation (and the fill) must be there before the other stream writes.
        self.copies.join(&stream).map_err(failed("join"))?;
        let base = Address(memory.device_ptr(&stream).0);
        let weight = planes.at(base);
        let rows_at_once = match planes.format {
            Format::F32 | Format::F16 | Format::BF16 => (SLOT_BYTES / row_bytes.max(1)).max(1),
            _ => SLOT_BYTES / row_bytes.max(1) / ROW_STEP * ROW_STEP,
        };
        if rows_at_once == 0 || row_bytes > SLOT_BYTES {
            bail!("a row of {row_bytes} bytes is larger than the staging buffer of {SLOT_BYTES}");
        }
        for matrix in 0..planes.stack {
            for first in (0..planes.rows).step_by(rows_at_once) {
                let rows = rows_at_once.min(planes.rows - first);
                let from = (matrix * planes.rows + first) * row_bytes;
                let chunk = &blocks[from..from + rows * row_bytes];
                let slot = &mut self.slots[self.next];
                self.next = (self.next + 1) % SLOTS;
                slot.fill(chunk)?;
                let staged = Address(slot.device.device_ptr(&self.copies).0);
                let launch = repack_rows(planes.format, weight, matrix, first, rows, staged);
                let to = match launch {
                    Some(_) => staged,
                    None => base.offset(matrix * planes.stride[0] + first * row_bytes),
                };
                // SAFETY: the chunk lies in the pinned buffer, which is not written before `done`; the
                // destination has room for it.
                unsafe {
                    let pinned = slot.pinned.as_ptr().map_err(failed("pinned memory"))?;
                    let pinned = std::slice::from_raw_parts(pinned, chunk.len());
                    result::memcpy_htod_async(to.0, pinned, self.copies.cu_stream())
                        .map_err(failed("upload"))?;
                    if let Some((kernel, launch, params)) = launch {
                        self.executor.launch_on(&self.copies, kernel, launch, &params)?;
                    }
                }
                slot.done.record(&self.copies).map_err(failed("event"))?;
            }
        }
        Ok(Packed::on_device(planes, memory))
    }

    /// Lets the device's own stream wait for all uploads, and waits too, so that an error shows here.
    ///
    /// # Errors
    /// The driver's.
    pub fn finish(&mut self) -> Result<()> {
        self.executor.stream().join(&self.copies).map_err(failed("join"))?;
        self.copies.synchronize().map_err(failed("upload"))
    }
}

impl Slot {
    /// Copies a chunk into the pinned buffer on all cores, once what was in it has arrived.
    fn fill(&mut self, chunk: &[u8]) -> Result<()> {
        self.done.synchronize().map_err(failed("upload"))?;
        let pinned = self.pinned.as_mut_ptr().map_err(failed("pinned memory"))?;
        // SAFETY: the buffer is longer than a chunk, and nothing reads it before the next copy.
        let pinned = unsafe { std::slice::from_raw_parts_mut(pinned, chunk.len()) };
        pinned.par_chunks_mut(PIECE).zip(chunk.par_chunks(PIECE)).for_each(|(to, from)| {
            to.copy_from_slice(from);
        });
        Ok(())
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Pinned buffers must not be freed under a copy; an error has shown at `finish`.
        let _ = self.copies.synchronize();
    }
}

fn out_of_memory(bytes: usize, error: &dyn std::fmt::Display) -> candle_core::Error {
    let mib = bytes as f64 / (1 << 20) as f64;
    candle_core::Error::msg(format!("the GPU has no {mib:.0} MiB left for this weight: {error}"))
}
