//! On NVIDIA GPUs; kernel.cu.

use candle_core::{DType, Result};

use super::{Listing, ROWS};
use crate::device::cuda::{Address, Kernel, Launch, Target};

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    scores: Address,
    out: Address,
    count: u32,
    unused: u32,
    reach: [f32; ROWS],
    inverse: [f32; ROWS],
}

pub(super) fn list(op: &Listing, out: Target) -> Result<()> {
    let name = "shortlist";
    let (rows, count) = op.scores.dims2()?;
    let out = out.of(name, DType::U32)?;
    let gpu = out.gpu();
    let scores = gpu.f32(name, op.scores)?;
    let (mut reach, mut inverse) = ([0.0; ROWS], [0.0; ROWS]);
    for (row, wanted) in op.wanted.iter().enumerate() {
        (reach[row], inverse[row]) = (wanted.reach, 1.0 / wanted.temperature);
    }
    let (scores, out) = (scores.address(), out.address());
    let params = Params { scores, out, count: count as u32, unused: 0, reach, inverse };
    // SAFETY: `ShortlistParams`; the output has `2 + 2 ROOM` words for each row, of which there are at
    // most `ROWS`.
    unsafe { gpu.launch(Kernel("shortlist"), Launch::new(rows, 1024).shared(34 * 4), &params) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_parameter_struct_is_the_kernels() {
        assert_eq!((size_of::<super::Params>(), super::super::ROOM), (24 + 2 * 32 * 4, 254));
    }
}
