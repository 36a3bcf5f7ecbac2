//! On NVIDIA GPUs, with keys of 128 values: scores, then a selection by radix; kernel.cu.

use candle_core::{bail, DType, Result, Tensor};

use super::Select;
use crate::device::cuda::{Address, Batch, Gpu, Kernel, Launch, Scratch, ScratchSize, Target};
use crate::kv::{RowFormat, RowsParam};
use crate::matmul::cuda::halve_rows;
use crate::{RopeTable, Rounding};

/// `INDEXER_DIM` and `INDEXER_HEADS` of include/cuda/indexer.h.
const DIM: usize = 128;
const HEADS: usize = 64;
/// `INDEXER_SCORES_SHARED`.
const SCORES_SHARED: usize = 2 * (64 * 320 + 64 * 4);
/// `INDEXER_SCORES_WGMMA_SHARED`.
const SCORES_WGMMA_SHARED: usize = 4 * (64 * 256 + 64 * 4);
/// Keys of a block of `indexer_scores_wgmma`, and tokens at most.
const KEYS_OF_BLOCK: usize = 256;
const TOKENS_OF_BLOCK: usize = 64;
/// `INDEXER_SELECT_FEW` and `INDEXER_SELECT_FEW_SHARED`.
const SELECT_FEW: usize = 8192;
const SELECT_FEW_SHARED: usize = (3 * 2048 + 32 + 4 + 4 * 256) * 4;
/// `INDEXER_SELECT_CLUSTER`: more would not be counted.
const SELECT_CLUSTER: usize = 8;
/// Scores of a slice of a long batch; more tokens go slice by slice.
const SLICE_BYTES: usize = 256 << 20;
/// Tokens from which on a block takes many of them for each key that it reads.
const MANY_TOKENS: usize = 16;
/// Rows that one block ranks before others are asked to help.
const ROWS_OF_BLOCK: usize = 40_960;

#[repr(C)]
#[derive(Clone, Copy)]
struct Scores {
    q: Address,
    weights: Address,
    scores: Address,
    batch: Batch,
    keys: RowsParam,
    stride: u64,
    heads: u32,
    ratio: u32,
    first_token: u32,
    tokens: u32,
    of_block: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Choose {
    scores: Address,
    out: Address,
    batch: Batch,
    stride: u64,
    k: u32,
    ratio: u32,
    first_token: u32,
    cached: u32,
    words: u32,
}

/// `INDEXER_TURNS` of kernel_queries.cu.
const TURNS: usize = 32;

#[repr(C)]
#[derive(Clone, Copy)]
struct Queries {
    q: Address,
    positions: Address,
    out: Address,
    tokens: u32,
    heads: u32,
    turns: u32,
    frequencies: [f32; TURNS],
}

/// Whether there is a kernel that turns and rounds queries on their way to halves.
pub(super) fn turns_itself(q: &Tensor, table: &RopeTable, rounding: Rounding) -> Result<bool> {
    let (_, _, dim) = q.dims3()?;
    let turns = (1..=TURNS).contains(&table.frequencies().len());
    Ok(dim == DIM && turns && rounding == Rounding::HadamardFp4)
}

/// Raw queries to turned and rounded ones, as halves.
fn queries(gpu: &Gpu, op: &Select, table: &RopeTable, q: Address, out: Address) -> Result<()> {
    let (tokens, heads, _) = op.q.dims3()?;
    let positions = gpu.u32("select_rows", op.batch.positions())?;
    let mut frequencies = [0.0; TURNS];
    let turns = table.frequencies().len();
    frequencies[..turns].copy_from_slice(table.frequencies());
    let params = Queries {
        q,
        positions: positions.address(),
        out,
        tokens: tokens as u32,
        heads: heads as u32,
        turns: turns as u32,
        frequencies,
    };
    let launch = Launch::new((tokens * heads).div_ceil(8), 256);
    // SAFETY: `IndexerQueriesParams`; the scratch has room for all queries as halves.
    unsafe { gpu.launch(Kernel("indexer_queries"), launch, &params) }
}

/// How much of a batch is searched at a time.
#[derive(Clone, Copy)]
struct Plan {
    tokens: usize,
    heads: usize,
    /// Rows that a token can see at most.
    most: usize,
    slice: usize,
}

impl Plan {
    fn new(op: &Select) -> Result<Self> {
        let (tokens, heads, _) = op.q.dims3()?;
        let most = op.batch.horizon() / op.ratio.max(1);
        let slice = (SLICE_BYTES / 4 / most.max(1)).clamp(1, tokens.max(1));
        Ok(Self { tokens, heads, most, slice })
    }

