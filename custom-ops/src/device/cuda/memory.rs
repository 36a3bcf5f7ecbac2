//! A weight in the memory that kernels see.

use candle_core::Result;

use super::{Address, Planes, Weight};

/// Planes and the allocation that they are in.
pub(crate) struct Packed {
    planes: Planes,
    memory: Memory,
}

enum Memory {
    #[cfg(feature = "cuda")]
    Device(candle_core::cuda_backend::cudarc::driver::CudaSlice<u8>),
    #[cfg(feature = "cuda-emulator")]
    Host(Host),
}

/// Zeroed host memory that begins where a kernel may load 16 bytes at once.
#[cfg(feature = "cuda-emulator")]
struct Host {
    words: Vec<[u64; 32]>,
    len: usize,
}

#[cfg(feature = "cuda-emulator")]
impl Host {
    fn new(len: usize) -> Self {
        // One more, so that the first aligned byte has `len` behind it.
        Self { words: vec![[0; 32]; len.div_ceil(256) + 1], len }
    }

    /// Bytes from the allocation's begin to the first one that is a multiple of 256.
    fn skipped(&self) -> usize {
        self.words.as_ptr().cast::<u8>().align_offset(256)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let (skipped, len) = (self.skipped(), self.len);
        let base = self.words.as_mut_ptr().cast::<u8>();
        // SAFETY: the words are initialised, live as long as `self`, and reach 256 bytes past `len`.
        unsafe { std::slice::from_raw_parts_mut(base.add(skipped), len) }
    }

    fn address(&self) -> Address {
        Address(self.words.as_ptr() as u64).offset(self.skipped())
    }
}

impl Packed {
    /// Planes in device memory.
    #[cfg(feature = "cuda")]
    pub(super) fn on_device(
        planes: Planes,
        slice: candle_core::cuda_backend::cudarc::driver::CudaSlice<u8>,
    ) -> Self {
        Self { planes, memory: Memory::Device(slice) }
    }

    /// Planes for emulated kernels, out of a file's blocks.
    ///
    /// # Errors
    /// If there are not as many blocks as the planes hold.
    #[cfg(feature = "cuda-emulator")]
    pub(crate) fn on_host(planes: Planes, blocks: &[u8]) -> Result<Self> {
        let mut host = Host::new(planes.bytes);
        crate::repack::repack(&planes, blocks, host.bytes_mut())?;
        Ok(Self { planes, memory: Memory::Host(host) })
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn planes(&self) -> &Planes {
        &self.planes
    }

    /// The parameter that a kernel on `gpu` takes.
    ///
    /// # Errors
    /// If the weight is on another device.
    pub(crate) fn weight(&self, op: &'static str, gpu: &super::Gpu) -> Result<Weight> {
        use super::Gpu;
        match (&self.memory, gpu) {
            #[cfg(feature = "cuda")]
            (Memory::Device(slice), Gpu::Device(executor)) => {
                use candle_core::cuda_backend::cudarc::driver::DevicePtr;
                if slice.context().ordinal() != executor.stream().context().ordinal() {
                    candle_core::bail!("{op}: the weight is on another GPU than the activations");
                }
                let (base, _untracked) = slice.device_ptr(executor.stream());
                Ok(self.planes.at(Address(base)))
            }
            #[cfg(feature = "cuda-emulator")]
            (Memory::Host(host), Gpu::Emulated) => Ok(self.planes.at(host.address())),
            #[allow(unreachable_patterns, reason = "with one executor there is no other place")]
            _ => candle_core::bail!("{op}: the weight is not where the activations are"),
        }
    }
}
