//! Kernels as functions of this process, compiled by the emulator.

use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_void, CStr, CString};

use candle_core::{bail, Error, Result};

use super::{Kernel, Launch};

/// Mirrors `EmulatedLaunch` of include/cuda/kernel.h.
#[repr(C)]
struct EmulatedLaunch {
    grid: [u32; 3],
    block: [u32; 3],
    cluster: [u32; 3],
    shared_bytes: u32,
    seed: u64,
}

type Emulated = unsafe extern "C" fn(*const EmulatedLaunch, *const c_void) -> *const c_char;

extern "C" {
    fn cuda_emulator_find(name: *const c_char) -> Option<Emulated>;
}

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
    static RECORDING: RefCell<Option<Vec<Launched>>> = const { RefCell::new(None) };
}

/// Runs `f` with the ops of this thread, on CPU tensors, going the GPU's way: their launch code, and
/// their kernels run by the emulator. Threads of a block take turns in an order drawn from `seed`.
pub fn emulate<R>(seed: u64, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<u64>);
    impl Drop for Restore {
        fn drop(&mut self) {
            SEED.set(self.0);
        }
    }
    let _restore = Restore(SEED.replace(Some(seed)));
    f()
}

/// Whether [`emulate`] is running on this thread.
pub(crate) fn emulating() -> bool {
    SEED.get().is_some()
}

/// A launch with its parameters.
struct Launched {
    kernel: Kernel,
    launch: Launch,
    /// In words, for the alignment.
    params: Vec<u64>,
}

/// Launches to be made again.
pub(crate) struct Recording(Vec<Launched>);

/// Keeps what `f` launches instead of running it.
pub(crate) fn record<R>(f: impl FnOnce() -> Result<R>) -> Result<(Recording, R)> {
    RECORDING.set(Some(Vec::new()));
    let result = f();
    let launched = RECORDING.take().unwrap_or_default();
    Ok((Recording(launched), result?))
}

impl Recording {
    pub(crate) fn launch(&self) -> Result<()> {
        for Launched { kernel, launch, params } in &self.0 {
            // SAFETY: these are the bytes of the struct that the kernel was launched with.
            unsafe { run(*kernel, *launch, params.as_ptr().cast())? };
        }
        Ok(())
    }

    pub(crate) fn nodes(&self) -> usize {
        self.0.len()
    }
}

/// # Safety
/// As [`super::Gpu::launch`].
pub(super) unsafe fn launch<P: Copy>(kernel: Kernel, launch: Launch, params: &P) -> Result<()> {
    let pointer = std::ptr::from_ref(params).cast::<c_void>();
    let recorded = RECORDING.with_borrow_mut(|recording| match recording {
        Some(launched) => {
            let mut words = vec![0u64; size_of::<P>().div_ceil(8)];
            // SAFETY: the words have room for all bytes of the struct.
            unsafe {
                let to = words.as_mut_ptr().cast::<u8>();
                std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), to, size_of::<P>());
            }
            launched.push(Launched { kernel, launch, params: words });
            true
        }
        None => false,
    });
    if recorded {
        return Ok(());
    }
    // SAFETY: as promised by the caller.
    unsafe { run(kernel, launch, pointer) }
}

/// # Safety
/// `params` must point to the struct that the kernel declares, and its addresses and lengths be true.
unsafe fn run(kernel: Kernel, launch: Launch, params: *const c_void) -> Result<()> {
    let Kernel(name) = kernel;
    let c_name = CString::new(name).map_err(Error::wrap)?;
    // SAFETY: the name is a C string; the table is constant.
    let Some(emulate) = (unsafe { cuda_emulator_find(c_name.as_ptr()) }) else {
        bail!("{name}: no such kernel");
    };
    let shape = EmulatedLaunch {
        grid: launch.grid,
        block: [launch.block, 1, 1],
        cluster: [launch.cluster, 1, 1],
        shared_bytes: launch.shared_bytes,
        seed: SEED.get().unwrap_or(0),
    };
    // SAFETY: the parameters are those that the kernel declares, as promised by the caller.
    let fault = unsafe { emulate(&shape, params) };
    if !fault.is_null() {
        // SAFETY: what is not null is a C string that lives until this thread's next run.
        let fault = unsafe { CStr::from_ptr(fault) }.to_string_lossy().into_owned();
        bail!("{name}: {fault}");
    }
    Ok(())
}
