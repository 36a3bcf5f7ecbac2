//! The launch.

use candle_core::{bail, Result};

use super::{Rope, Turn};
use crate::device::metal::{library, parameters, Launch, Output};

/// Pairs of channels that the parameter struct has room for.
const MOST_PAIRS: usize = 64;

parameters! {
    struct Params {
        heads: u32,
        dim: u32,
        pairs: u32,
        sign: f32,
        frequencies: [f32; MOST_PAIRS],
    }
}

impl Rope<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let table = self.table.frequencies();
        let mut frequencies = [0.0; MOST_PAIRS];
        match frequencies.get_mut(..table.len()) {
            Some(room) => room.copy_from_slice(table),
            None => bail!("rope: Metal kernels turn up to 128 channels, not {}", 2 * table.len()),
        }
        let heads = self.per_token / self.dim.max(1);
        let params = Params {
            heads: heads as u32,
            dim: self.dim as u32,
            pairs: table.len() as u32,
            sign: if self.turn == Turn::Inverse { -1.0 } else { 1.0 },
            frequencies,
        };
        let groups = [table.len().div_ceil(32), self.positions.elem_count(), heads.div_ceil(8)];
        Launch::new("rope", library!(), "rope", &params)
            .read_u32(self.positions)?
            .write(out)
            .run(&out.gpu, groups, 32)
    }
}
