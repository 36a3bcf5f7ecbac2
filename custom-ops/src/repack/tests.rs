//! The kernels against the repack in Rust; that one against the decoders' view of the blocks.

use candle_core::Result;

use super::*;
use crate::blocks::Format;
use crate::device::cuda::layout::q8_0_in_tile;
use crate::device::cuda::Planes;

/// Every byte of a chunk names its place, so that a wrong move shows.
fn numbered(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn every_byte_of_the_file_is_in_some_plane_once() -> Result<()> {
    for format in Format::ALL {
        let (stack, rows, cols) = (2, 64, 1024);
        let planes = Planes::new(format, stack, rows, cols)?;
        let blocks = numbered(stack * rows * format.row_bytes(cols)?);
        let mut out = vec![0xee; planes.bytes];
        repack(&planes, &blocks, &mut out)?;
        let count = |bytes: &[u8]| {
            bytes.iter().fold([0usize; 256], |mut n, &b| {
                n[usize::from(b)] += 1;
                n
            })
        };
        assert_eq!(out.len(), blocks.len(), "{format}: no padding in this shape");
        assert_eq!(count(&out), count(&blocks), "{format}");
    }
    Ok(())
}

#[test]
fn the_quant_of_a_row_and_column_is_where_the_layout_says() -> Result<()> {
    let (rows, cols) = (19, 96);
    let planes = Planes::new(Format::Q8_0, 1, rows, cols)?;
    let mut blocks = vec![0u8; rows * 3 * 34];
    for row in 0..rows {
        for col in 0..cols {
            blocks[(row * 3 + col / 32) * 34 + 2 + col % 32] = (row * 31 + col) as u8;
        }
    }
    let mut out = vec![0xee; planes.bytes];
    repack(&planes, &blocks, &mut out)?;
    for row in 0..rows.next_multiple_of(16) {
        for col in 0..cols {
            let at = (row / 16 * 3 + col / 32) * 512 + q8_0_in_tile(row % 16, col % 32);
            let want = if row < rows { (row * 31 + col) as u8 } else { 0 };
            assert_eq!(out[at], want, "row {row}, column {col}");
        }
    }
    Ok(())
}

#[cfg(feature = "cuda-emulator")]
#[test]
fn the_kernels_agree_with_the_repack_in_rust_whatever_the_chunks() -> Result<()> {
    use crate::device::cuda::{emulate, Address, Gpu};
    for format in [Format::Q8_0, Format::Q2K, Format::Q4K, Format::Iq2Xxs] {
        // Ragged rows, and rows of one block, of a full run of them, and of more.
        for (stack, rows, cols) in [(1, 1, 256), (3, 35, 768), (1, 16, 4096), (2, 17, 4608)] {
            let planes = Planes::new(format, stack, rows, cols)?;
            let blocks = numbered(stack * rows * format.row_bytes(cols)?);
            let mut want = vec![0; planes.bytes];
            repack(&planes, &blocks, &mut want)?;
            for chunk in [16, 48] {
                // Words, so that the kernels' stores are aligned; zeroed as the loader's memory is.
                let mut got = vec![0u64; planes.bytes / 8];
                let weight = planes.at(Address(got.as_mut_ptr() as u64));
                emulate(chunk as u64, || {
                    super::cuda::repack_all(&Gpu::Emulated, format, weight, chunk, &blocks)
                })?;
                let got: Vec<u8> = got.iter().flat_map(|word| word.to_le_bytes()).collect();
                assert!(got == want, "{format} [{stack}, {rows}, {cols}] in chunks of {chunk}");
            }
        }
    }
    Ok(())
}
