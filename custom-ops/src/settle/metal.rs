//! One token of each sequence: a launch for each; of one alone with the products of its latent.

use candle_core::{bail, DType, Result};

use super::{AtOnce, Compression, Finish, Settle};
use crate::device::metal::{library, parameters, Launch, Output};
use crate::kv::RowFormat;
use crate::matmul::metal_dense_code as dense_code;
use crate::rounding::{block_of, Rounding, FP4_BLOCK, FP8_BLOCK};
use crate::{Matrix, Ragged};

const THREADS: usize = 256;
/// Values of a row that fit into threadgroup memory.
const MOST_DIM: usize = 1024;
/// As in kernel.metal.
const FREQUENCIES: usize = 32;
const COMPRESSIONS: usize = 2;
const PRODUCTS: usize = 2;
/// Rows of a threadgroup.
const PRODUCT_ROWS: usize = 16;

parameters! {
    struct FinishParam {
        dim: u32,
        rounding: u32,
        channels: u32,
        block: u32,
        eps: f32,
        factor: f32,
        count: u32,
        frequencies: [f32; FREQUENCIES],
    }
}

parameters! {
    struct CompressionParam {
        ratio: u32,
        overlap: u32,
        width: u32,
        slots: u32,
        kept: u32,
        nope: u32,
        block: u32,
        scales_at: u32,
        row_bytes: u32,
        finish: FinishParam,
    }
}

parameters! {
    struct Params {
        blocks: [u32; PRODUCTS],
        rows: [u32; PRODUCTS],
        row_bytes: [u32; PRODUCTS],
        formats: [u32; PRODUCTS],
        compressions: u32,
        row: u32,
        position: u32,
        latent_dim: u32,
        latent_eps: f32,
        finish: FinishParam,
        of: [CompressionParam; COMPRESSIONS],
    }
}

/// Whether the launches do all of it.
pub(super) fn settles_at_once(settle: &Settle, batch: &Ragged) -> bool {
    let single = batch.spans().iter().all(|span| span.len == 1);
    let finishes = settle.compressions.iter().map(|of| of.finish).chain([settle.finish]);
    let fits = |finish: Finish| {
        let dim = finish.norm.elem_count();
        let rounded = match finish.rounding {
            Rounding::Fp8 { nope_dim } => nope_dim <= dim,
            Rounding::HadamardFp4 => dim.is_power_of_two(),
            Rounding::Off => true,
        };
        dim <= MOST_DIM
            && rounded
            && finish.rope.frequencies().len() <= FREQUENCIES
            && finish.rope.channels() <= dim
    };
    let kept = |of: &Compression| {
        of.lists.iter().all(|list| match list.format() {
            // A width that is odd would share a byte between two rows' ends.
            RowFormat::Fp4 { width } => width % 2 == 0,
            _ => true,
        })
    };
    single
        && !batch.spans().is_empty()
        && settle.compressions.len() <= COMPRESSIONS
        && settle.compressions.iter().all(kept)
        && finishes.into_iter().all(fits)
}

/// Whether the same launch multiplies by the normed latent.
pub(super) fn projects_at_once(settle: &Settle, weights: &[&Matrix], batch: &Ragged) -> bool {
    let fits = |w: &&Matrix| {
        let cols = settle.latent.dims().last().copied();
        dense_code(w.format()).is_some() && w.stack() == 1 && w.rows() > 0 && Some(w.cols()) == cols
    };
    batch.tokens() == 1
        && (1..=PRODUCTS).contains(&weights.len())
        && weights.iter().all(fits)
        && settles_at_once(settle, batch)
}

fn finish_param(finish: Finish) -> FinishParam {
    let dim = finish.norm.elem_count();
    let (rounding, channels, block) = match finish.rounding {
        Rounding::Off => (0, 0, 1),
        Rounding::Fp8 { nope_dim } => (1, nope_dim, block_of(nope_dim, FP8_BLOCK)),
        Rounding::HadamardFp4 => (2, dim, FP4_BLOCK),
    };
    let mut frequencies = [0.0; FREQUENCIES];
    let count = finish.rope.frequencies().len();
    frequencies[..count].copy_from_slice(finish.rope.frequencies());
    FinishParam {
        dim: dim as u32,
        rounding,
        channels: channels as u32,
        block: block as u32,
        eps: finish.eps as f32,
        factor: (dim as f32).powf(-0.5),
        count: count as u32,
        frequencies,
    }
}

