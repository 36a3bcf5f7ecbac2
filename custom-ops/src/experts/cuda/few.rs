//! 2 to 32 tokens of the 2-bit model: a row is decoded once for the tokens of an item; kernel_few.cu.

use candle_core::Result;

use super::one::{fits, NO_WEIGHT};
use super::{Call, Part, Shape, Sum, TABLE_BYTES};
use crate::device::cuda::{Address, Kernel, Launch, Scratch, Weight};

/// `EXPERTS_FEW_…` of include/cuda/experts.h.
const TOKENS: usize = 32;
const PAIRS: usize = 256;
const OF_ITEM: usize = 4;
const PLAN_BYTES: usize = 16 * PAIRS + 2 * 4 * 16 + 16;

#[repr(C)]
#[derive(Clone, Copy)]
struct Sort {
    x: Address,
    ids: Address,
    quants: Address,
    scales: Address,
    mma_quants: Address,
    mma_scales: Address,
    order: Address,
    items: Address,
    totals: Address,
    tokens: u32,
    padded: u32,
    pairs: u32,
    experts: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GateUp {
    quants: Address,
    scales: Address,
    mma_quants: Address,
    mma_scales: Address,
    weights: Address,
    order: Address,
    items: Address,
    totals: Address,
    h: Address,
    shared_h: Address,
    gate: Weight,
    up: Weight,
    shared_gate: Weight,
    shared_up: Weight,
    tokens: u32,
    k: u32,
    clamp: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Quantize {
    h: Address,
    shared_h: Address,
    quants: Address,
    scales: Address,
    sums: Address,
    shared_quants: Address,
    shared_scales: Address,
    pairs: u32,
    tokens: u32,
    padded: u32,
    shared_cols: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Down {
    quants: Address,
    scales: Address,
    sums: Address,
    shared_quants: Address,
    shared_scales: Address,
    order: Address,
    items: Address,
    totals: Address,
    terms: Address,
    shared_terms: Address,
    down: Weight,
    shared_down: Weight,
    tokens: u32,
}

/// Tokens with room for whole products of eight.
fn padded(tokens: usize) -> usize {
    match tokens {
        0..=8 => 8,
        9..=16 => 16,
        _ => 32,
    }
}

impl Shape<'_> {
    /// Whether the kernels for few tokens fit: formats and shapes are those of one token.
    pub(super) fn is_few(&self, tokens: usize) -> bool {
        (2..=TOKENS).contains(&tokens)
            && tokens * self.k <= PAIRS
            && fits(self.routed, self.shared, self.k)
    }

    /// Bytes of the pieces of scratch, in the order in which they are taken.
    pub(super) fn few_pieces(&self, tokens: usize) -> Vec<usize> {
        let Self { hidden, inter, shared_inter, .. } = *self;
        let pairs = tokens * self.k;
        let items = self.routed.gate.stack().min(pairs) + pairs / OF_ITEM;
        let mut pieces = vec![
            tokens * hidden,
            tokens * hidden / 32 * 4,
            4 * pairs,
            16 * items,
            8,
            4 * pairs * inter,
            (pairs + 1) * inter,
            (pairs + 1) * inter / 32 * 4,
            (pairs + 1) * inter / 16 * 4,
            4 * pairs * hidden,
        ];
        if self.shared.is_some() {
            let padded = padded(tokens);
            pieces.extend([
                padded * hidden,
                padded * hidden / 32 * 4,
                4 * tokens * shared_inter,
                padded * shared_inter,
                padded * shared_inter / 32 * 4,
                4 * tokens * hidden,
            ]);
        }
        pieces
    }
}

impl Call<'_> {
    pub(super) fn few(&self, part: Part, scratch: &mut Scratch) -> Result<()> {
        let Shape { routed, shared, k, hidden, inter, shared_inter, .. } = self.shape;
        let Part { tokens, .. } = part;
        let (pairs, padded) = (tokens * k, padded(tokens));
        let mut pieces = self.shape.few_pieces(tokens).into_iter();
        let mut take = || match pieces.next() {
            Some(bytes) => scratch.take("experts", bytes),
            None => Ok(Address::NULL),
        };
        let (x_quants, x_scales) = (take()?, take()?);
        let (order, items, totals) = (take()?, take()?, take()?);
        let (h, quants, scales, sums, terms) = (take()?, take()?, take()?, take()?, take()?);
        // Null without a shared expert.
        let (mma_quants, mma_scales) = (take()?, take()?);
        let (shared_h, shared_quants, shared_scales, shared_terms) =
            (take()?, take()?, take()?, take()?);
        let of_shared = |pick: fn(super::Mlp) -> &crate::Matrix| match shared {
            Some(mlp) => self.weight(pick(mlp)),
            None => Ok(NO_WEIGHT),
        };

        let params = Sort {
            x: part.x,
            ids: part.ids,
            quants: x_quants,
            scales: x_scales,
            mma_quants,
            mma_scales,
            order,
            items,
            totals,
            tokens: tokens as u32,
            padded: padded as u32,
            pairs: pairs as u32,
            experts: routed.gate.stack() as u32,
        };
        // A warp for 128 values.
        let launch = Launch::new(1 + (tokens * hidden / 128).div_ceil(8), 256).shared(8 * PAIRS);
        // SAFETY: `ExpertsFewSortParams`; the list has room for as many items as there can be.
        unsafe { self.gpu.launch(Kernel("experts_few_sort"), launch, &params)? };

        let params = GateUp {
            quants: x_quants,
            scales: x_scales,
            mma_quants,
            mma_scales,
            weights: part.weights,
            order,
            items,
            totals,
            h,
            shared_h,
            gate: self.weight(routed.gate)?,
            up: self.weight(routed.up)?,
            shared_gate: of_shared(|mlp| mlp.gate)?,
            shared_up: of_shared(|mlp| mlp.up)?,
            tokens: tokens as u32,
            k: k as u32,
            clamp: self.clamp,
        };
        let blocks = self.gpu.multiprocessors();
        let of_tiles = if shared.is_some() { 1024 * padded } else { 0 };
        let launch = Launch::new(blocks, 512).shared(TABLE_BYTES + PLAN_BYTES + of_tiles);
        // SAFETY: `ExpertsFewGateUpParams`; `is_few` has compared formats and shapes.
        unsafe { self.gpu.launch(Kernel("experts_few_gate_up"), launch, &params)? };

        let params = Quantize {
            h,
            shared_h,
            quants,
            scales,
            sums,
            shared_quants,
            shared_scales,
            pairs: pairs as u32,
            tokens: tokens as u32,
            padded: padded as u32,
            shared_cols: shared_inter as u32,
        };
        let values = pairs * inter + tokens * shared_inter;
        let launch = Launch::new(values.div_ceil(1024), 256);
        // SAFETY: `ExpertsFewQuantizeParams`, as above.
        unsafe { self.gpu.launch(Kernel("experts_few_quantize"), launch, &params)? };

        let params = Down {
            quants,
            scales,
            sums,
            shared_quants,
            shared_scales,
            order,
            items,
            totals,
            terms,
            shared_terms,
            down: self.weight(routed.down)?,
            shared_down: of_shared(|mlp| mlp.down)?,
            tokens: tokens as u32,
        };
        let launch = Launch::new(blocks, 512).shared(PLAN_BYTES);
        // SAFETY: `ExpertsFewDownParams`, as above.
        unsafe { self.gpu.launch(Kernel("experts_few_down"), launch, &params)? };

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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_structs_are_the_headers() {
        use std::mem::size_of;
        assert_eq!((size_of::<Sort>(), size_of::<Quantize>()), (9 * 8 + 16, 7 * 8 + 16));
        assert_eq!((size_of::<GateUp>(), size_of::<Down>()), (80 + 256 + 16, 80 + 128 + 8));
    }
}
