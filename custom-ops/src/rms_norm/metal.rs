//! The launch.

use candle_core::Result;

use super::RmsNorm;
use crate::device::metal::{library, parameters, Launch, Output};

const THREADS: usize = 256;

parameters! {
    struct Params {
        n: u32,
        eps: f32,
    }
}

impl RmsNorm<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let params = Params { n: self.n as u32, eps: self.eps as f32 };
        let rows = self.x.elem_count() / self.n.max(1);
        Launch::new("rms_norm", library!(), "rms_norm", &params)
            .constants(&[self.weight.is_some()])
            .read(self.x)?
            .read(self.weight.unwrap_or(self.x))?
            .write(out)
            .run(&out.gpu, [rows, 1, 1], THREADS)
    }
}
