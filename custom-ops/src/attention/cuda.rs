//! On NVIDIA GPUs, with rows of 512 values; kernel*.cu.

use candle_core::{bail, DType, Result};

use super::{Attend, Attention, Selection};
use crate::device::cuda::{Address, Batch, Gpu, Input, Kernel, Launch, Rings, Target};
use crate::kv::{RowFormat, RowsParam};
use crate::RopeTable;

/// `ATTENTION_DIM` and the heads of a block of include/cuda/attention.h.
const DIM: usize = 512;
const DECODE_HEADS: usize = 8;
const PREFILL_HEADS: usize = 64;
/// The one packed form of rows of 512.
const PACKED: RowFormat = RowFormat::Fp8 { nope: 448, rope: 64 };
/// Tokens from which on a block takes all heads of one.
const PREFILL_TOKENS: usize = 16;
/// `ATTENTION_TURNS`.
const TURNS: usize = 32;
/// `ATTENTION_DECODE_CLUSTER`: the largest cluster that every GPU of compute capability 9 and later runs.
const CLUSTER: usize = 8;

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    q: Address,
    kv: Address,
    sinks: Address,
    chosen: Address,
    out: Address,
    batch: Batch,
    rings: Rings,
    rows: RowsParam,
    heads: u32,
    window: u32,
    ratio: u32,
    top_k: u32,
    scale: f32,
    first_token: u32,
    turns: u32,
    norm_eps: f32,
    frequencies: [f32; TURNS],
}

/// Whether the kernel for few tokens turns the queries of this batch itself, and writes the rings.
pub(super) fn turns_itself(gpu: &Gpu, op: &Attention, rope: &RopeTable) -> Result<bool> {
    let (tokens, heads, dim) = op.q.dims3()?;
    let single = op.batch.spans().iter().all(|span| span.len == 1);
    let frequencies = rope.frequencies().len();
    // The slot that a token takes must be of no row that another cluster still reads.
    let rings = op.windows.iter().all(|ring| ring.slots() >= op.window);
    let fits = dim == DIM && (1..=TURNS).contains(&frequencies) && rings;
    Ok(single && fits && tokens > 0 && plan(gpu, tokens, heads, true).is_ok())
}

/// `ATTENTION_DECODE_SHARED`.
fn decode_shared(chunk: usize) -> usize {
    chunk * 1040 + 2 * 8 * 1040 + 8 * (chunk + 8) * 2 + 8 * chunk * 8 * 4 + chunk * 8 + 96
}

/// `ATTENTION_PREFILL_SHARED`.
const PREFILL_SHARED: usize = 2 * 64 * 1040 + 64 * 68 * 4 + 64 * 72 * 2 + 64 * 8 + 64 * 4;
/// `ATTENTION_PREFILL_WGMMA_SHARED`.
const PREFILL_WGMMA_SHARED: usize = 3 * 64 * 1024 + 64;

pub(super) fn attend(op: &Attend, out: Target) -> Result<()> {
    let name = "attention";
    let (tokens, heads, dim) = op.q.dims3()?;
    if dim != DIM {
        bail!("attention: no CUDA kernel for rows of {dim} values, only {DIM}");
    }
    let lists = op.compressed.map_or(&[][..], |compressed| compressed.rows);
    if let Some(format) = lists
        .iter()
        .map(|rows| rows.format())
        .find(|&format| format != PACKED && format != RowFormat::F32 { width: DIM })
    {
        bail!("attention: no CUDA kernel for rows kept as {format:?}");
    }
    let out = out.of(name, DType::F32)?;
    let gpu = out.gpu();
    let [q, kv, sinks] = [op.q, op.kv, op.sinks].map(|tensor| gpu.f32(name, tensor));
    let (q, kv, sinks) = (q?, kv?, sinks?);
    let (chosen, ratio, top_k) = match op.compressed.map(|compressed| compressed.selection) {
        None => (None, 0, 0),
        Some(Selection::Visible { ratio }) => (None, ratio, 0),
        // The lists say which rows; the ratio only that there are some.
        Some(Selection::Chosen(ids)) => (Some(gpu.u32(name, ids)?), 1, ids.dim(1)?),
    };
    let (rings, _rings) = Rings::new(name, &gpu, op.windows.iter().copied())?;
    let (rows, _tables) = RowsParam::new(name, &gpu, lists)?;
    let (batch, _table) = Batch::new(name, &gpu, op.batch)?;
    let mut params = Params {
        q: q.address(),
        kv: kv.address(),
        sinks: sinks.address(),
        chosen: chosen.as_ref().map_or(Address::NULL, Input::address),
        out: out.address(),
        batch,
        rings,
        rows,
        heads: heads as u32,
        window: op.window as u32,
        ratio: ratio as u32,
        top_k: top_k as u32,
        scale: op.scale,
        first_token: 0,
        turns: 0,
        norm_eps: 0.0,
        frequencies: [0.0; TURNS],
    };
    if let Some(turn) = op.turn {
        let frequencies = turn.rope.frequencies();
        params.turns = frequencies.len() as u32;
        params.norm_eps = turn.eps as f32;
        params.frequencies[..frequencies.len()].copy_from_slice(frequencies);
    }
    let (kernel, launch) = plan(&gpu, tokens, heads, op.turn.is_some())?;
    // SAFETY: `AttentionParams`; the op has checked shapes, and every visible row has its page. Rings are
    // written through addresses while their storage is only borrowed: the borrow guards the host's struct.
    unsafe { gpu.launch(kernel, launch, &params) }
}

/// The kernel of a batch; the one for many tokens does not turn queries.
fn plan(gpu: &Gpu, tokens: usize, heads: usize, turning: bool) -> Result<(Kernel, Launch)> {
    let room = gpu.shared_bytes();
    if tokens >= PREFILL_TOKENS && heads.is_multiple_of(PREFILL_HEADS) && !turning {
        let groups = heads / PREFILL_HEADS;
        if gpu.warpgroups() && PREFILL_WGMMA_SHARED <= room {
            let launch = Launch::new(tokens, 384).grid_y(groups).shared(PREFILL_WGMMA_SHARED);
            return Ok((Kernel("attention_prefill_wgmma"), launch));
        }
        if PREFILL_SHARED <= room {
            let launch = Launch::new(tokens, 512).grid_y(groups).shared(PREFILL_SHARED);
            return Ok((Kernel("attention_prefill"), launch));
        }
    }
    let work = tokens * heads.div_ceil(DECODE_HEADS);
    let mut cluster = if gpu.capability() >= (9, 0) { CLUSTER } else { 1 };
    // Wider clusters than the GPU has room for make blocks wait for each other.
    while cluster > 1 && work * cluster > gpu.multiprocessors().max(64) {
        cluster /= 2;
    }
    let (kernel, chunk) = match decode_shared(80) <= room {
        true => (Kernel("attention_decode_80"), 80),
        false => (Kernel("attention_decode_32"), 32),
    };
    if decode_shared(chunk) > room {
        let wanted = decode_shared(chunk);
        bail!("attention: the GPU has {room} bytes of shared memory a block, {wanted} are needed");
    }
    let launch =
        Launch::new(work * cluster, 256).cluster(cluster as u32).shared(decode_shared(chunk));
    Ok((kernel, launch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_struct_is_the_headers() {
        use std::mem::{offset_of, size_of};
        assert_eq!((size_of::<Params>(), offset_of!(Params, heads)), (776, 40 + 32 + 264 + 280));
    }
}
