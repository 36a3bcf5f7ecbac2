//! The executor of machines without an Apple GPU: kernels compiled as C++, see `emulator/`.

use std::cell::Cell;
use std::ffi::{c_char, c_void, CStr, CString};

use candle_core::{bail, Result};

use super::binding::Memory;
use super::launch::{Argument, Launch};
use super::Binding;

/// Mirrors `metal_emulator::Launch`.
#[repr(C)]
struct RawLaunch {
    name: *const c_char,
    groups: [u32; 3],
    threads: u32,
    params: *const c_void,
    params_len: usize,
    buffers: *const *mut c_void,
    buffers_len: usize,
    constants: *const u32,
    constants_len: usize,
    seed: u64,
}

extern "C" {
    /// Runs a kernel; writes what went wrong and returns its length, 0 for nothing.
    fn ds4_metal_launch(launch: *const RawLaunch, message: *mut c_char, room: usize) -> usize;
    /// The name of the `index`-th kernel, null past the last.
    fn ds4_metal_kernel(index: usize) -> *const c_char;
}

/// What becomes of a launch.
#[derive(Clone, Copy)]
enum Mode {
    /// It runs, in an order drawn from a seed.
    Run(u64),
    /// It is only counted.
    Count,
}

thread_local! {
    static MODE: Cell<Option<Mode>> = const { Cell::new(None) };
}

/// Runs `f` with every op of this thread on CPU tensors taking the way of a Metal device, its
/// kernels emulated. `seed` draws the order in which threads run between two barriers; 0 is
/// ascending.
pub fn emulate<R>(seed: u64, f: impl FnOnce() -> R) -> R {
    within(Mode::Run(seed), f)
}

/// The same, but launches do nothing beyond being recorded (see [`record`](super::record)): what a
/// model too large for this machine would launch. Values are meaningless.
pub fn plan<R>(f: impl FnOnce() -> R) -> R {
    within(Mode::Count, f)
}

fn within<R>(mode: Mode, f: impl FnOnce() -> R) -> R {
    struct Reset(Option<Mode>);
    impl Drop for Reset {
        fn drop(&mut self) {
            MODE.set(self.0);
        }
    }
    let _reset = Reset(MODE.replace(Some(mode)));
    f()
}

/// Whether this thread is inside [`emulate`] or [`plan`].
pub(crate) fn emulating() -> bool {
    MODE.get().is_some()
}

/// The names of all kernels that the emulator has.
pub fn kernels() -> Vec<String> {
    let mut names = Vec::new();
    loop {
        // SAFETY: any index may be asked for; names are static.
        let name = unsafe { ds4_metal_kernel(names.len()) };
        if name.is_null() {
            return names;
        }
        // SAFETY: a string literal of the kernels' text.
        names.push(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned());
    }
}

pub(super) fn run(launch: &Launch<'_>, groups: [u32; 3], threads: usize) -> Result<()> {
    let seed = match MODE.get() {
        // Another order for every launch.
        Some(Mode::Run(seed)) if seed != 0 => {
            let next = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1).max(1);
            MODE.set(Some(Mode::Run(next)));
            seed
        }
        Some(Mode::Count) => return Ok(()),
        _ => 0,
    };
    let Ok(name) = CString::new(launch.kernel.as_str()) else {
        bail!("{}: a kernel's name", launch.kernel);
    };
    let pointer = |binding: &Binding<'_>| -> *mut c_void {
        match &binding.memory {
            // SAFETY: the offset is that of an element of a live tensor.
            Memory::Host(base) => unsafe { base.add(binding.offset) }.cast(),
            #[cfg(feature = "metal")]
            Memory::Device(_) => std::ptr::null_mut(),
        }
    };
    let buffers: Vec<*mut c_void> = launch
        .arguments
        .iter()
        .map(|argument| match argument {
            Argument::Read(binding) | Argument::Write(binding) => pointer(binding),
            Argument::Table { addresses, .. } => addresses.as_ptr().cast_mut().cast(),
        })
        .collect();
    let constants: Vec<u32> = launch.constants.iter().map(|&value| u32::from(value)).collect();
    let raw = RawLaunch {
        name: name.as_ptr(),
        groups,
        threads: threads as u32,
        params: launch.params.as_ptr().cast(),
        params_len: launch.params.len(),
        buffers: buffers.as_ptr(),
        buffers_len: buffers.len(),
        constants: constants.as_ptr(),
        constants_len: constants.len(),
        seed,
    };
    let mut message = vec![0u8; 1024];
    // SAFETY: the addresses are those of tensors and weights that the launch borrows; the emulator
    // checks number and size of what it is given, and kernels are tested to stay inside.
    let len = unsafe { ds4_metal_launch(&raw, message.as_mut_ptr().cast(), message.len()) };
    if len > 0 {
        message.truncate(len);
        bail!("{}: {}", launch.kernel, String::from_utf8_lossy(&message));
    }
    Ok(())
}
