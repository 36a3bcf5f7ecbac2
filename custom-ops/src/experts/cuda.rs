//! On NVIDIA GPUs: one token in two launches, few and many grouped by expert; kernel_*.cu.

mod few;
pub(crate) mod one;

use candle_core::{bail, DType, Result};

use super::{Experts, Mlp};
use crate::blocks::Format;
use crate::device::cuda::{Address, Gpu, Kernel, Launch, Scratch, ScratchSize, Target, Weight};
use crate::matmul::cuda::{halve_rows, halves_order, is_wide, wide_bytes};
use crate::Matrix;

/// Pairs of an item of the kernels for Hopper's matrix units; `EXPERTS_WIDE_ITEM` of include/cuda/experts.h.
const WIDE_ITEM: usize = 128;
/// Shared memory of IQ2_XXS's tables.
const TABLE_BYTES: usize = 384 * 128;
/// Experts whose pairs one block can count.
const MAX_EXPERTS: usize = 8192;
/// Scratch that a slice of a long batch may take; more tokens go slice by slice. In the full model 4,096 of
/// them take 528 MiB.
const SLICE_BYTES: usize = 544 << 20;

#[repr(C)]
#[derive(Clone, Copy)]
struct Group {
    ids: Address,
    order: Address,
    items: Address,
    item_count: Address,
    pairs: u32,
    experts: u32,
    of_item: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GroupedGateUp {
    x: Address,
    h: Address,
    weights: Address,
    order: Address,
    items: Address,
    item_count: Address,
    gate: Weight,
    up: Weight,
    pairs: u32,
    k: u32,
    h_order: u32,
    clamp: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GroupedDown {
    h: Address,
    terms: Address,
    order: Address,
    items: Address,
    item_count: Address,
    down: Weight,
    pairs: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Sum {
    terms: Address,
    shared_terms: Address,
    out: Address,
    tokens: u32,
    k: u32,
    hidden: u32,
}

/// What a call computes, and how much of it.
#[derive(Clone, Copy)]
struct Shape<'a> {
    routed: Mlp<'a>,
    shared: Option<Mlp<'a>>,
    k: usize,
    hidden: usize,
    inter: usize,
    shared_inter: usize,
    /// Whether there are kernels for Hopper's matrix units: for the routed experts, for the shared one.
    wide: [bool; 2],
}

impl<'a> Shape<'a> {
    fn new(gpu: &Gpu, routed: Mlp<'a>, shared: Option<Mlp<'a>>, k: usize) -> Self {
        let shared_inter = shared.map_or(0, |shared| shared.gate.rows());
        let (hidden, inter) = (routed.gate.cols(), routed.gate.rows());
        let wide = |mlp: Mlp| {
            let kernels = wide_kernel("gate_up", mlp.gate).zip(wide_kernel("down", mlp.down));
            is_wide(gpu) && kernels.is_some()
        };
        let wide = [wide(routed), shared.is_some_and(wide)];
        Self { routed, shared, k, hidden, inter, shared_inter, wide }
    }

    /// Refuses by name what the grouped kernels cannot do.
    fn check_grouped(&self) -> Result<()> {
        let networks = [("routed", Some(self.routed)), ("shared", self.shared)];
        for (what, mlp) in networks.into_iter().filter_map(|(what, mlp)| Some((what, mlp?))) {
            if mlp.gate.format() != mlp.up.format() {
                let [gate, up] = [mlp.gate, mlp.up].map(|w| w.format().name());
                bail!("experts: {what} gate is {gate} and up {up}; CUDA kernels need one format");
            }
            for (name, w) in [("gate", mlp.gate), ("up", mlp.up), ("down", mlp.down)] {
                if format_name(w.format()).is_none() {
                    bail!(
                        "experts: no CUDA kernel for {what} {name} in {} (have IQ2_XXS, Q2_K, Q4_K, \
                         Q8_0, F16)",
                        w.format()
                    );
                }
                if !w.cols().is_multiple_of(64) || !w.rows().is_multiple_of(16) {
                    bail!(
                        "experts: no CUDA kernel for {what} {name} [{}, {}]; columns must be a \
                         multiple of 64, rows of 16",
                        w.rows(),
                        w.cols()
                    );
                }
                // Offsets in one matrix are 32 bits; no format takes more than two bytes a value there.
                if w.rows().saturating_mul(w.cols()) > u32::MAX as usize / 2 {
                    bail!(
                        "experts: no CUDA kernel for {what} {name} [{}, {}]; at most 2^31 values",
                        w.rows(),
                        w.cols()
                    );
                }
            }
        }
        if self.routed.gate.stack() > MAX_EXPERTS {
            bail!("experts: {} experts, at most {MAX_EXPERTS} on CUDA", self.routed.gate.stack());
        }
        Ok(())
    }

    /// Pairs of an item: as many as an expert is likely to get.
    fn of_item(&self, tokens: usize) -> usize {
        if self.wide[0] {
            return WIDE_ITEM;
        }
        let each = tokens * self.k / self.routed.gate.stack().max(1);
        match each {
            0..8 => 8,
            8..32 => 32,
            _ => 64,
        }
    }

    /// Items at most.
    fn items(&self, tokens: usize) -> usize {
        let pairs = tokens * self.k;
        self.routed.gate.stack().min(pairs) + pairs / self.of_item(tokens)
    }

    /// Bytes of the pieces of scratch for so many tokens, in the order in which they are taken.
    fn pieces(&self, tokens: usize) -> Vec<usize> {
        let pairs = tokens * self.k;
        if self.is_few(tokens) {
            return self.few_pieces(tokens);
        }
        let mut pieces = vec![
            2 * tokens * self.hidden,
            2 * pairs * self.inter,
            4 * pairs * self.hidden,
            4 * pairs,
            16 * self.items(tokens),
            4,
        ];
        if self.shared.is_some() {
            pieces.push(2 * tokens * self.shared_inter);
        }
        pieces
    }

    fn bytes(&self, tokens: usize) -> usize {
        self.pieces(tokens).into_iter().fold(ScratchSize::default(), ScratchSize::add).bytes()
    }

    /// Tokens of a slice: as many as [`SLICE_BYTES`] allow, about as many in each.
    fn slice(&self, tokens: usize) -> usize {
        let of_token = (self.bytes(1024) / 1024).max(1);
        let slices = tokens.div_ceil((SLICE_BYTES / of_token).max(64)).max(1);
        tokens.div_ceil(slices)
    }
}

/// Scratch that a call takes.
pub(super) fn scratch_bytes(gpu: &Gpu, op: &Experts, tokens: usize, k: usize) -> usize {
    let shape = Shape::new(gpu, op.routed, op.shared, k);
    shape.bytes(shape.slice(tokens))
}

pub(super) fn experts(op: &Experts, out: Target) -> Result<()> {
    let name = "experts";
    let out = out.of(name, DType::F32)?;
    let gpu = out.gpu();
    let (tokens, k) = op.ids.dims2()?;
    if tokens == 0 {
        return Ok(());
    }
    let shape = Shape::new(&gpu, op.routed, op.shared, k);
    let (x, ids, weights) =
        (gpu.f32(name, op.x)?, gpu.u32(name, op.ids)?, gpu.f32(name, op.weights)?);
    let slice = shape.slice(tokens);
    let call = Call { gpu: &gpu, shape, clamp: op.clamp };
    for first in (0..tokens).step_by(slice) {
        let mut scratch = Scratch::new(name, &gpu, op.cuda_scratch.as_ref())?;
        let count = slice.min(tokens - first);
        let part = Part {
            x: x.address().offset(4 * first * shape.hidden),
            ids: ids.address().offset(4 * first * k),
            weights: weights.address().offset(4 * first * k),
            out: out.address().offset(4 * first * shape.hidden),
            tokens: count,
        };
        match shape.is_few(count) {
            true => call.few(part, &mut scratch)?,
            false => call.grouped(part, &mut scratch)?,
        }
    }
    Ok(())
}

/// Some of the tokens.
#[derive(Clone, Copy)]
struct Part {
    x: Address,
    ids: Address,
    weights: Address,
    out: Address,
    tokens: usize,
}

struct Call<'a> {
    gpu: &'a Gpu,
    shape: Shape<'a>,
    clamp: f32,
}

impl Call<'_> {
    fn weight(&self, w: &Matrix) -> Result<Weight> {
        w.cuda("experts", self.gpu)
    }

