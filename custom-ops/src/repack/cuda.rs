//! Repacking a chunk of rows on the GPU.

use super::ROW_STEP;
use crate::blocks::Format;
use crate::device::cuda::{Address, Kernel, Launch, Weight};

/// Mirrors `RepackParams` of kernel.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Params {
    blocks: Address,
    weight: Weight,
    matrix: u32,
    first_row: u32,
    rows: u32,
}

/// What to launch for a chunk of `rows` rows of a matrix from `first_row` on, a multiple of
/// [`ROW_STEP`], whose blocks are at `blocks`; `None` for formats that lie as in the file.
pub(crate) fn repack_rows(
    format: Format,
    weight: Weight,
    matrix: usize,
    first_row: usize,
    rows: usize,
    blocks: Address,
) -> Option<(Kernel, Launch, Params)> {
    debug_assert!(first_row.is_multiple_of(ROW_STEP));
    let cols = weight.cols as usize;
    // A thread writes 16 bytes of quants, or what belongs to them.
    let (kernel, threads) = match format {
        Format::F32 | Format::F16 | Format::BF16 => return None,
        Format::Q8_0 => (Kernel("repack_q8_0"), rows.div_ceil(16) * (cols / 32) * 32),
        Format::Q2K => (Kernel("repack_q2_k"), rows * (cols / 256) * 4),
        Format::Q4K => (Kernel("repack_q4_k"), rows * (cols / 256) * 8),
        Format::Iq2Xxs => (Kernel("repack_iq2_xxs"), rows * (cols / 256) * 4),
    };
    let launch = Launch::new(threads.div_ceil(256), 256);
    let narrow = |n: usize| n as u32;
    let (matrix, first_row, rows) = (narrow(matrix), narrow(first_row), narrow(rows));
    Some((kernel, launch, Params { blocks, weight, matrix, first_row, rows }))
}

/// The same for tests on any executor.
#[cfg(all(test, feature = "cuda-emulator"))]
pub(super) fn repack_all(
    gpu: &crate::device::cuda::Gpu,
    format: Format,
    weight: Weight,
    chunk: usize,
    blocks: &[u8],
) -> candle_core::Result<()> {
    let row_bytes = format.row_bytes(weight.cols as usize)?;
    let (stack, rows) = (weight.stack as usize, weight.rows as usize);
    for matrix in 0..stack {
        for first in (0..rows).step_by(chunk) {
            let count = chunk.min(rows - first);
            let at = Address(blocks.as_ptr() as u64).offset((matrix * rows + first) * row_bytes);
            let Some((kernel, launch, params)) =
                repack_rows(format, weight, matrix, first, count, at)
            else {
                continue;
            };
            // SAFETY: the planes and the blocks are as long as the shape says.
            unsafe { gpu.launch(kernel, launch, &params)? };
        }
    }
    Ok(())
}
