//! The repack in Rust.

use candle_core::{bail, Result};

use crate::blocks::Format;
use crate::device::cuda::layout::{iq2_xxs_d_at, q2_k_scale_at, q8_0_in_scales, q8_0_in_tile};
use crate::device::cuda::Planes;

/// Repacks all matrices in `blocks` into `out`, which is as long as `planes` says.
///
/// # Errors
/// If a length is wrong.
pub(crate) fn repack(planes: &Planes, blocks: &[u8], out: &mut [u8]) -> Result<()> {
    let row_bytes = planes.format.row_bytes(planes.cols)?;
    let matrix_bytes = planes.rows * row_bytes;
    if blocks.len() != planes.stack * matrix_bytes || out.len() != planes.bytes {
        bail!("repack: {} bytes of blocks into {} of planes", blocks.len(), out.len());
    }
    out.fill(0);
    if matrix_bytes == 0 {
        return Ok(());
    }
    for (matrix, blocks) in blocks.chunks_exact(matrix_bytes).enumerate() {
        let mut plane = |i: usize, at: usize, bytes: &[u8]| {
            let at = planes.offset[i] + matrix * planes.stride[i] + at;
            out[at..at + bytes.len()].copy_from_slice(bytes);
        };
        for (row, blocks) in blocks.chunks_exact(row_bytes).enumerate() {
            repack_row(planes, row, blocks, &mut plane);
        }
    }
    Ok(())
}

/// Hands each piece of a row to `put(plane, offset in the matrix, bytes)`.
fn repack_row(
    planes: &Planes,
    row: usize,
    blocks: &[u8],
    put: &mut dyn FnMut(usize, usize, &[u8]),
) {
    let format = planes.format;
    let count = planes.cols / format.block_len();
    match format {
        Format::F32 | Format::F16 | Format::BF16 => put(0, row * blocks.len(), blocks),
        Format::Q8_0 => {
            let (tile, in_tile) = (row / 16, row % 16);
            for (block, bytes) in blocks.chunks_exact(34).enumerate() {
                let quants = (tile * count + block) * 512;
                for col in (0..32).step_by(4) {
                    put(0, quants + q8_0_in_tile(in_tile, col), &bytes[2 + col..6 + col]);
                }
                let scales = (tile * count.div_ceil(4) + block / 4) * 128;
                put(1, scales + q8_0_in_scales(in_tile, block % 4), &bytes[..2]);
            }
        }
        Format::Q2K => {
            for (block, bytes) in blocks.chunks_exact(84).enumerate() {
                let at = row * count + block;
                put(0, at * 64, &bytes[16..80]);
                for sixteen in 0..16 {
                    put(1, at * 16 + q2_k_scale_at(sixteen), &bytes[sixteen..=sixteen]);
                }
                put(2, at * 4, &bytes[80..84]);
            }
        }
        Format::Q4K => {
            for (block, bytes) in blocks.chunks_exact(144).enumerate() {
                let at = row * count + block;
                put(0, at * 128, &bytes[16..144]);
                put(1, at * 16, &bytes[..16]);
            }
        }
        Format::Iq2Xxs => {
            let ds = row * count.next_multiple_of(2);
            for (block, bytes) in blocks.chunks_exact(66).enumerate() {
                put(0, (row * count + block) * 64, &bytes[2..66]);
                put(1, (ds + iq2_xxs_d_at(count, block)) * 2, &bytes[..2]);
            }
        }
    }
}
