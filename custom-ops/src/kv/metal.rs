//! The launch.

use candle_core::{bail, Result};

use super::Copy;
use crate::device::metal::{library, parameters, Launch, Output};

const THREADS: usize = 256;

parameters! {
    struct Params {
        count: u32,
    }
}

impl Copy<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let count = self.source.elem_count();
        if count != out.elements {
            bail!("kv_copy: {count} values into {}", out.elements);
        }
        Launch::new("kv_copy", library!(), "kv_copy", &Params { count: count as u32 })
            .read(self.source)?
            .write(out)
            .run(&out.gpu, [count.div_ceil(THREADS), 1, 1], THREADS)
    }
}
