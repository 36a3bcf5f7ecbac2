//! The launch.

use candle_core::Result;

use super::Likeliest;
use crate::device::metal::{library, parameters, Launch, Output};

/// A SIMD-group for each value of the kernel's arrays.
const THREADS: usize = 1024;

parameters! {
    struct Params {
        count: u32,
        skip: u32,
    }
}

impl Likeliest<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let (rows, count) = self.scores.dims2()?;
        let params = Params { count: count as u32, skip: self.skip.unwrap_or(u32::MAX) };
        Launch::new("likeliest", library!(), "likeliest", &params)
            .read(self.scores)?
            .write(out)
            .run(&out.gpu, [rows, 1, 1], THREADS)
    }
}
