//! Products of activations with a weight.

mod cpu;
#[cfg(any(feature = "metal", feature = "metal-emulator"))]
mod metal;
mod panels;
mod strips;
mod tile;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

use crate::device::{host, host_mut, timed, Workspace};
use crate::Matrix;

#[cfg(any(feature = "metal", feature = "metal-emulator"))]
pub(crate) use metal::{TILE as METAL_TILE, TILE_THREADS as METAL_TILE_THREADS};
pub(crate) use panels::Panels;
pub(crate) use strips::{for_each_strip, work};
pub(crate) use tile::{tile, with_scratch, Scratch, TILE_ROWS};

/// `out[t] = W·x[t]`.
///
/// Shapes: `x` `[tokens, cols]` f32 · `w` `[rows, cols]` in any block format · result
/// `[tokens, rows]`.
/// Errors: shapes that do not fit each other (names both).
///
/// On the CPU activations stay f32, and a value is computed by the same operations in the same
/// order however many tokens or threads there are: eight interleaved sums over ascending columns,
/// one fused multiply-add a term, then a fixed sum of the eight.
pub fn matmul(x: &Tensor, w: &Matrix, ws: &Workspace) -> Result<Tensor> {
    grouped_matmul(x, w, 1, ws)
}

/// The product with a block-diagonal weight: `out[t, g] = W[g]·x[t, g]` for each group `g`.
///
/// Shapes: `x` `[tokens, groups · cols]` f32 · `w` `[groups · rank, cols]`, group after group, in
/// any block format · result `[tokens, groups · rank]`.
/// Errors: shapes that do not fit each other (names both).
/// Source: grouped output projection of the DeepSeek V4 paper. Arithmetic as in [`matmul`].
pub fn grouped_matmul(x: &Tensor, w: &Matrix, groups: usize, ws: &Workspace) -> Result<Tensor> {
    let (stack, rows, cols) = (w.stack(), w.rows(), w.cols());
    if stack != 1 {
        bail!("matmul: needs a single weight, got a stack [{stack}, {rows}, {cols}]");
    }
    if groups == 0 || rows % groups != 0 {
        bail!("matmul: a weight [{rows}, {cols}] does not divide into {groups} groups of rows");
    }
    let tokens = match *x.dims() {
        [tokens, width] if Some(width) == groups.checked_mul(cols) => tokens,
        ref dims => bail!("matmul: x {dims:?} for a weight [{rows}, {cols}] in {groups} group(s)"),
    };
    let out = ws.f32((tokens, rows))?;
    timed(
        &out,
        || Ok((format!("matmul {} [{rows}, {cols}]", w.format()), w.byte_len())),
        || out.inplace_op1(&MatMul { x, w, groups }),
    )?;
    Ok(out)
}

struct MatMul<'a> {
    x: &'a Tensor,
    w: &'a Matrix,
    groups: usize,
}

impl InplaceOp1 for MatMul<'_> {
    fn name(&self) -> &'static str {
        "matmul"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, out, layout);
        let out = host_mut::<f32>(self.name(), out, layout)?;
        let x = host::<f32>(self.name(), self.x)?;
        let shape = cpu::Shape { groups: self.groups, rows: self.w.rows(), cols: self.w.cols() };
        cpu::matmul(&x, self.w.host(self.name())?, shape, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
