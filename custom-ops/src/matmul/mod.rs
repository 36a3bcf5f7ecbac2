//! Products of activations with a weight.

mod cpu;
#[cfg(cuda_kernels)]
pub(crate) mod cuda;
#[cfg(metal_kernels)]
mod metal;
mod panels;
mod strips;
mod tile;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
#[cfg(cuda_kernels)]
use crate::device::cuda::{Gpu, Target};
use crate::device::{host, host_mut, timed, Workspace};
use crate::Matrix;

#[cfg(metal_kernels)]
pub(crate) use metal::{
    dense_code as metal_dense_code, one_launch as metal_one_launch, TILE as METAL_TILE,
    TILE_THREADS as METAL_TILE_THREADS,
};
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
///
/// On NVIDIA GPUs up to 32 tokens go through Q8_0 weights as signed bytes with an f32 scale for 32, and
/// through F16 weights as they are; more tokens as halves, on the matrix units, if columns are a multiple
/// of 64. Other formats and shapes stay f32, at less speed. Sums have a fixed order, which depends on
/// the kernel.
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
    // Of an `x` without rows the op has more to say.
    let out = ws.f32((x.dims().first().copied().unwrap_or(0), w.rows()))?;
    product(x, w, groups, &out, ws)?;
    Ok(out)
}

/// [`matmul`] into `out` `[tokens, rows]`, which may be some rows of a larger tensor.
///
/// Errors: as [`matmul`], and an `out` of another shape.
pub fn matmul_into(x: &Tensor, w: &Matrix, out: &Tensor, ws: &Workspace) -> Result<()> {
    product(x, w, 1, out, ws)
}

#[cfg_attr(not(cuda_kernels), allow(unused_variables, reason = "scratch is for GPUs"))]
fn product(x: &Tensor, w: &Matrix, groups: usize, out: &Tensor, ws: &Workspace) -> Result<()> {
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
    if out.dims() != [tokens, rows] {
        bail!("matmul: a result {:?} of {tokens} tokens and a weight [{rows}, {cols}]", out.dims());
    }
    #[cfg(cuda_kernels)]
    let scratch = match Gpu::of(x.device())? {
        Some(gpu) => ws.scratch(cuda::scratch_bytes(&gpu, &[w], tokens, groups)?)?,
        None => None,
    };
    let op = MatMul {
        x,
        w,
        groups,
        #[cfg(cuda_kernels)]
        scratch,
    };
    timed(
        out,
        || Ok((format!("matmul {} [{rows}, {cols}]", w.format()), w.byte_len())),
        || out.inplace_op1(&op),
    )
}

/// [`matmul`] of several weights with the same activations: on a GPU one launch where it can be, so that
/// small weights are read together.
///
/// Errors: as [`matmul`].
pub fn matmuls(x: &Tensor, weights: &[&Matrix], ws: &Workspace) -> Result<Vec<Tensor>> {
    #[cfg(gpu_kernels)]
    let outs = |tokens: usize| -> Result<Vec<Tensor>> {
        weights.iter().map(|w| ws.f32((tokens, w.rows()))).collect()
    };
    #[cfg(metal_kernels)]
    if crate::device::on_metal(x.device()) {
        let (tokens, width) = x.dims2()?;
        let fit = weights.iter().all(|w| w.stack() == 1 && w.cols() == width);
        if fit && metal::one_launch(weights, tokens) {
            let outs = outs(tokens)?;
            let op = MatMuls {
                x,
                weights,
                outs: &outs[1..],
                #[cfg(cuda_kernels)]
                scratch: None,
                #[cfg(cuda_kernels)]
                errand: None,
                #[cfg(cuda_kernels)]
                norm: None,
            };
            timed(&outs[0], || class_of(weights), || outs[0].inplace_op1(&op))?;
            return Ok(outs);
        }
    }
    #[cfg(cuda_kernels)]
    if let (Some(gpu), [_, ..]) = (Gpu::of(x.device())?, weights) {
        let (tokens, width) = x.dims2()?;
        let fit = weights.iter().all(|w| w.stack() == 1 && w.cols() == width);
        if fit && cuda::one_launch(&gpu, weights, tokens) {
            let outs = outs(tokens)?;
            let scratch = ws.scratch(cuda::scratch_bytes(&gpu, weights, tokens, 1)?)?;
            let errand = match cuda::runs_errands(&gpu, weights, tokens) {
                true => ws.take_errand(),
                false => None,
            };
            let op = MatMuls { x, weights, outs: &outs[1..], scratch, errand, norm: None };
            timed(&outs[0], || class_of(weights), || outs[0].inplace_op1(&op))?;
            return Ok(outs);
        }
    }
    weights.iter().map(|w| matmul(x, w, ws)).collect()
}

