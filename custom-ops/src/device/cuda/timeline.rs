//! When blocks of kernels ran; include/cuda/timeline.cuh, compiled in by `DS4_CUDA_TIMELINE`.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaModule, CudaSlice, CudaStream};
use candle_core::Result;

use super::real::failed;
use super::KERNELS;
use crate::device::timeline::Block;

/// Records that the GPU has room for: several steps of one token.
const ROOM: usize = 1 << 19;
/// `TimelineRecord` in words of eight bytes, and the words before the first one.
const RECORD: usize = 5;
const HEAD: usize = 2;

/// Where the kernels of all modules leave their records.
pub(super) struct Timeline {
    words: CudaSlice<u64>,
}

impl Timeline {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let words = stream.alloc_zeros(HEAD + RECORD * ROOM).map_err(failed("timeline"))?;
        let mut timeline = Self { words };
        timeline.empty(stream)?;
        Ok(timeline)
    }

    fn empty(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        let head = [0, ROOM as u64];
        let mut words = self.words.slice_mut(..HEAD);
        stream.memcpy_htod(&head, &mut words).map_err(failed("timeline"))
    }

    /// Tells a module where its kernels' records go.
    pub(super) fn listen(&self, module: &Arc<CudaModule>, stream: &Arc<CudaStream>) -> Result<()> {
        use candle_core::cuda_backend::cudarc::driver::DevicePtr;
        let address = self.words.device_ptr(stream).0;
        let mut place = module.get_global("timeline", stream).map_err(failed("timeline"))?;
        stream.memcpy_htod(&address.to_le_bytes(), &mut place).map_err(failed("timeline"))
    }

    /// All records since the last time, as far as there was room.
    pub(super) fn take(&mut self, stream: &Arc<CudaStream>) -> Result<Vec<Block>> {
        let words = stream.clone_dtoh(&self.words).map_err(failed("timeline"))?;
        self.empty(stream)?;
        let count = usize::try_from(words[0]).unwrap_or(ROOM).min(ROOM);
        let halves = |word: u64| [word as u32, (word >> 32) as u32];
        let record = |words: &[u64]| {
            let ([kernel, blocks], [block, processor]) = (halves(words[0]), halves(words[1]));
            let name = KERNELS.iter().map(|(name, _)| *name).find(|name| hash(name) == kernel);
            let kernel = name.unwrap_or("unknown");
            let [begin, ready, end] = [words[2], words[3], words[4]];
            Block { kernel, blocks, block, processor, begin, ready, end }
        };
        Ok(words[HEAD..].chunks_exact(RECORD).take(count).map(record).collect())
    }
}

/// FNV-1a, as `timeline_hash`.
fn hash(name: &str) -> u32 {
    name.bytes().fold(2_166_136_261, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619))
}
