//! On NVIDIA GPUs: one token in two launches; kernel_one.cu.

use candle_core::{DType, Result};

use super::TABLE_BYTES;
use crate::blocks::Format;
use crate::device::cuda::{Address, Gpu, Kernel, Launch, Target, Weight};
use crate::experts::one::{ExpertsDown, GateUpOf, Route};
use crate::experts::Mlp;
use crate::hyper_connection::Spread;
use crate::router::cuda::Routing;

/// What the kernels are made for: columns of gate and up, columns of down, slots.
const HIDDEN: usize = 4096;
const INTER: usize = 2048;
const SLOTS: usize = 7;
/// Shared memory for the ranks of experts.
const KEYS_BYTES: usize = 4 * 1024;

/// Mirrors `ExpertsRoute` of include/cuda/experts.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct RouteParam {
    ids: Address,
    weights: Address,
    routing: Routing,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GateUp {
    x: Address,
    h: Address,
    ids: Address,
    route: RouteParam,
    gate: Weight,
    up: Weight,
    k: u32,
    clamp: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Down {
    h: Address,
    shared_gate: Address,
    shared_up: Address,
    out: Address,
    ids: Address,
    down: Weight,
    shared_down: Weight,
    k: u32,
    rounds: u32,
    clamp: f32,
    unused: u32,
    spread: Spread,
}

/// A weight that is not there.
pub(super) const NO_WEIGHT: Weight =
    Weight { plane: [Address::NULL; 3], stride: [0; 3], format: 0, stack: 0, rows: 0, cols: 0 };

/// Whether the kernels are for these experts, `k` a token.
pub(in crate::experts) fn fits(routed: Mlp, shared: Option<Mlp>, k: usize) -> bool {
    let Mlp { gate, up, down } = routed;
    let formats = [gate.format(), up.format(), down.format()];
    let routed = formats == [Format::Iq2Xxs, Format::Iq2Xxs, Format::Q2K]
        && (gate.cols(), gate.rows()) == (HIDDEN, INTER);
    let shared = shared.is_none_or(|Mlp { gate, up, down }| {
        [gate.format(), up.format(), down.format()] == [Format::Q8_0; 3]
            && gate.rows().is_multiple_of(256)
    });
    routed && shared && (1..=SLOTS).contains(&k)
}

/// Gate and up of the chosen experts; the target is `h`.
pub(in crate::experts) fn gate_up(op: &GateUpOf, h: Target) -> Result<()> {
    let name = "experts";
    let h = h.of(name, DType::F32)?;
    let gpu = h.gpu();
    let (x, ids) = (gpu.f32(name, op.x)?, gpu.u32(name, op.ids)?);
    let k = op.route.k()?;
    let mut held = Vec::new();
    let route = match op.route {
        Route::Chosen { ids, weights } => {
            let (ids, weights) = (gpu.u32(name, ids)?, gpu.f32(name, weights)?);
            let (routing, param) = (Routing::NONE, [ids.address(), weights.address()]);
            held.extend([ids, weights]);
            RouteParam { ids: param[0], weights: param[1], routing }
        }
        Route::Choose { logits, choice, k, scale } => {
            let (routing, inputs) = Routing::new(&gpu, logits, choice, k, scale)?;
            held.extend(inputs);
            RouteParam { ids: Address::NULL, weights: Address::NULL, routing }
        }
    };
    let blocks = gpu.multiprocessors();
    let params = GateUp {
        x: x.address(),
        h: h.address(),
        ids: ids.address(),
        route,
        gate: op.routed.gate.cuda(name, &gpu)?,
        up: op.routed.up.cuda(name, &gpu)?,
        k: k as u32,
        clamp: op.clamp,
    };
    let launch =
        Launch::new(blocks, 512).shared(TABLE_BYTES + HIDDEN + HIDDEN / 8 + 64 + KEYS_BYTES);
    // SAFETY: `ExpertsGateUpParams`; `fits` has compared formats and shapes.
    unsafe { gpu.launch(Kernel("experts_one_gate_up"), launch, &params) }
}

/// Their last products and the shared expert's, to memory.
pub(in crate::experts) fn down(op: &ExpertsDown, out: Target) -> Result<()> {
    let out = out.of("experts", DType::F32)?;
    launch_down(&out.gpu(), op, out.address(), Spread::NONE)
}

/// Whether they can be spread over streams `[4, hidden]`, and the blocks of that launch.
pub(crate) fn spreading_blocks(gpu: &Gpu, hidden: usize) -> Option<usize> {
    (hidden == HIDDEN).then(|| gpu.multiprocessors())
}

/// The same, spread over the streams.
pub(crate) fn spread(gpu: &Gpu, op: &ExpertsDown, spread: Spread) -> Result<()> {
    launch_down(gpu, op, Address::NULL, spread)
}

fn launch_down(gpu: &Gpu, op: &ExpertsDown, out: Address, spread: Spread) -> Result<()> {
    let name = "experts";
    let (h, ids) = (gpu.f32(name, &op.h)?, gpu.u32(name, &op.ids)?);
    let k = op.ids.elem_count();
    let mut shared = (Address::NULL, Address::NULL, NO_WEIGHT, 0);
    let mut held = Vec::new();
    if let Some(([gate, up], w)) = &op.shared {
        let (gate, up) = (gpu.f32(name, gate)?, gpu.f32(name, up)?);
        shared = (gate.address(), up.address(), w.cuda(name, gpu)?, w.cols());
        held.extend([gate, up]);
    }
    let blocks = gpu.multiprocessors();
    let rounds = (HIDDEN / 16).div_ceil(blocks);
    let (shared_gate, shared_up, shared_down, shared_inter) = shared;
    let params = Down {
        h: h.address(),
        shared_gate,
        shared_up,
        out,
        ids: ids.address(),
        down: op.down.cuda(name, gpu)?,
        shared_down,
        k: k as u32,
        rounds: rounds as u32,
        clamp: op.clamp,
        unused: 0,
        spread,
    };
    let room = if spread.is_some() { Spread::bytes(16 * rounds) } else { 0 };
    let values = k * INTER + shared_inter;
    let launch = Launch::new(blocks, 512).shared(values + values / 8 + rounds * 16 * 16 * 4 + room);
    // SAFETY: `ExpertsDownParams`, as above.
    unsafe { gpu.launch(Kernel("experts_one_down"), launch, &params) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_structs_are_the_headers() {
        assert_eq!(
            (size_of::<GateUp>(), size_of::<Down>()),
            (24 + 64 + 128 + 8, 40 + 128 + 16 + 40)
        );
    }
}
