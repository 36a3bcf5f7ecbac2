//! Kernels as functions of this process, compiled by the emulator.

use std::cell::Cell;
use std::ffi::{c_char, c_void, CStr, CString};
use std::sync::{Mutex, PoisonError};

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

/// # Safety
/// As [`super::Gpu::launch`].
pub(super) unsafe fn launch<P: Copy>(kernel: Kernel, launch: Launch, params: &P) -> Result<()> {
    /// The emulator's fibers know one grid at a time.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let Kernel(name) = kernel;
    let c_name = CString::new(name).map_err(Error::wrap)?;
    // SAFETY: the name is a C string; the table is constant.
    let Some(run) = (unsafe { cuda_emulator_find(c_name.as_ptr()) }) else {
        bail!("{name}: no such kernel");
    };
    let shape = EmulatedLaunch {
        grid: launch.grid,
        block: [launch.block, 1, 1],
        cluster: [launch.cluster, 1, 1],
        shared_bytes: launch.shared_bytes,
        seed: SEED.get().unwrap_or(0),
    };
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the parameters are those that the kernel declares, as promised by the caller.
    let fault = unsafe { run(&shape, std::ptr::from_ref(params).cast()) };
    if !fault.is_null() {
        // SAFETY: what is not null is a C string that lives until this thread's next run.
        let fault = unsafe { CStr::from_ptr(fault) }.to_string_lossy().into_owned();
        bail!("{name}: {fault}");
    }
    Ok(())
}
