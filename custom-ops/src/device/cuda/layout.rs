//! How weights lie in GPU memory; include/cuda/layout.h has the words.

use candle_core::{bail, Result};

use super::Address;
use crate::blocks::Format;

/// Every matrix of every plane begins at a multiple of this.
const ALIGN: usize = 256;

/// A weight as a kernel's parameter; mirrors `Weight` of layout.h.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weight {
    pub(crate) plane: [Address; 3],
    pub(crate) stride: [u64; 3],
    pub(crate) format: u32,
    pub(crate) stack: u32,
    pub(crate) rows: u32,
    pub(crate) cols: u32,
}

/// The planes of a stack of matrices in one allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planes {
    pub(crate) format: Format,
    pub(crate) stack: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Where each plane begins; past the end if there is none.
    pub(crate) offset: [usize; 3],
    /// Bytes from one matrix to the next; 0 if there is no such plane.
    pub(crate) stride: [usize; 3],
    /// Bytes in all.
    pub(crate) bytes: usize,
}

impl Planes {
    /// # Errors
    /// If a row is no whole number of blocks, a dimension does not fit in 32 bits, or all of it not in
    /// memory.
    pub(crate) fn new(format: Format, stack: usize, rows: usize, cols: usize) -> Result<Self> {
        format.row_bytes(cols)?;
        if [stack, rows, cols].iter().any(|&n| u32::try_from(n).is_err()) {
            bail!("a {format} weight [{stack}, {rows}, {cols}] is larger than kernels count");
        }
        let blocks = cols / format.block_len();
        let tiles = rows.div_ceil(16);
        // Rows and bytes of a row; products of them are checked below.
        let planes: [(usize, usize); 3] = match format {
            Format::F32 => [(rows, cols * 4), (0, 0), (0, 0)],
            Format::F16 | Format::BF16 => [(rows, cols * 2), (0, 0), (0, 0)],
            Format::Q8_0 => [(tiles, blocks * 512), (tiles, blocks.div_ceil(4) * 128), (0, 0)],
            Format::Q2K => [(rows, blocks * 64), (rows, blocks * 16), (rows, blocks * 4)],
            Format::Q4K => [(rows, blocks * 128), (rows, blocks * 16), (0, 0)],
            Format::Iq2Xxs => [(rows, blocks * 64), (rows, d_row(blocks) * 2), (0, 0)],
        };
        let mut laid_out =
            Self { format, stack, rows, cols, offset: [0; 3], stride: [0; 3], bytes: 0 };
        for (i, (rows, row_bytes)) in planes.into_iter().enumerate() {
            let stride =
                rows.checked_mul(row_bytes).and_then(|n| n.checked_next_multiple_of(ALIGN));
            let end = stride
                .and_then(|stride| stride.checked_mul(stack))
                .and_then(|plane| plane.checked_add(laid_out.bytes));
            let (Some(stride), Some(end)) = (stride, end) else {
                bail!("a {format} weight [{stack}, {rows}, {cols}] is larger than memory");
            };
            laid_out.offset[i] = laid_out.bytes;
            laid_out.stride[i] = stride;
            laid_out.bytes = end;
        }
        Ok(laid_out)
    }

    /// The weight whose allocation begins at `base`.
    pub(crate) fn at(&self, base: Address) -> Weight {
        let plane = |i: usize| match self.stride[i] {
            0 => Address::NULL,
            _ => base.offset(self.offset[i]),
        };
        Weight {
            plane: [plane(0), plane(1), plane(2)],
            stride: self.stride.map(|n| n as u64),
            format: number(self.format),
            stack: self.stack as u32,
            rows: self.rows as u32,
            cols: self.cols as u32,
        }
    }
}

/// `WeightFormat` of layout.h.
pub(crate) fn number(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::BF16 => 2,
        Format::Q8_0 => 3,
        Format::Q2K => 4,
        Format::Q4K => 5,
        Format::Iq2Xxs => 6,
    }
}