    fn grouped(&self, part: Part, scratch: &mut Scratch) -> Result<()> {
        self.shape.check_grouped()?;
        let Shape { routed, shared, k, hidden, wide, .. } = self.shape;
        let Part { tokens, .. } = part;
        let (pairs, of_item, items) =
            (tokens * k, self.shape.of_item(tokens), self.shape.items(tokens));
        let mut pieces = self.shape.pieces(tokens).into_iter();
        let mut take = || scratch.take("experts", pieces.next().unwrap_or_default());
        let (halves, h, terms, order, list, item_count) =
            (take()?, take()?, take()?, take()?, take()?, take()?);
        let experts = routed.gate.stack();
        let params = Group {
            ids: part.ids,
            order,
            items: list,
            item_count,
            pairs: pairs as u32,
            experts: experts as u32,
            of_item: of_item as u32,
        };
        let launch = Launch::new(1, 1024).shared(4 * (2 * experts + 33));
        // SAFETY: `ExpertsGroupParams`; the list has room for as many items as there can be.
        unsafe { self.gpu.launch(Kernel("experts_group"), launch, &params)? };

        let routed_order = halves_order(routed.gate.format(), wide[0]);
        halve_rows(self.gpu, part.x, halves, tokens, hidden, routed_order)?;
        let work = Work { order, list, item_count, items, of_item, pairs, k, wide: wide[0] };
        self.network(routed, halves, h, terms, part.weights, work)?;

        let mut shared_terms = Address::NULL;
        if let Some(shared) = shared {
            let shared_order = halves_order(shared.gate.format(), wide[1]);
            // The routed experts are done with theirs by then.
            if shared_order != routed_order {
                halve_rows(self.gpu, part.x, halves, tokens, hidden, shared_order)?;
            }
            let shared_h = take()?;
            // The sum reads each of these values before it writes there.
            shared_terms = part.out;
            let of_item = match tokens {
                _ if wide[1] => WIDE_ITEM,
                0..=8 => 8,
                9..=32 => 32,
                _ => 64,
            };
            let work = Work::all(tokens, of_item, wide[1]);
            self.network(shared, halves, shared_h, shared_terms, Address::NULL, work)?;
        }
        let params = Sum {
            terms,
            shared_terms,
            out: part.out,
            tokens: tokens as u32,
            k: k as u32,
            hidden: hidden as u32,
        };
        let launch = Launch::new((tokens * (hidden / 4)).div_ceil(256), 256);
        // SAFETY: `ExpertsSumParams`; every pair has its term.
        unsafe { self.gpu.launch(Kernel("experts_sum"), launch, &params) }
    }

