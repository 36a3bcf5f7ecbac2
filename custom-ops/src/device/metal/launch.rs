//! One launch of one kernel.

use candle_core::{bail, DType, Result, Tensor};

use super::{log, Binding, Gpu, Output};

/// The kernels of one op: `kernel.metal` behind the parts that all of them share.
pub(crate) struct Library {
    #[cfg_attr(
        not(feature = "metal"),
        allow(dead_code, reason = "the emulator knows kernels by name")
    )]
    pub(super) parts: &'static [&'static str],
}

impl Library {
    /// `kernel` is the text of an op's `kernel.metal`.
    pub(crate) const fn new(parts: &'static [&'static str]) -> Self {
        Self { parts }
    }
}

/// The [`Library`] of the op in whose folder it is called.
macro_rules! library {
    () => {{
        static LIBRARY: $crate::device::metal::Library = $crate::device::metal::Library::new(&[
            include_str!("../../include/metal/prelude.metal"),
            include_str!("../../include/metal/reduce.metal"),
            include_str!("../../include/metal/rounding.metal"),
            include_str!("../../include/metal/iq2_xxs.metal"),
            include_str!("../../include/metal/blocks.metal"),
            include_str!("../../include/metal/vec.metal"),
            include_str!("../../include/metal/tiles.metal"),
            include_str!("../../include/metal/rows.metal"),
            include_str!("../../include/metal/route.metal"),
            include_str!("kernel.metal"),
        ]);
        &LIBRARY
    }};
}
pub(crate) use library;

/// A kernel's parameter struct.
///
/// # Safety
/// `#[repr(C)]`, and made of 4-byte numbers only, in the order of the kernel's struct: so it has no
/// padding, and both sides agree.
pub(crate) unsafe trait Parameters: Copy {}

/// Declares a struct of 4-byte fields that mirrors a kernel's.
macro_rules! parameters {
    ($(#[$meta:meta])* struct $name:ident { $($field:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct $name { $($field: $kind,)* }
        const _: () = {
            let mut bytes = 0;
            $(assert!(std::mem::align_of::<$kind>() == 4); bytes += std::mem::size_of::<$kind>();)*
            assert!(bytes == std::mem::size_of::<$name>());
        };
        // SAFETY: `repr(C)`, every field aligned to 4 bytes, no byte that is no field's.
        unsafe impl $crate::device::metal::Parameters for $name {}
    };
}
pub(crate) use parameters;

pub(super) enum Argument<'a> {
    Read(Binding<'a>),
    Write(Binding<'a>),
    /// Addresses of pages, and those of them that a launch not long ago may have written.
    Table {
        addresses: Vec<u64>,
        #[cfg_attr(not(feature = "metal"), allow(dead_code, reason = "the emulator is in order"))]
        recent: Vec<Binding<'a>>,
    },
}

/// A kernel with what it is launched with.
#[must_use]
pub(crate) struct Launch<'a> {
    op: &'static str,
    #[cfg_attr(not(feature = "metal"), allow(dead_code, reason = "names are enough there"))]
    pub(super) library: &'static Library,
    pub(super) kernel: String,
    pub(super) constants: Vec<bool>,
    pub(super) params: Vec<u8>,
    pub(super) arguments: Vec<Argument<'a>>,
    weight_bytes: usize,
}

impl<'a> Launch<'a> {
    /// Of kernel `kernel` in `library`; `op` is what errors say.
    pub(crate) fn new<P: super::launch::Parameters>(
        op: &'static str,
        library: &'static Library,
        kernel: impl Into<String>,
        params: &P,
    ) -> Self {
        let len = std::mem::size_of::<P>();
        // SAFETY: by the trait's promise all bytes are initialised.
        let params = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(params).cast(), len) };
        Self {
            op,
            library,
            kernel: kernel.into(),
            constants: Vec::new(),
            params: params.to_vec(),
            arguments: Vec::new(),
            weight_bytes: 0,
        }
    }

    /// Values of the function constants 0, 1, ….
    pub(crate) fn constants(mut self, values: &[bool]) -> Self {
        self.constants = values.to_vec();
        self
    }

    /// The next buffer: an f32 tensor.
    pub(crate) fn read(mut self, tensor: &'a Tensor) -> Result<Self> {
        self.arguments.push(Argument::Read(Binding::tensor(self.op, tensor, DType::F32)?));
        Ok(self)
    }

    /// The next buffer: a u32 tensor.
    pub(crate) fn read_u32(mut self, tensor: &'a Tensor) -> Result<Self> {
        self.arguments.push(Argument::Read(Binding::tensor(self.op, tensor, DType::U32)?));
        Ok(self)
    }

    /// The next buffer, read.
    pub(crate) fn bind(mut self, binding: Binding<'a>) -> Self {
        self.arguments.push(Argument::Read(binding));
        self
    }

    /// The next buffer: weights, of which the launch reads `bytes` bytes.
    pub(crate) fn weights(mut self, binding: Binding<'a>, bytes: usize) -> Self {
        self.arguments.push(Argument::Read(binding));
        self.weight_bytes += bytes;
        self
    }

    /// The next buffer: a table of pages, of which `recent` ones may have been written lately.
    pub(crate) fn table(mut self, pages: &[Binding<'a>], recent: usize) -> Self {
        let addresses = pages.iter().map(Binding::address).collect();
        let recent = pages[pages.len().saturating_sub(recent)..].to_vec();
        self.arguments.push(Argument::Table { addresses, recent });
        self
    }

    /// The next buffer: what the op was asked for.
    pub(crate) fn write(mut self, output: &Output<'a>) -> Self {
        self.arguments.push(Argument::Write(output.binding.clone()));
        self
    }

    /// The next buffer: another tensor that the kernel writes.
    pub(crate) fn write_tensor(mut self, tensor: &'a Tensor, dtype: DType) -> Result<Self> {
        self.arguments.push(Argument::Write(Binding::tensor(self.op, tensor, dtype)?));
        Ok(self)
    }

    /// The next buffer: written, from where the binding says.
    pub(crate) fn write_at(mut self, binding: Binding<'a>) -> Self {
        self.arguments.push(Argument::Write(binding));
        self
    }

    /// Runs `groups` threadgroups of `threads` threads after all that was launched before. Without
    /// threadgroups it is no launch.
    ///
    /// # Errors
    /// The device's, or the emulator's when the kernel did something wrong.
    pub(crate) fn run(self, gpu: &Gpu, groups: [usize; 3], threads: usize) -> Result<()> {
        let mut extent = [0u32; 3];
        for (extent, groups) in extent.iter_mut().zip(groups) {
            match u32::try_from(groups) {
                Ok(groups) => *extent = groups,
                Err(_) => bail!("{}: a grid of {groups} threadgroups", self.kernel),
            }
        }
        if extent.contains(&0) {
            return Ok(());
        }
        log::note(&self.kernel, extent, threads, self.weight_bytes);
        match gpu {
            #[cfg(feature = "metal")]
            Gpu::Device(device) => super::real::run(device, &self, extent, threads),
            #[cfg(feature = "metal-emulator")]
            Gpu::Emulated => super::emulated::run(&self, extent, threads),
        }
    }
}
