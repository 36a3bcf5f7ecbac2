//! The launches: by the number of tokens, mat-vec or tiles of SIMD-group matrices.

use candle_core::{bail, DType, Result};

use super::{MatMul, MatMuls};
use crate::device::metal::{library, parameters, Launch, Library, Output};
use crate::{Format, Matrix};

/// Rows that a threadgroup of the mat-vec kernels computes.
const VEC_ROWS: usize = 8;
const VEC_THREADS: usize = 128;
/// Rows and tokens of a tile.
pub(crate) const TILE: [usize; 2] = [64, 32];
pub(crate) const TILE_THREADS: usize = 128;
/// Tokens up to which weights are read by mat-vec kernels, eight tokens at a time.
const MOST_VEC_TOKENS: usize = 8;
/// Weights of one launch at most.
const PRODUCTS: usize = 8;

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

parameters! {
    struct Together {
        tokens: u32,
        cols: u32,
        blocks: [u32; PRODUCTS],
        rows: [u32; PRODUCTS],
        row_bytes: [u32; PRODUCTS],
        formats: [u32; PRODUCTS],
    }
}

fn kernels() -> &'static Library {
    library!()
}

/// What kernels that choose among formats call one; none where they have no branch.
pub(crate) fn dense_code(of: Format) -> Option<u32> {
    match of {
        Format::F32 => Some(0),
        Format::F16 => Some(1),
        Format::BF16 => Some(2),
        Format::Q8_0 => Some(3),
        _ => None,
    }
}

/// Whether one launch does all of these.
pub(crate) fn one_launch(weights: &[&Matrix], tokens: usize) -> bool {
    (2..=PRODUCTS).contains(&weights.len())
        && (1..=MOST_VEC_TOKENS).contains(&tokens)
        && weights.iter().all(|w| dense_code(w.format()).is_some() && w.rows() > 0)
}

impl MatMuls<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let (tokens, cols) = self.x.dims2()?;
        let mut params = Together {
            tokens: tokens as u32,
            cols: cols as u32,
            // Blocks that there are not belong to nobody.
            blocks: [u32::MAX; PRODUCTS],
            rows: [0; PRODUCTS],
            row_bytes: [0; PRODUCTS],
            formats: [0; PRODUCTS],
        };
        let mut blocks = 0;
        for (at, w) in self.weights.iter().enumerate() {
            w.check_metal_columns("matmul")?;
            let Some(format) = dense_code(w.format()) else {
                bail!("matmuls: no Metal kernel for {} among others", w.format());
            };
            blocks += w.rows().div_ceil(VEC_ROWS);
            params.blocks[at] = blocks as u32;
            params.rows[at] = w.rows() as u32;
            params.row_bytes[at] = w.row_bytes() as u32;
            params.formats[at] = format;
        }
        let kernel = format!("matvecs_{}", tokens.next_power_of_two());
        let mut launch = Launch::new("matmuls", kernels(), kernel, &params).read(self.x)?;
        // Every place must be bound; those past the last weight are not looked at.
        for at in 0..PRODUCTS {
            launch = match self.weights.get(at) {
                Some(w) => launch.weights(w.metal("matmuls")?, w.byte_len()),
                None => launch.bind(self.weights[0].metal("matmuls")?),
            };
        }
        launch = launch.write(out);
        for at in 1..PRODUCTS {
            launch = match self.outs.get(at - 1) {
                Some(out) => launch.write_tensor(out, DType::F32)?,
                None => launch.write(out),
            };
        }
        launch.run(&out.gpu, [blocks, 1, 1], VEC_THREADS)
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
        Launch::new("matmul", kernels(), kernel, &params)
            .weights(w.metal("matmul")?, bytes)
            .read(x)?
            .write(out)
            .run(&out.gpu, [grid[0], grid[1], groups], threads)
    }
}