    /// The products of one network with grouped tokens.
    fn network(
        &self,
        mlp: Mlp,
        x: Address,
        h: Address,
        terms: Address,
        weights: Address,
        work: Work,
    ) -> Result<()> {
        let params = GroupedGateUp {
            x,
            h,
            weights,
            order: work.order,
            items: work.list,
            item_count: work.item_count,
            gate: self.weight(mlp.gate)?,
            up: self.weight(mlp.up)?,
            pairs: work.pairs as u32,
            k: work.k as u32,
            h_order: halves_order(mlp.down.format(), work.wide),
            clamp: self.clamp,
        };
        let launch = self.launch(mlp.gate, 128, work);
        // SAFETY: `ExpertsGroupedGateUpParams`; `check_grouped` has seen formats and shapes.
        unsafe { self.gpu.launch(kernel("gate_up", mlp.gate, work)?, launch, &params)? };
        let params = GroupedDown {
            h,
            terms,
            order: work.order,
            items: work.list,
            item_count: work.item_count,
            down: self.weight(mlp.down)?,
            pairs: work.pairs as u32,
        };
        let launch = self.launch(mlp.down, 256, work);
        // SAFETY: `ExpertsGroupedDownParams`, as above.
        unsafe { self.gpu.launch(kernel("down", mlp.down, work)?, launch, &params) }
    }

    /// Blocks of `rows` rows of the weight, by items; or as many as run at once, which share that work.
    fn launch(&self, w: &Matrix, rows: usize, work: Work) -> Launch {
        let tables = if w.format() == Format::Iq2Xxs { TABLE_BYTES } else { 0 };
        let row_blocks = w.rows().div_ceil(rows);
        let launch = match work.wide {
            true => Launch::new(self.gpu.multiprocessors().min(row_blocks * work.items), 256),
            false => Launch::new(row_blocks, 256).grid_y(work.items),
        };
        let stages = match work.wide {
            true => wide_bytes(w.format(), 256, work.of_item),
            false => 512 * work.of_item,
        };
        launch.shared(tables + stages)
    }
}

/// Which pairs go where.
#[derive(Clone, Copy)]
struct Work {
    order: Address,
    list: Address,
    item_count: Address,
    items: usize,
    of_item: usize,
    pairs: usize,
    k: usize,
    /// Whether by the kernels for Hopper's matrix units.
    wide: bool,
}

