//! On NVIDIA GPUs; kernel.cu.

use candle_core::{bail, DType, Result};

use super::Embed;
use crate::blocks::Format;
use crate::device::cuda::{Address, Kernel, Launch, Target, Weight};

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    ids: Address,
    table: Weight,
    out: Address,
    streams: u32,
}

/// The ids were checked on the host: the model refuses tokens that the vocabulary lacks.
pub(super) fn embed(op: &Embed, out: Target) -> Result<()> {
    let format = op.table.format();
    if !matches!(format, Format::F32 | Format::F16 | Format::BF16 | Format::Q8_0) {
        bail!("embed: no CUDA kernel for a table in {format} (have F32, F16, BF16, Q8_0)");
    }
    let out = out.of("embed", DType::F32)?;
    let gpu = out.gpu();
    let ids = gpu.u32("embed", op.ids)?;
    let params = Params {
        ids: ids.address(),
        table: op.table.cuda("embed", &gpu)?,
        out: out.address(),
        streams: op.streams as u32,
    };
    let launch = Launch::new(op.ids.elem_count(), 256).grid_y(op.table.cols().div_ceil(256));
    // SAFETY: `EmbedParams`; ids, table and output have the lengths of their shapes.
    unsafe { gpu.launch(Kernel("embed"), launch, &params) }
}