/// [`matmuls`] of one token's `x` after its RMS norm, where the launch before neither makes `x` nor lets the
/// next one begin before it has waited itself; [`cuda::norms`] says whether a GPU can.
#[cfg(cuda_kernels)]
pub(crate) fn normed_matmuls(
    x: &Tensor,
    norm: (&Tensor, f64),
    weights: &[&Matrix],
    ws: &Workspace,
) -> Result<Vec<Tensor>> {
    let outs = weights.iter().map(|w| ws.f32((1, w.rows()))).collect::<Result<Vec<_>>>()?;
    let Some(first) = outs.first() else { return Ok(outs) };
    let [shape, weight] = [x.dims(), norm.0.dims()];
    if weights.iter().any(|w| w.stack() != 1 || shape != [1, w.cols()] || weight != [w.cols()]) {
        bail!("matmul: x {shape:?} with a norm {weight:?} for weights of other columns");
    }
    let (errand, norm) = (ws.take_errand(), Some(norm));
    let op = MatMuls { x, weights, outs: &outs[1..], scratch: None, errand, norm };
    timed(first, || class_of(weights), || first.inplace_op1(&op))?;
    Ok(outs)
}

/// The first's format, and how much all are.
#[cfg(gpu_kernels)]
fn class_of(weights: &[&Matrix]) -> Result<(String, usize)> {
    let bytes = weights.iter().map(|w| w.byte_len()).sum();
    let rows: usize = weights.iter().map(|w| w.rows()).sum();
    let name = weights.first().map_or_else(String::new, |first| {
        format!("matmuls {} [{rows}, {}]", first.format(), first.cols())
    });
    Ok((name, bytes))
}

struct MatMul<'a> {
    x: &'a Tensor,
    w: &'a Matrix,
    groups: usize,
    #[cfg(cuda_kernels)]
    scratch: Option<Tensor>,
}

/// Writes the first product to the op's target, the others to `outs`.
#[cfg(gpu_kernels)]
struct MatMuls<'a> {
    x: &'a Tensor,
    weights: &'a [&'a Matrix],
    outs: &'a [Tensor],
    #[cfg(cuda_kernels)]
    scratch: Option<Tensor>,
    #[cfg(cuda_kernels)]
    errand: Option<crate::hyper_connection::Errand>,
    /// Weight of the norm that `x` has yet to go through, and what is added to the mean square.
    #[cfg(cuda_kernels)]
    norm: Option<(&'a Tensor, f64)>,
}

impl InplaceOp1 for MatMul<'_> {
    fn name(&self) -> &'static str {
        "matmul"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, out, layout);
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::matmul(self, Target::emulated(out, layout));
        }
        let out = host_mut::<f32>(self.name(), out, layout)?;
        let x = host::<f32>(self.name(), self.x)?;
        let shape = cpu::Shape { groups: self.groups, rows: self.w.rows(), cols: self.w.cols() };
        cpu::matmul(&x, self.w.host(self.name())?, shape, out);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::matmul(self, Target::cuda(out, layout))
    }
}

#[cfg(gpu_kernels)]
impl InplaceOp1 for MatMuls<'_> {
    fn name(&self) -> &'static str {
        "matmuls"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, _out: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, _out, _layout);
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::matmuls(self, Target::emulated(_out, _layout));
        }
        bail!("matmuls: meant for a GPU")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::matmuls(self, Target::cuda(out, layout))
    }
}

#[cfg(test)]
mod tests;
