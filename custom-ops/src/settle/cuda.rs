//! On NVIDIA GPUs: one token of each sequence in one launch; kernel.cu.

use candle_core::{DType, Result};

use super::{AtOnce, Finish, Settle};
use crate::device::cuda::{Address, Batch, Kernel, Launch, Rings, Target};
use crate::kv::{Rows, RowsParam};
use crate::rounding::{block_of, Rounding, FP4_BLOCK, FP8_BLOCK};
use crate::Ragged;

/// As in kernel.cu.
const FREQUENCIES: usize = 32;
const COMPRESSIONS: usize = 2;
/// Values of a row that fit into shared memory without asking for more.
const MAX_DIM: usize = 8192;

#[repr(C)]
#[derive(Clone, Copy)]
struct FinishParam {
    norm: Address,
    eps: f64,
    dim: u32,
    rounding: u32,
    channels: u32,
    block: u32,
    factor: f32,
    count: u32,
    frequencies: [f32; FREQUENCIES],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CompressionParam {
    values: Address,
    gates: Address,
    bias: Address,
    ratio: u32,
    overlap: u32,
    width: u32,
    unused: u32,
    past_values: Rings,
    past_gates: Rings,
    rows: RowsParam,
    finish: FinishParam,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    latent: Address,
    latent_norm: Address,
    latent_out: Address,
    kv: Address,
    kv_out: Address,
    latent_eps: f64,
    batch: Batch,
    latent_dim: u32,
    compressions: u32,
    finish: FinishParam,
    of: [CompressionParam; COMPRESSIONS],
}

/// Whether one launch does it.
pub(super) fn settles_at_once(settle: &Settle, batch: &Ragged) -> bool {
    let single = batch.spans().iter().all(|span| span.len == 1);
    let finishes = settle.compressions.iter().map(|of| of.finish).chain([settle.finish]);
    let fits = |finish: Finish| {
        finish.rope.frequencies().len() <= FREQUENCIES && finish.norm.elem_count() <= MAX_DIM
    };
    single
        && !batch.spans().is_empty()
        && settle.compressions.len() <= COMPRESSIONS
        && finishes.into_iter().all(fits)
}

fn finish_param(finish: Finish, norm: Address) -> FinishParam {
    let dim = finish.norm.elem_count();
    let (rounding, channels, block) = match finish.rounding {
        Rounding::Off => (0, 0, 1),
        Rounding::Fp8 { nope_dim } => (1, nope_dim, block_of(nope_dim, FP8_BLOCK)),
        Rounding::HadamardFp4 => (2, dim, dim.min(FP4_BLOCK)),
    };
    let mut frequencies = [0.0; FREQUENCIES];
    let count = finish.rope.frequencies().len();
    frequencies[..count].copy_from_slice(finish.rope.frequencies());
    FinishParam {
        norm,
        eps: finish.eps,
        dim: dim as u32,
        rounding,
        channels: channels as u32,
        block: block as u32,
        factor: (dim as f32).powf(-0.5),
        count: count as u32,
        frequencies,
    }
}

pub(super) fn settle(op: &AtOnce, out: Target) -> Result<()> {
    let name = "settle";
    let settle = op.settle;
    let out = out.of(name, DType::F32)?;
    let gpu = out.gpu();
    let [latent, latent_norm, kv, norm] =
        [settle.latent, settle.latent_norm.0, settle.kv, settle.finish.norm]
            .map(|tensor| gpu.f32(name, tensor));
    let (latent, latent_norm, kv, norm) = (latent?, latent_norm?, kv?, norm?);
    let latent_out = op.latent.map(|latent| gpu.f32(name, latent)).transpose()?;
    let (batch, _table) = Batch::new(name, &gpu, op.batch)?;
    let finish = finish_param(settle.finish, norm.address());
    let (no_rows, _) = RowsParam::new(name, &gpu, &[])?;
    let none = CompressionParam {
        values: Address::NULL,
        gates: Address::NULL,
        bias: Address::NULL,
        ratio: 1,
        overlap: 0,
        width: 0,
        unused: 0,
        past_values: Rings::NONE,
        past_gates: Rings::NONE,
        rows: no_rows,
        finish,
    };
    let mut params = Params {
        latent: latent.address(),
        latent_norm: latent_norm.address(),
        latent_out: latent_out.as_ref().map_or(Address::NULL, |latent| latent.address()),
        kv: kv.address(),
        kv_out: out.address(),
        latent_eps: settle.latent_norm.1,
        batch,
        latent_dim: settle.latent.dim(1)? as u32,
        compressions: settle.compressions.len() as u32,
        finish,
        of: [none; COMPRESSIONS],
    };
    let mut held = Vec::new();
    let mut dim = settle.finish.norm.elem_count();
    for (param, of) in params.of.iter_mut().zip(&settle.compressions) {
        let [values, gates, bias, norm] =
            [of.values, of.gates, of.bias, of.finish.norm].map(|tensor| gpu.f32(name, tensor));
        let (values, gates, bias, norm) = (values?, gates?, bias?, norm?);
        let (past_values, rings) = Rings::new(name, &gpu, of.states.iter().map(|s| &s.values))?;
        let (past_gates, more_rings) = Rings::new(name, &gpu, of.states.iter().map(|s| &s.gates))?;
        let lists: Vec<&Rows> = of.lists.iter().map(|list| &**list).collect();
        let (rows, tables) = RowsParam::new(name, &gpu, &lists)?;
        *param = CompressionParam {
            values: values.address(),
            gates: gates.address(),
            bias: bias.address(),
            ratio: of.pooling.ratio as u32,
            overlap: u32::from(of.pooling.overlap),
            width: of.values.dim(1)? as u32,
            unused: 0,
            past_values,
            past_gates,
            rows,
            finish: finish_param(of.finish, norm.address()),
        };
        dim = dim.max(of.finish.norm.elem_count());
        held.push(([values, gates, bias, norm], rings, more_rings, tables));
    }
    let launch = Launch::new(2 + settle.compressions.len(), 512)
        .grid_y(op.batch.tokens())
        .shared(16 * 8 + 4 * dim);
    // SAFETY: `SettleParams`; shapes were checked by the op, and every window that ends has its page, owned
    // by its list alone. The latent, rings and pages are written through addresses while their storage is
    // only borrowed: the borrow guards the host's structs.
    unsafe { gpu.launch(Kernel("settle"), launch, &params) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_structs_are_the_kernels() {
        use std::mem::{offset_of, size_of};
        assert_eq!((size_of::<FinishParam>(), offset_of!(FinishParam, frequencies)), (168, 40));
        let rings = size_of::<Rings>();
        assert_eq!(offset_of!(CompressionParam, finish), 40 + 2 * rings + size_of::<RowsParam>());
        assert_eq!(offset_of!(Params, finish), 48 + size_of::<Batch>() + 8);
    }
}