fn compression_param(of: &Compression, sequence: usize) -> Result<CompressionParam> {
    let format = of.lists[sequence].format();
    let (kept, nope) = match format {
        RowFormat::F32 { .. } => (0, 0),
        RowFormat::Fp8 { nope, .. } => (1, nope),
        RowFormat::Fp4 { .. } => (2, 0),
    };
    let state = of.states[sequence];
    if state.values.slots() != state.gates.slots() {
        bail!("settle: rings of {} and {} slots", state.values.slots(), state.gates.slots());
    }
    Ok(CompressionParam {
        ratio: of.pooling.ratio as u32,
        overlap: u32::from(of.pooling.overlap),
        width: of.values.dim(1)? as u32,
        slots: state.values.slots() as u32,
        kept,
        nope: nope as u32,
        block: format.block() as u32,
        scales_at: format.scales_at() as u32,
        row_bytes: format.row_bytes() as u32,
        finish: finish_param(of.finish),
    })
}

impl AtOnce<'_, '_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let settle = self.settle;
        let finish = finish_param(settle.finish);
        let none = CompressionParam {
            ratio: 1,
            overlap: 0,
            width: 0,
            slots: 1,
            kept: 0,
            nope: 0,
            block: 1,
            scales_at: 0,
            row_bytes: 0,
            finish,
        };
        for (sequence, span) in self.batch.spans().iter().enumerate() {
            let mut params = Params {
                blocks: [0; PRODUCTS],
                rows: [0; PRODUCTS],
                row_bytes: [0; PRODUCTS],
                formats: [0; PRODUCTS],
                compressions: settle.compressions.len() as u32,
                row: span.row as u32,
                position: span.start as u32,
                latent_dim: settle.latent.dim(1)? as u32,
                latent_eps: settle.latent_norm.1 as f32,
                finish,
                of: [none; COMPRESSIONS],
            };
            for (param, of) in params.of.iter_mut().zip(&settle.compressions) {
                *param = compression_param(of, sequence)?;
            }
            let mut blocks = 0;
            for (at, w) in self.weights.iter().enumerate() {
                w.check_metal_columns("settle")?;
                let Some(format) = dense_code(w.format()) else {
                    bail!("settle: no Metal kernel multiplies by {}", w.format());
                };
                blocks += w.rows().div_ceil(PRODUCT_ROWS);
                params.blocks[at] = blocks as u32;
                params.rows[at] = w.rows() as u32;
                params.row_bytes[at] = w.row_bytes() as u32;
                params.formats[at] = format;
            }
            let mut launch = Launch::new("settle", library!(), "settle", &params)
                .constants(&[blocks > 0])
                .read(settle.latent)?
                .read(settle.latent_norm.0)?
                .write_tensor(&self.outs[0], DType::F32)?
                .read(settle.kv)?
                .read(settle.finish.norm)?;
            for at in 0..COMPRESSIONS {
                // Every place must be bound; without a compression it is not looked at.
                let Some(of) = settle.compressions.get(at) else {
                    for _ in 0..4 {
                        launch = launch.read(settle.kv)?;
                    }
                    launch = launch.write(out).write(out).write(out);
                    continue;
                };
                let state = of.states[sequence];
                launch = launch
                    .read(of.values)?
                    .read(of.gates)?
                    .read(of.bias)?
                    .read(of.finish.norm)?
                    .write_tensor(state.values.data(), DType::F32)?
                    .write_tensor(state.gates.data(), DType::F32)?;
                let list = &of.lists[sequence];
                let (page, row) = (list.len() / list.page_rows(), list.len() % list.page_rows());
                launch = match list.metal("settle")?.into_iter().nth(page) {
                    Some(page) => launch.write_at(page.skip(row * list.format().row_bytes())),
                    // No window ends: there is nothing to write.
                    None => launch.write(out),
                };
            }
            for at in 0..PRODUCTS {
                launch = match self.weights.get(at) {
                    Some(w) => launch.weights(w.metal("settle")?, w.byte_len()),
                    None => launch.read(settle.kv)?,
                };
            }
            for at in 0..PRODUCTS {
                launch = match self.outs.get(at) {
                    Some(out) => launch.write_tensor(out, DType::F32)?,
                    None => launch.write(out),
                };
            }
            let groups = 1 + settle.compressions.len() + blocks.max(1);
            launch.write(out).run(&out.gpu, [groups, 1, 1], THREADS)?;
        }
        Ok(())
    }
}
