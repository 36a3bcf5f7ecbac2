//! The launches: by the number of tokens, mat-vec or tiles of SIMD-group matrices.

use candle_core::Result;

use super::MatMul;
use crate::device::metal::{library, parameters, Launch, Output};

/// Rows that a threadgroup of the mat-vec kernels computes.
const VEC_ROWS: usize = 8;
const VEC_THREADS: usize = 128;
/// Rows and tokens of a tile.
pub(crate) const TILE: [usize; 2] = [64, 32];
pub(crate) const TILE_THREADS: usize = 128;
/// Tokens up to which weights are read by mat-vec kernels, eight tokens at a time.
const MOST_VEC_TOKENS: usize = 8;

parameters! {
    struct Params {
        tokens: u32,
        rows: u32,
        cols: u32,
        row_bytes: u32,
        x_stride: u32,
        out_stride: u32,
    }
}

impl MatMul<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let (x, w, groups) = (self.x, self.w, self.groups);
        w.check_metal_columns("matmul")?;
        let tokens = x.dim(0)?;
        let rank = w.rows() / groups;
        let params = Params {
            tokens: tokens as u32,
            rows: rank as u32,
            cols: w.cols() as u32,
            row_bytes: w.row_bytes() as u32,
            x_stride: (groups * w.cols()) as u32,
            out_stride: w.rows() as u32,
        };
        let format = w.format().kernel_name();
        let (kernel, grid, threads) = match tokens {
            0 => return Ok(()),
            1 => (format!("matvec_{format}"), [rank.div_ceil(VEC_ROWS), 1], VEC_THREADS),
            2..=MOST_VEC_TOKENS => {
                let of = tokens.next_power_of_two();
                (format!("matvec_{of}_{format}"), [rank.div_ceil(VEC_ROWS), 1], VEC_THREADS)
            }
            _ => {
                let grid = [rank.div_ceil(TILE[0]), tokens.div_ceil(TILE[1])];
                (format!("matmul_tiles_{format}"), grid, TILE_THREADS)
            }
        };
        // Each block of tokens reads all rows.
        let bytes = grid[1] * w.rows() * w.row_bytes();
        Launch::new("matmul", library!(), kernel, &params)
            .weights(w.metal("matmul")?, bytes)
            .read(x)?
            .write(out)
            .run(&out.gpu, [grid[0], grid[1], groups], threads)
    }
}