    /// Bytes of the queries as halves, and of the scores.
    fn pieces(&self) -> [usize; 2] {
        [2 * self.tokens * self.heads * DIM, 4 * self.slice * self.most]
    }
}

/// Scratch that a search takes.
pub(super) fn scratch_bytes(op: &Select) -> Result<usize> {
    let pieces = Plan::new(op)?.pieces();
    Ok(pieces.into_iter().fold(ScratchSize::default(), ScratchSize::add).bytes())
}

pub(super) fn select(op: &Select, out: Target) -> Result<()> {
    let name = "select_rows";
    let (tokens, heads, dim) = op.q.dims3()?;
    if dim != DIM || heads > HEADS || !heads.is_multiple_of(8) {
        bail!(
            "select_rows: no CUDA kernel for {heads} heads of {dim}; heads of {DIM}, at most {HEADS} \
             and a multiple of 8"
        );
    }
    let known = [RowFormat::Fp4 { width: DIM }, RowFormat::F32 { width: DIM }];
    if let Some(format) = op.keys.iter().map(|keys| keys.format()).find(|f| !known.contains(f)) {
        bail!("select_rows: no CUDA kernel for keys kept as {format:?}");
    }
    if tokens == 0 || op.k == 0 {
        return Ok(());
    }
    let out = out.of(name, DType::U32)?;
    let gpu = out.gpu();
    let (q, weights) = (gpu.f32(name, op.q)?, gpu.f32(name, op.weights)?);
    let (keys, _tables) = RowsParam::new(name, &gpu, op.keys)?;
    let (batch, _table) = Batch::new(name, &gpu, op.batch)?;
    let plan = Plan::new(op)?;
    let mut scratch = Scratch::new(name, &gpu, op.scratch.as_ref())?;
    let [halves, scores] = plan.pieces().map(|bytes| scratch.take(name, bytes));
    let (halves, scores) = (halves?, scores?);
    let searched = plan.most > op.k;
    if searched {
        match op.turn {
            Some(table) => queries(&gpu, op, table, q.address(), halves)?,
            None => halve_rows(&gpu, q.address(), halves, tokens, heads * DIM, 0)?,
        }
    }
    for first in (0..tokens).step_by(plan.slice) {
        let count = plan.slice.min(tokens - first);
        if searched {
            let many = count >= MANY_TOKENS;
            let by_warpgroups = many && heads == HEADS && gpu.warpgroups();
            let of_block = match (many, by_warpgroups) {
                (_, true) => tokens_of_block(&gpu, count, plan.most),
                (true, _) => 32,
                (false, _) => 1,
            };
            let params = Scores {
                q: halves,
                weights: weights.address(),
                scores,
                batch,
                keys,
                stride: plan.most as u64,
                heads: heads as u32,
                ratio: op.ratio as u32,
                first_token: first as u32,
                tokens: count as u32,
                of_block: of_block as u32,
            };
            let groups = count.div_ceil(of_block);
            let (kernel, launch) = if by_warpgroups {
                let blocks = plan.most.div_ceil(KEYS_OF_BLOCK);
                let launch = Launch::new(blocks, 512).grid_y(groups).shared(SCORES_WGMMA_SHARED);
                (Kernel("indexer_scores_wgmma"), launch)
            } else {
                let (kernel, keys) = match many {
                    true => (Kernel("indexer_scores_256"), 256),
                    false => (Kernel("indexer_scores_128"), 128),
                };
                // Enough blocks to fill the GPU; each goes on to further keys.
                let blocks = (4 * gpu.multiprocessors()).div_ceil(groups);
                let blocks = plan.most.div_ceil(keys).min(blocks);
                (kernel, Launch::new(blocks, 256).grid_y(groups).shared(SCORES_SHARED))
            };
            // SAFETY: `IndexerScoresParams`; every visible key has its page, and the scratch a row of
            // scores for each token.
            unsafe { gpu.launch(kernel, launch, &params)? };
        }
        let few = blocks_of_few(&gpu, count, plan.most);
        let (cluster, cached, words) = match few {
            Some(cluster) => (cluster, 0, 0),
            None => blocks_of_select(&gpu, plan.most)?,
        };
        let params = Choose {
            scores,
            out: out.address(),
            batch,
            stride: plan.most as u64,
            k: op.k as u32,
            ratio: op.ratio as u32,
            first_token: first as u32,
            cached: cached as u32,
            words: words as u32,
        };
        let (kernel, shared) = match few {
            Some(_) => (Kernel("indexer_select_few"), SELECT_FEW_SHARED),
            None => (Kernel("indexer_select"), select_shared(cached, words)),
        };
        let launch = Launch::new(count * cluster, 1024).cluster(cluster as u32).shared(shared);
        // SAFETY: `IndexerSelectParams`, as above.
        unsafe { gpu.launch(kernel, launch, &params)? };
    }
    Ok(())
}

/// Tokens of a block of `indexer_scores_wgmma`. Few make blocks fetch keys for little work, many leave
/// multiprocessors without any at the end: the least time, counted in tokens.
fn tokens_of_block(gpu: &Gpu, tokens: usize, most: usize) -> usize {
    let keys = most.div_ceil(KEYS_OF_BLOCK);
    // What a block takes before its first token.
    let start = 5;
    let time = |each: &usize| {
        let blocks = keys * tokens.div_ceil(*each);
        blocks.div_ceil(gpu.multiprocessors()) * (each + start)
    };
    (2..=TOKENS_OF_BLOCK).rev().min_by_key(time).unwrap_or(TOKENS_OF_BLOCK)
}

/// Blocks that rank so many rows of a token together with few each, where there are multiprocessors for
/// as many.
fn blocks_of_few(gpu: &Gpu, tokens: usize, rows: usize) -> Option<usize> {
    let blocks = rows.div_ceil(SELECT_FEW).next_power_of_two();
    let clusters = gpu.capability() >= (9, 0) && blocks <= SELECT_CLUSTER;
    let room = blocks * tokens <= gpu.multiprocessors();
    (blocks == 1 || clusters && room).then_some(blocks)
}

/// `INDEXER_SELECT_SHARED`.
fn select_shared(cached: usize, words: usize) -> usize {
    4 * (cached + 2048 + 64 + 2 * words)
}

/// Blocks that rank so many rows together, how many scores each keeps in shared memory, and the words
/// of its bitmaps.
fn blocks_of_select(gpu: &Gpu, rows: usize) -> Result<(usize, usize, usize)> {
    let mut cluster = 1;
    while gpu.capability() >= (9, 0) && cluster < 8 && rows > ROWS_OF_BLOCK * cluster {
        cluster *= 2;
    }
    let each = rows.div_ceil(cluster).next_multiple_of(32);
    let words = each / 32;
    let Some(room) = gpu.shared_bytes().checked_sub(select_shared(0, words)) else {
        bail!("select_rows: {rows} rows are more than this GPU's shared memory can rank");
    };
    Ok((cluster, each.min(room / 4 / 32 * 32), words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_structs_are_the_headers() {
        use std::mem::{offset_of, size_of};
        assert_eq!((size_of::<Scores>(), offset_of!(Scores, stride)), (368, 24 + 32 + 280));
        assert_eq!((size_of::<Choose>(), offset_of!(Choose, k)), (80, 56));
    }
}
