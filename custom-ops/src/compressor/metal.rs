//! The launches, one for each sequence whose windows end.

use candle_core::Result;

use super::Pool;
use crate::device::metal::{library, parameters, Launch, Output};

parameters! {
    struct Params {
        ratio: u32,
        overlap: u32,
        width: u32,
        dim: u32,
        row: u32,
        start: u32,
        slots: u32,
        first_window: u32,
        first_out: u32,
    }
}

impl Pool<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let overlap = self.pooling.overlap;
        let dim = if overlap { self.width / 2 } else { self.width };
        let mut first_out = 0;
        for (span, state) in self.batch.spans().iter().zip(self.states) {
            let windows = span.windows(self.pooling.ratio);
            let params = Params {
                ratio: self.pooling.ratio as u32,
                overlap: u32::from(overlap),
                width: self.width as u32,
                dim: dim as u32,
                row: span.row as u32,
                start: span.start as u32,
                slots: state.values.slots() as u32,
                first_window: windows.start as u32,
                first_out,
            };
            Launch::new("pool", library!(), "pool", &params)
                .read(self.values)?
                .read(self.gates)?
                .read(self.ape)?
                .read(state.values.data())?
                .read(state.gates.data())?
                .write(out)
                .run(&out.gpu, [dim.div_ceil(32), windows.len(), 1], 32)?;
            first_out += windows.len() as u32;
        }
        Ok(())
    }
}
