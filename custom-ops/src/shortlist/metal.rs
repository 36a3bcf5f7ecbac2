//! The launch.

use candle_core::Result;

use super::{Listing, ROWS};
use crate::device::metal::{library, parameters, Launch, Output};

const THREADS: usize = 1024;

parameters! {
    struct Params {
        count: u32,
        reach: [f32; ROWS],
        inverse: [f32; ROWS],
    }
}

impl Listing<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let (rows, count) = self.scores.dims2()?;
        let mut params = Params { count: count as u32, reach: [0.0; ROWS], inverse: [0.0; ROWS] };
        for (row, wanted) in self.wanted.iter().enumerate() {
            (params.reach[row], params.inverse[row]) = (wanted.reach, 1.0 / wanted.temperature);
        }
        Launch::new("shortlist", library!(), "shortlist", &params)
            .read(self.scores)?
            .write(out)
            .run(&out.gpu, [rows, 1, 1], THREADS)
    }
}