impl Work {
    /// Every token once, to one network.
    fn all(tokens: usize, of_item: usize, wide: bool) -> Self {
        let none = Address::NULL;
        let items = tokens.div_ceil(of_item);
        let k = 1;
        Self { order: none, list: none, item_count: none, items, of_item, pairs: tokens, k, wide }
    }
}

fn format_name(format: Format) -> Option<usize> {
    match format {
        Format::Iq2Xxs => Some(0),
        Format::Q2K => Some(1),
        Format::Q4K => Some(2),
        Format::Q8_0 => Some(3),
        Format::F16 => Some(4),
        Format::F32 | Format::BF16 => None,
    }
}

/// By format (as [`format_name`] counts them) and pairs of an item: 8, 32, 64.
const GATE_UP: [[Kernel; 3]; 5] = [
    [
        Kernel("experts_gate_up_iq2_xxs_8"),
        Kernel("experts_gate_up_iq2_xxs_32"),
        Kernel("experts_gate_up_iq2_xxs_64"),
    ],
    [
        Kernel("experts_gate_up_q2_k_8"),
        Kernel("experts_gate_up_q2_k_32"),
        Kernel("experts_gate_up_q2_k_64"),
    ],
    [
        Kernel("experts_gate_up_q4_k_8"),
        Kernel("experts_gate_up_q4_k_32"),
        Kernel("experts_gate_up_q4_k_64"),
    ],
    [
        Kernel("experts_gate_up_q8_0_8"),
        Kernel("experts_gate_up_q8_0_32"),
        Kernel("experts_gate_up_q8_0_64"),
    ],
    [
        Kernel("experts_gate_up_f16_8"),
        Kernel("experts_gate_up_f16_32"),
        Kernel("experts_gate_up_f16_64"),
    ],
];

const DOWN: [[Kernel; 3]; 5] = [
    [
        Kernel("experts_down_iq2_xxs_8"),
        Kernel("experts_down_iq2_xxs_32"),
        Kernel("experts_down_iq2_xxs_64"),
    ],
    [Kernel("experts_down_q2_k_8"), Kernel("experts_down_q2_k_32"), Kernel("experts_down_q2_k_64")],
    [Kernel("experts_down_q4_k_8"), Kernel("experts_down_q4_k_32"), Kernel("experts_down_q4_k_64")],
    [Kernel("experts_down_q8_0_8"), Kernel("experts_down_q8_0_32"), Kernel("experts_down_q8_0_64")],
    [Kernel("experts_down_f16_8"), Kernel("experts_down_f16_32"), Kernel("experts_down_f16_64")],
];

/// The kernel for Hopper's matrix units, of formats that models have there.
fn wide_kernel(part: &str, w: &Matrix) -> Option<Kernel> {
    match (part, w.format()) {
        ("gate_up", Format::Iq2Xxs) => Some(Kernel("experts_gate_up_wide_iq2_xxs")),
        ("gate_up", Format::Q4K) => Some(Kernel("experts_gate_up_wide_q4_k")),
        ("gate_up", Format::Q8_0) => Some(Kernel("experts_gate_up_wide_q8_0")),
        ("down", Format::Q2K) => Some(Kernel("experts_down_wide_q2_k")),
        ("down", Format::Q4K) => Some(Kernel("experts_down_wide_q4_k")),
        ("down", Format::Q8_0) => Some(Kernel("experts_down_wide_q8_0")),
        _ => None,
    }
}

fn kernel(part: &str, w: &Matrix, work: Work) -> Result<Kernel> {
    if let Some(kernel) = wide_kernel(part, w).filter(|_| work.wide) {
        return Ok(kernel);
    }
    let table = if part == "down" { &DOWN } else { &GATE_UP };
    let column = match work.of_item {
        8 => 0,
        32 => 1,
        _ => 2,
    };
    match format_name(w.format()) {
        Some(row) => Ok(table[row][column]),
        None => bail!("experts: no CUDA kernel for {part} in {}", w.format()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_structs_are_the_headers() {
        use std::mem::size_of;
        assert_eq!((size_of::<Group>(), size_of::<Sum>()), (48, 40));
        assert_eq!(size_of::<GroupedGateUp>(), 48 + 128 + 16);
        assert_eq!(size_of::<GroupedDown>(), 40 + 64 + 8);
    }
}
