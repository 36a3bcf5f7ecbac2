//! On NVIDIA GPUs: which kernel a product takes; kernel*.cu.

use candle_core::{bail, DType, Result};

use super::{MatMul, MatMuls};
use crate::blocks::Format;
use crate::device::cuda::layout::number;
use crate::device::cuda::{Address, Gpu, Kernel, Launch, Scratch, ScratchSize, Target, Weight};
use crate::hyper_connection::{MatrixErrand, Spread};
use crate::Matrix;

/// Weights of one launch at most; `MATMUL_PARTS` of include/cuda/matmul.h.
const PARTS: usize = 8;
/// Warps of a block of the kernels for few tokens.
const WARPS: usize = 16;
/// Tokens from which on products go to the matrix units as halves.
const FEW_TOKENS: usize = 32;
/// Columns whose norm a launch of one token makes on the way: eight a thread.
const NORMED_COLS: usize = 4096;
/// Shared memory for the sums of the kernels for few tokens.
const SUMS_BYTES: usize = 128 << 10;

#[repr(C)]
#[derive(Clone, Copy)]
struct FewParams {
    x: Address,
    quants: Address,
    scales: Address,
    tokens: u32,
    groups: u32,
    parts: u32,
    split: u32,
    rounds: u32,
    x_groups: u32,
    block_cols: u32,
    has_f16: u32,
    has_q8_0: u32,
    staged: u32,
    unused: u32,
    tile_end: [u32; PARTS],
    heft_end: [u32; PARTS],
    out: [Address; PARTS],
    w: [Weight; PARTS],
    errand: MatrixErrand,
    norm: Address,
    norm_eps: f32,
    unused_too: u32,
    spread: Spread,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct QuantizeRows {
    x: Address,
    quants: Address,
    scales: Address,
    tokens: u32,
    padded: u32,
    width: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct HalveRows {
    x: Address,
    halves: Address,
    tokens: u64,
    width: u32,
    order: u32,
}

/// `GemmParams` and `MatmulPlainParams`: the one has halves for `x`, the other floats.
#[repr(C)]
#[derive(Clone, Copy)]
struct Product {
    x: Address,
    out: Address,
    w: Weight,
    tokens: u32,
    groups: u32,
}

/// Whether products of many tokens go to Hopper's matrix units: their instructions exist on 9.0 only.
pub(crate) fn is_wide(gpu: &Gpu) -> bool {
    gpu.warpgroups()
}

/// How the halves of 32 columns are ordered (`HalvesOrder`): for the lanes of Q8_0's tiles or not, for
/// Hopper's matrix units or not.
pub(crate) fn halves_order(format: Format, wide: bool) -> u32 {
    u32::from(format == Format::Q8_0) + if wide { 2 } else { 0 }
}

/// Shared memory of a block of so many rows and tokens on Hopper's matrix units: four chunks of 64 columns
/// of activations as halves, and four of weights, or two blocks (`Rows16<…>::STAGED` of
/// include/cuda/gemm.cuh).
pub(crate) fn wide_bytes(format: Format, rows: usize, tokens: usize) -> usize {
    let of_tile = match format {
        Format::Q8_0 => 4 * 1088,
        Format::Iq2Xxs => 2 * 1088,
        Format::Q2K => 2 * 1344,
        Format::Q4K => 2 * 2304,
        _ => 4 * 2048,
    };
    512 * tokens + rows / 16 * of_tile
}

/// Rows `[tokens, width]` f32 to halves in this order.
pub(crate) fn halve_rows(
    gpu: &Gpu,
    x: Address,
    halves: Address,
    tokens: usize,
    width: usize,
    order: u32,
) -> Result<()> {
    let params = HalveRows { x, halves, tokens: tokens as u64, width: width as u32, order };
    let launch = Launch::new((tokens * (width / 8)).div_ceil(256), 256);
    // SAFETY: `HalveRowsParams`; callers have rows of a multiple of 32 values on both sides.
    unsafe { gpu.launch(Kernel("halve_rows"), launch, &params) }
}

/// What a product is computed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// A weight read once, activations as bytes or floats: up to 32 tokens.
    Few,
    /// The matrix units, activations as halves.
    Gemm,
    /// Any format, any shape.
    Plain,
}

fn path(gpu: &Gpu, weights: &[&Matrix], tokens: usize, groups: usize) -> Path {
    let Some(first) = weights.first() else { return Path::Plain };
    let cols = first.cols();
    let tiled = |w: &&Matrix| {
        let format = matches!(w.format(), Format::Q8_0 | Format::F16);
        format && (groups == 1 || (w.rows() / groups).is_multiple_of(16))
    };
    if !weights.iter().all(tiled) || cols == 0 {
        return Path::Plain;
    }
    if tokens <= FEW_TOKENS {
        let few = Few::new(gpu, weights, tokens, groups);
        return match cols.is_multiple_of(32) && few.shared <= gpu.shared_bytes() {
            true => Path::Few,
            false => Path::Plain,
        };
    }
    match cols.is_multiple_of(64) {
        true => Path::Gemm,
        false => Path::Plain,
    }
}

/// Whether the launch of these can run an errand along.
pub(super) fn runs_errands(gpu: &Gpu, weights: &[&Matrix], tokens: usize) -> bool {
    one_launch(gpu, weights, tokens) && Few::new(gpu, weights, tokens, 1).cluster == 1
}

/// Whether that launch can norm their activations too.
pub(crate) fn norms(gpu: &Gpu, weights: &[&Matrix], tokens: usize) -> bool {
    let cols = weights.first().map_or(0, |w| w.cols());
    tokens == 1 && cols <= NORMED_COLS && runs_errands(gpu, weights, tokens)
}

/// If one token's product can be spread over the streams where it is computed, the blocks of that launch.
pub(crate) fn spreading_blocks(gpu: &Gpu, w: &Matrix) -> Option<usize> {
    let few = Few::new(gpu, &[w], 1, 1);
    let once = few.cluster == 1 && few.most <= WARPS / few.split * few.rounds;
    let whole = w.rows().is_multiple_of(16) && w.cols().is_multiple_of(128);
    let room = few.shared + Spread::bytes(16 * few.most) <= gpu.shared_bytes();
    let fits = w.stack() == 1 && once && whole && room;
    (fits && path(gpu, &[w], 1, 1) == Path::Few).then_some(few.blocks)
}

/// One token's product, spread over the streams.
pub(crate) fn spread(gpu: &Gpu, x: Address, w: &Matrix, spread: Spread) -> Result<()> {
    let name = "hyper_enter";
    let beside = Beside { spread, ..Beside::NOTHING };
    let mut scratch = Scratch::new(name, gpu, None)?;
    few(name, gpu, x, &[w], &[Address::NULL], 1, 1, beside, &mut scratch)
}

/// Whether one launch can do all of these.
pub(super) fn one_launch(gpu: &Gpu, weights: &[&Matrix], tokens: usize) -> bool {
    weights.len() <= PARTS && tokens > 0 && path(gpu, weights, tokens, 1) == Path::Few
}

/// The launch of a [`Path::Few`].
struct Few {
    /// Tokens with room for whole products of eight; 1 for one.
    padded: usize,
    cluster: usize,
    block_cols: usize,
    split: usize,
    rounds: usize,
    x_groups: usize,
    /// Tiles of a block at most.
    most: usize,
    /// Whether the bytes of all tokens are in shared memory.
    staged: bool,
    blocks: usize,
    shared: usize,
}

impl Few {
    fn new(gpu: &Gpu, weights: &[&Matrix], tokens: usize, groups: usize) -> Self {
        let has = |format| weights.iter().any(|w| w.format() == format);
        let cols = weights.first().map_or(0, |w| w.cols());
        let tiles: usize = weights.iter().map(|w| w.rows().div_ceil(16)).sum();
        let processors = gpu.multiprocessors().max(1);
        let padded = match tokens {
            0 | 1 => 1,
            2..=8 => 8,
            9..=16 => 16,
            _ => 32,
        };
        // Few rows and many columns: the blocks of a cluster share them.
        let mut cluster = 1;
        let clusters = gpu.capability() >= (9, 0) && groups == 1;
        while clusters && cluster < 8 && 2 * cluster * tiles <= processors && cols >= 4096 * cluster
        {
            cluster *= 2;
        }
        let block_cols = match cluster {
            1 => cols,
            n => cols.div_ceil(n).next_multiple_of(256),
        };
        let mut split = 1;
        while split < WARPS && 2 * split <= block_cols / 256 {
            split *= 2;
        }
        let slots = WARPS / split;
        let mut blocks = tiles.div_ceil(slots).min(processors).max(1);
        let of_group = (weights.first().map_or(0, |w| w.rows()) / groups / 16).max(1);
        let mut x_groups = match groups {
            1 => 1,
            _ => groups.min(tiles.div_ceil(blocks).div_ceil(of_group) + 1),
        };
        // Blocks of one group each, if that takes no longer.
        let whole = (1..=of_group.min(blocks / groups)).rev().find(|n| of_group.is_multiple_of(*n));
        if let (2.., Some(of_each)) = (groups, whole) {
            if of_group / of_each <= tiles.div_ceil(blocks) {
                (blocks, x_groups) = (groups * of_each, 1);
            }
        }
        // Activations in shared memory, where they fit: eight tokens' only if they are used again.
        let most = tiles.div_ceil(blocks);
        let round_bytes = WARPS * 16 * padded * 4;
        let staged_bytes = (x_groups * block_cols).next_multiple_of(256) / 32 * 36 * padded;
        let staged = has(Format::Q8_0)
            && (padded > 8 || padded == 8 && most > slots)
            && staged_bytes + round_bytes <= gpu.shared_bytes()
            && (groups == 1 || cols.is_multiple_of(256));
        let staged_bytes = if staged { staged_bytes } else { 0 };
        let room = SUMS_BYTES.min(gpu.shared_bytes().saturating_sub(staged_bytes));
        let rounds = most.div_ceil(slots).min(room / round_bytes).max(1);
        let mut shared = rounds * round_bytes + staged_bytes;
        if padded == 1 {
            let values = x_groups * block_cols;
            shared += if has(Format::F16) { 4 * values } else { 0 };
            shared += if has(Format::Q8_0) { values + values / 8 } else { 0 };
        }
        Self { padded, cluster, block_cols, split, rounds, x_groups, most, staged, blocks, shared }
    }

