//! Launches recorded once and replayed with one call.

use candle_core::{bail, Device, Result};

/// A recorded stretch of work of a device. The memory that it works on must outlive it.
pub struct Graph {
    inner: Inner,
}

enum Inner {
    #[cfg(feature = "cuda")]
    Cuda(super::cuda::Graph),
    #[cfg(feature = "cuda-emulator")]
    Emulated(super::cuda::Recording),
}

/// Whether work on this device can be recorded.
pub fn can_record(device: &Device) -> bool {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => true,
        #[cfg(feature = "cuda-emulator")]
        Device::Cpu => super::cuda::emulating(),
        _ => false,
    }
}

/// Bytes that a driver must have free for a recording: it wants memory of its own for it, and does not survive
/// to find none.
#[cfg(feature = "cuda")]
const ROOM: usize = 64 << 20;

/// Whether there is memory now for another recording. Without it, work can still be launched as usual.
///
/// # Errors
/// The driver's.
pub fn has_room_to_record(device: &Device) -> Result<bool> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => super::cuda::has_room(cuda, ROOM),
        _ => Ok(can_record(device)),
    }
}

/// Records what `f` launches on `device` instead of running it.
///
/// `f` must have run once before on the same shapes, so that every kernel is loaded and every buffer
/// there: it may launch kernels of ours and nothing else. It must not allocate, copy, or read back.
///
/// # Errors
/// A device without recordings, what `f` fails with, or the driver; the device is usable afterwards.
pub fn capture<R>(device: &Device, f: impl FnOnce() -> Result<R>) -> Result<(Graph, R)> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            let (graph, value) = super::cuda::capture(device, f)?;
            Ok((Graph { inner: Inner::Cuda(graph) }, value))
        }
        #[cfg(feature = "cuda-emulator")]
        Device::Cpu if super::cuda::emulating() => {
            let (recording, value) = super::cuda::record(f)?;
            Ok((Graph { inner: Inner::Emulated(recording) }, value))
        }
        _ => {
            drop(f);
            bail!("work on {:?} cannot be recorded", device.location())
        }
    }
}

impl Graph {
    /// Queues all of it behind what is queued already.
    ///
    /// # Errors
    /// The driver's, or a kernel's.
    pub fn launch(&self) -> Result<()> {
        match self.inner {
            #[cfg(feature = "cuda")]
            Inner::Cuda(ref graph) => graph.launch(),
            #[cfg(feature = "cuda-emulator")]
            Inner::Emulated(ref recording) => recording.launch(),
        }
    }

    /// Launches recorded.
    pub fn nodes(&self) -> usize {
        match self.inner {
            #[cfg(feature = "cuda")]
            Inner::Cuda(ref graph) => graph.nodes(),
            #[cfg(feature = "cuda-emulator")]
            Inner::Emulated(ref recording) => recording.nodes(),
        }
    }

    /// Nodes that are no kernels: copies, fills, allocations. Each cuts the chain of launches.
    ///
    /// # Errors
    /// The driver's.
    pub fn other_nodes(&self) -> Result<usize> {
        match self.inner {
            #[cfg(feature = "cuda")]
            Inner::Cuda(ref graph) => graph.other_nodes(),
            #[cfg(feature = "cuda-emulator")]
            Inner::Emulated(_) => Ok(0),
        }
    }

    /// Edges along which a kernel may begin before its predecessor has ended; all but one node have one
    /// where the device can do that.
    ///
    /// # Errors
    /// The driver's.
    pub fn programmatic_edges(&self) -> Result<usize> {
        match self.inner {
            #[cfg(feature = "cuda")]
            Inner::Cuda(ref graph) => graph.programmatic_edges(),
            #[cfg(feature = "cuda-emulator")]
            Inner::Emulated(_) => Ok(0),
        }
    }
}
