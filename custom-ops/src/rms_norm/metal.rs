//! The launch.

use candle_core::{bail, Result};

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
        let Some(x) = self.x else { bail!("rms_norm: no Metal kernel works in place") };
        Launch::new("rms_norm", library!(), "rms_norm", &params)
            .constants(&[self.weight.is_some()])
            .read(x)?
            .read(self.weight.unwrap_or(x))?
            .write(out)
            .run(&out.gpu, [self.rows, 1, 1], THREADS)
    }
}