    /// Bytes of the activations as bytes, and of their scales.
    fn quants(&self, weights: &[&Matrix], groups: usize) -> [usize; 2] {
        let needed = self.padded > 1 && weights.iter().any(|w| w.format() == Format::Q8_0);
        let width = groups * weights.first().map_or(0, |w| w.cols());
        match needed {
            true => [self.padded * width, self.padded * width / 32 * 4],
            false => [0, 0],
        }
    }
}

/// Scratch that a product takes.
pub(super) fn scratch_bytes(
    gpu: &Gpu,
    weights: &[&Matrix],
    tokens: usize,
    groups: usize,
) -> Result<usize> {
    let width = groups * weights.first().map_or(0, |w| w.cols());
    let size = ScratchSize::default();
    Ok(match path(gpu, weights, tokens, groups) {
        Path::Few => {
            let few = Few::new(gpu, weights, tokens, groups);
            let [quants, scales] = few.quants(weights, groups);
            size.add(quants).add(scales).bytes()
        }
        Path::Gemm => size.add(2 * tokens * width).bytes(),
        Path::Plain => 0,
    })
}

pub(super) fn matmul(op: &MatMul, out: Target) -> Result<()> {
    let name = "matmul";
    let out = out.of(name, DType::F32)?;
    let gpu = out.gpu();
    let x = gpu.f32(name, op.x)?;
    let (x, out) = (x.address(), out.address());
    let (tokens, groups) = (op.x.dim(0)?, op.groups);
    if tokens == 0 || op.w.rows() == 0 {
        return Ok(());
    }
    let mut scratch = Scratch::new(name, &gpu, op.scratch.as_ref())?;
    match path(&gpu, &[op.w], tokens, groups) {
        Path::Few => {
            few(name, &gpu, x, &[op.w], &[out], tokens, groups, Beside::NOTHING, &mut scratch)
        }
        Path::Gemm => gemm(&gpu, x, op.w, out, tokens, groups, &mut scratch),
        Path::Plain => plain(&gpu, x, op.w, out, tokens, groups),
    }
}

pub(super) fn matmuls(op: &MatMuls, out: Target) -> Result<()> {
    let name = "matmuls";
    let out = out.of(name, DType::F32)?;
    let gpu = out.gpu();
    let x = gpu.f32(name, op.x)?;
    let outs = op.outs.iter().map(|out| gpu.f32(name, out)).collect::<Result<Vec<_>>>()?;
    let mut addresses = vec![out.address()];
    addresses.extend(outs.iter().map(|out| out.address()));
    let mut scratch = Scratch::new(name, &gpu, op.scratch.as_ref())?;
    let mut beside = Beside::NOTHING;
    if let Some(errand) = &op.errand {
        beside.errand = errand.param(&gpu)?;
    }
    let norm =
        op.norm.map(|(weight, eps)| Ok::<_, candle_core::Error>((gpu.f32(name, weight)?, eps)));
    let norm = norm.transpose()?;
    if let Some((weight, eps)) = &norm {
        beside.norm = (weight.address(), *eps as f32);
    }
    few(name, &gpu, x.address(), op.weights, &addresses, op.x.dim(0)?, 1, beside, &mut scratch)
}

/// What a launch does beside its products.
struct Beside {
    errand: MatrixErrand,
    /// Weight of the norm of x, and what is added to the mean square; none without an address.
    norm: (Address, f32),
    spread: Spread,
}

impl Beside {
    const NOTHING: Self =
        Self { errand: MatrixErrand::NONE, norm: (Address::NULL, 0.0), spread: Spread::NONE };
}

#[allow(clippy::too_many_arguments)]
fn few(
    name: &'static str,
    gpu: &Gpu,
    x: Address,
    weights: &[&Matrix],
    outs: &[Address],
    tokens: usize,
    groups: usize,
    beside: Beside,
    scratch: &mut Scratch,
) -> Result<()> {
    let Some(first) = weights.first() else { return Ok(()) };
    let few = Few::new(gpu, weights, tokens, groups);
    let [quants_bytes, scales_bytes] = few.quants(weights, groups);
    let (mut quants, mut scales) = (Address::NULL, Address::NULL);
    if quants_bytes > 0 {
        quants = scratch.take(name, quants_bytes)?;
        scales = scratch.take(name, scales_bytes)?;
        let width = groups * first.cols();
        let params = QuantizeRows {
            x,
            quants,
            scales,
            tokens: tokens as u32,
            padded: few.padded as u32,
            width: width as u32,
        };
        let warps = few.padded * (width / 32).div_ceil(4);
        // SAFETY: `QuantizeRowsParams`; the scratch has room for `padded` rows.
        unsafe {
            gpu.launch(Kernel("quantize_rows"), Launch::new(warps.div_ceil(8), 256), &params)?
        };
    }
    let has = |format| u32::from(weights.iter().any(|w| w.format() == format));
    let mut params = FewParams {
        x,
        quants,
        scales,
        tokens: tokens as u32,
        groups: groups as u32,
        parts: weights.len() as u32,
        split: few.split as u32,
        rounds: few.rounds as u32,
        x_groups: few.x_groups as u32,
        block_cols: few.block_cols as u32,
        has_f16: has(Format::F16),
        has_q8_0: has(Format::Q8_0),
        staged: u32::from(few.staged),
        unused: 0,
        tile_end: [0; PARTS],
        heft_end: [0; PARTS],
        out: [Address::NULL; PARTS],
        w: [first.cuda(name, gpu)?; PARTS],
        errand: beside.errand,
        norm: beside.norm.0,
        norm_eps: beside.norm.1,
        unused_too: 0,
        spread: beside.spread,
    };
    let (mut tiles, mut heft) = (0, 0);
    for (i, (w, out)) in weights.iter().zip(outs).enumerate() {
        (params.w[i], params.out[i]) = (w.cuda(name, gpu)?, *out);
        let of_weight = w.rows().div_ceil(16) as u32;
        tiles += of_weight;
        heft += of_weight * if w.format() == Format::F16 { 2 } else { 1 };
        (params.tile_end[i], params.heft_end[i]) = (tiles, heft);
    }
    let kernel = match few.padded {
        1 => Kernel("matmul_1"),
        8 => Kernel("matmul_8"),
        16 => Kernel("matmul_16"),
        _ => Kernel("matmul_32"),
    };
    // An errand has a multiprocessor to itself: a block more than there are would begin when others end.
    let blocks = match beside.errand.is_some() {
        true => few.blocks.min(gpu.multiprocessors().max(2) - 1) + 1,
        false => few.blocks * few.cluster,
    };
    let room = if beside.spread.is_some() { Spread::bytes(16 * few.most) } else { 0 };
    let launch = Launch::new(blocks, 32 * WARPS as u32)
        .cluster(few.cluster as u32)
        .shared(few.shared + room);
    // SAFETY: `MatmulParams`; shapes were checked by the op, formats and columns by `path`.
    unsafe { gpu.launch(kernel, launch, &params) }
}

fn gemm(
    gpu: &Gpu,
    x: Address,
    w: &Matrix,
    out: Address,
    tokens: usize,
    groups: usize,
    scratch: &mut Scratch,
) -> Result<()> {
    let name = "matmul";
    let width = groups * w.cols();
    let halves = scratch.take(name, 2 * tokens * width)?;
    let wide = is_wide(gpu);
    halve_rows(gpu, x, halves, tokens, width, halves_order(w.format(), wide))?;
    let of_group = w.rows() / groups;
    let q8_0 = w.format() == Format::Q8_0;
    // Large tiles read less; small ones keep all multiprocessors, or nearly all, busy where there is little
    // to do.
    let busy = |rows: usize, of_block: usize| {
        let blocks = groups * of_group.div_ceil(rows) * tokens.div_ceil(of_block);
        blocks + blocks / 16 >= gpu.multiprocessors()
    };
    let pick = |of_q8_0, of_f16| Kernel(if q8_0 { of_q8_0 } else { of_f16 });
    let (kernel, rows, of_block, threads) = match wide {
        true if busy(128, 256) => {
            (pick("gemm_wide_q8_0_128x256", "gemm_wide_f16_128x256"), 128, 256, 256)
        }
        true if busy(128, 128) => {
            (pick("gemm_wide_q8_0_128x128", "gemm_wide_f16_128x128"), 128, 128, 256)
        }
        true => (pick("gemm_wide_q8_0_128x64", "gemm_wide_f16_128x64"), 128, 64, 256),
        false if busy(256, 128) => (pick("gemm_q8_0_256x128", "gemm_f16_256x128"), 256, 128, 256),
        false => (pick("gemm_q8_0_128x64", "gemm_f16_128x64"), 128, 64, 128),
    };
    let params = product(name, gpu, halves, w, out, tokens, groups)?;
    let launch = Launch::new(tokens.div_ceil(of_block), threads)
        .grid_y(of_group.div_ceil(rows))
        .grid_z(groups)
        .shared(match wide {
            true => wide_bytes(w.format(), rows, of_block),
            false => 512 * of_block,
        });
    // SAFETY: `GemmParams`; shapes were checked by the op, formats and columns by `path`.
    unsafe { gpu.launch(kernel, launch, &params) }
}

fn plain(
    gpu: &Gpu,
    x: Address,
    w: &Matrix,
    out: Address,
    tokens: usize,
    groups: usize,
) -> Result<()> {
    let params = product("matmul", gpu, x, w, out, tokens, groups)?;
    let blocks = w.rows().div_ceil(8).min(8 * gpu.multiprocessors());
    let launch = Launch::new(blocks, 256).grid_y(tokens.div_ceil(4).min(1024));
    // SAFETY: `MatmulPlainParams`; shapes were checked by the op.
    unsafe { gpu.launch(Kernel("matmul_plain"), launch, &params) }
}

fn product(
    name: &'static str,
    gpu: &Gpu,
    x: Address,
    w: &Matrix,
    out: Address,
    tokens: usize,
    groups: usize,
) -> Result<Product> {
    let count = |n: usize| match u32::try_from(n) {
        Ok(n) => Ok(n),
        Err(_) => bail!("{name}: {n} tokens or groups are more than kernels count"),
    };
    let w = w.cuda(name, gpu)?;
    debug_assert!(w.format <= number(Format::Iq2Xxs));
    Ok(Product { x, out, w, tokens: count(tokens)?, groups: count(groups)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_structs_are_the_headers() {
        use std::mem::{offset_of, size_of};
        assert_eq!(size_of::<FewParams>(), 24 + 48 + PARTS * (8 + 8 + 64) + 24 + 16 + 40);
        assert_eq!(offset_of!(FewParams, out), 72 + PARTS * 8);
        assert_eq!((size_of::<QuantizeRows>(), size_of::<HalveRows>()), (40, 32));
        assert_eq!((size_of::<Product>(), offset_of!(Product, tokens)), (88, 80));
    }
}