/// `q8_0_in_tile` of layout.h.
#[cfg(any(feature = "cuda-emulator", test))]
pub(crate) fn q8_0_in_tile(row: usize, col: usize) -> usize {
    (row % 8 * 4 + col % 16 / 4) * 16 + col / 16 * 8 + row / 8 * 4 + col % 4
}

/// `q8_0_in_scales` of layout.h.
#[cfg(any(feature = "cuda-emulator", test))]
pub(crate) fn q8_0_in_scales(row: usize, block: usize) -> usize {
    row % 8 * 16 + block * 4 + row / 8 * 2
}

/// `iq2_xxs_d_row` of layout.h, by blocks.
pub(crate) fn d_row(blocks: usize) -> usize {
    blocks.next_multiple_of(2)
}

/// `iq2_xxs_d_at` of layout.h.
#[cfg(any(feature = "cuda-emulator", test))]
pub(crate) fn iq2_xxs_d_at(blocks: usize, block: usize) -> usize {
    let run = block / 16 * 16;
    if run + 16 <= blocks {
        run + 2 * (block % 8) + block % 16 / 8
    } else {
        block
    }
}

/// `q2_k_scale_at` of layout.h.
#[cfg(any(feature = "cuda-emulator", test))]
pub(crate) fn q2_k_scale_at(sixteen: usize) -> usize {
    4 * (sixteen / 8 * 2 + sixteen % 2) + sixteen / 2 % 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_struct_is_the_headers() {
        use std::mem::{offset_of, size_of};
        assert_eq!(size_of::<Weight>(), 64);
        assert_eq!(offset_of!(Weight, stride), 24);
        assert_eq!(offset_of!(Weight, format), 48);
        assert_eq!(offset_of!(Weight, cols), 60);
    }

    /// A file's bytes are all there, and little else.
    #[test]
    fn planes_have_the_size_of_the_file_in_the_familys_shapes() {
        for (format, rows, cols) in [
            (Format::Q8_0, 4096, 8192),
            (Format::Iq2Xxs, 2048, 4096),
            (Format::Q2K, 4096, 2048),
            (Format::Q4K, 2048, 4096),
            (Format::F16, 256, 4096),
        ] {
            let planes = Planes::new(format, 3, rows, cols).unwrap();
            assert_eq!(planes.bytes, 3 * rows * format.row_bytes(cols).unwrap(), "{format}");
        }
    }

    #[test]
    fn every_plane_of_every_matrix_is_aligned_and_apart() {
        for format in Format::ALL {
            let planes = Planes::new(format, 5, 19, 3 * 256).unwrap();
            for i in 0..3 {
                assert!(planes.offset[i].is_multiple_of(ALIGN));
                assert!(planes.stride[i].is_multiple_of(ALIGN));
                let end = planes.offset[i] + 5 * planes.stride[i];
                assert_eq!(end, planes.offset.get(i + 1).copied().unwrap_or(planes.bytes));
            }
        }
    }

    #[test]
    fn indices_are_permutations() {
        let distinct = |mut indices: Vec<usize>, step: usize| {
            indices.sort_unstable();
            indices.iter().enumerate().all(|(i, &at)| at == i * step)
        };
        let pairs = |rows: usize, cols: usize| {
            (0..rows).flat_map(move |row| (0..cols).map(move |col| (row, col)))
        };
        assert!(distinct(pairs(16, 32).map(|(r, c)| q8_0_in_tile(r, c)).collect(), 1));
        assert!(distinct(pairs(16, 4).map(|(r, b)| q8_0_in_scales(r, b)).collect(), 2));
        assert!(distinct((0..16).map(q2_k_scale_at).collect(), 1));
        for blocks in [1, 8, 15, 16, 17, 32, 40] {
            assert!(distinct((0..blocks).map(|b| iq2_xxs_d_at(blocks, b)).collect(), 1));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Planes::new(Format::Q8_0, 1, 16, 33).is_err());
        assert!(Planes::new(Format::F32, usize::MAX, 1, 1).is_err());
        assert!(Planes::new(Format::F32, u32::MAX as usize, u32::MAX as usize, 64).is_err());
    }
}
