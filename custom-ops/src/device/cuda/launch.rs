//! One launch of one kernel.

use candle_core::{bail, Result};

/// A kernel by its name in `KERNEL(name, …)`; names are unique in the crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kernel(pub(crate) &'static str);

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) grid: [u32; 3],
    pub(crate) block: u32,
    /// Blocks of a cluster, along x.
    pub(crate) cluster: u32,
    /// Dynamic shared memory.
    pub(crate) shared_bytes: u32,
}

impl Launch {
    /// `grid` blocks of `block` threads.
    pub(crate) fn new(grid: usize, block: u32) -> Self {
        Self { grid: [clamp(grid), 1, 1], block, cluster: 1, shared_bytes: 0 }
    }

    /// Blocks along y.
    pub(crate) fn grid_y(mut self, blocks: usize) -> Self {
        self.grid[1] = clamp(blocks);
        self
    }

    /// Blocks along z.
    #[allow(dead_code, reason = "not every op has a third axis")]
    pub(crate) fn grid_z(mut self, blocks: usize) -> Self {
        self.grid[2] = clamp(blocks);
        self
    }

    /// Clusters of `blocks` blocks along x.
    #[allow(dead_code, reason = "for ops whose blocks share their shared memory")]
    pub(crate) fn cluster(mut self, blocks: u32) -> Self {
        self.cluster = blocks;
        self
    }

    /// Dynamic shared memory of a block.
    pub(crate) fn shared(mut self, bytes: usize) -> Self {
        self.shared_bytes = clamp(bytes);
        self
    }

    /// Refuses what no GPU can run, before a driver says so less clearly.
    fn check(&self, kernel: Kernel) -> Result<()> {
        let Kernel(name) = kernel;
        let [_, y, z] = self.grid;
        if y > 65_535 || z > 65_535 || self.grid[0] > i32::MAX as u32 {
            bail!("{name}: a grid of {:?} blocks is larger than a GPU takes", self.grid);
        }
        if self.block == 0 || self.block > 1024 {
            bail!("{name}: blocks of {} threads, 1 to 1024 are possible", self.block);
        }
        if self.cluster == 0 || self.cluster > 16 || !self.grid[0].is_multiple_of(self.cluster) {
            bail!("{name}: {} blocks in clusters of {}", self.grid[0], self.cluster);
        }
        Ok(())
    }
}

/// Saturates: [`Launch::check`] refuses what comes of it.
fn clamp(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Where kernels run.
#[derive(Clone)]
pub(crate) enum Gpu {
    #[cfg(feature = "cuda")]
    Device(std::sync::Arc<super::real::Executor>),
    #[cfg(feature = "cuda-emulator")]
    Emulated,
}

impl Gpu {
    /// Where kernels of a device's tensors run; `None` if ops compute on the CPU.
    ///
    /// # Errors
    /// If the device is a GPU that cannot run our kernels.
    pub(crate) fn of(device: &candle_core::Device) -> Result<Option<Self>> {
        match device {
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(cuda) => Ok(Some(Self::Device(super::real::executor(cuda)?))),
            #[cfg(feature = "cuda-emulator")]
            candle_core::Device::Cpu if super::emulating() => Ok(Some(Self::Emulated)),
            _ => Ok(None),
        }
    }

    /// Launches a kernel after all launched before. A grid without blocks is no launch.
    ///
    /// Every kernel waits for its predecessor by `pdl_wait` before it touches what that may write or
    /// read: launches overlap where the GPU can.
    ///
    /// # Safety
    /// `params` must be the struct that the kernel declares, and its addresses and lengths true.
    pub(crate) unsafe fn launch<P: Copy>(
        &self,
        kernel: Kernel,
        launch: Launch,
        params: &P,
    ) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        launch.check(kernel)?;
        match self {
            // SAFETY: as promised by the caller.
            #[cfg(feature = "cuda")]
            Self::Device(executor) => unsafe { executor.launch(kernel, launch, params) },
            // SAFETY: as promised by the caller.
            #[cfg(feature = "cuda-emulator")]
            Self::Emulated => unsafe { super::emulated::launch(kernel, launch, params) },
        }
    }

    /// Blocks that run at the same time if each takes a whole multiprocessor.
    #[allow(dead_code, reason = "for ops whose grid is that of the GPU")]
    pub(crate) fn multiprocessors(&self) -> usize {
        match self {
            #[cfg(feature = "cuda")]
            Self::Device(executor) => executor.multiprocessors(),
            // Few, so that tests meet grids that are smaller than the work.
            #[cfg(feature = "cuda-emulator")]
            Self::Emulated => 3,
        }
    }

    /// Compute capability, for instance (9, 0).
    #[allow(dead_code, reason = "for ops with a fast path of their own")]
    pub(crate) fn capability(&self) -> (u32, u32) {
        match self {
            #[cfg(feature = "cuda")]
            Self::Device(executor) => executor.capability(),
            #[cfg(feature = "cuda-emulator")]
            Self::Emulated => (9, 0),
        }
    }

    /// Whether kernels can be used whose warpgroups multiply by themselves (`*_wgmma`).
    pub(crate) fn warpgroups(&self) -> bool {
        cfg!(cuda_warpgroups) && self.capability() == (9, 0)
    }

    /// Dynamic shared memory that a block can have, in bytes.
    #[allow(dead_code, reason = "for ops that choose their tiles by it")]
    pub(crate) fn shared_bytes(&self) -> usize {
        match self {
            #[cfg(feature = "cuda")]
            Self::Device(executor) => executor.shared_bytes(),
            #[cfg(feature = "cuda-emulator")]
            Self::Emulated => 227 << 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::KERNELS;
    use super::*;

    #[test]
    fn what_no_gpu_can_run_is_refused_by_name() {
        let refused = |launch: Launch| launch.check(Kernel("k")).unwrap_err().to_string();
        assert!(refused(Launch::new(1, 1025)).contains("k: blocks of 1025"));
        assert!(refused(Launch::new(1, 32).grid_y(70_000)).contains("grid"));
        assert!(refused(Launch::new(9, 32).cluster(8)).contains("clusters of 8"));
        assert!(refused(Launch::new(usize::MAX, 32)).contains("grid"));
        assert!(Launch::new(16, 32).cluster(8).check(Kernel("k")).is_ok());
    }

    /// A misspelt name would only show on a GPU.
    #[test]
    fn every_kernel_that_is_launched_exists() {
        let mut launched = 0;
        let mut folders =
            vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                // This file names kernels that are none.
                if path.extension().is_none_or(|e| e != "rs") || path.ends_with("launch.rs") {
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                for name in text.split("Kernel(\"").skip(1).filter_map(|t| t.split('"').next()) {
                    launched += 1;
                    let known = KERNELS.iter().any(|(kernel, _)| *kernel == name);
                    assert!(known, "{}: no kernel {name}", path.display());
                }
            }
        }
        assert!(launched > 0);
    }

    #[test]
    fn kernel_names_are_unique() {
        for (i, (name, _)) in KERNELS.iter().enumerate() {
            assert!(KERNELS[..i].iter().all(|(other, _)| other != name), "{name} twice");
        }
    }
}
