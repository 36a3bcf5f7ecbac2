//! The rounding that the model was trained with: FP8 of KV rows, Hadamard and FP4 of the indexer.
//!
//! V4 was trained with its KV cache in eight bits and its indexer in four. Weights expect that
//! rounding, so it is applied even where values are kept in f32.

mod cpu;
#[cfg(cuda_kernels)]
mod cuda;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor, D};

#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
#[cfg(cuda_kernels)]
use crate::device::cuda::Target;
use crate::device::{for_each_row, host_mut, timed};

/// Rounds the first `channels` of each row in place through FP8 E4M3 with one power-of-two scale
/// per block of 64: `s = 2^⌈log2(max(|x|max, 1e-4) / 448)⌉`, `x ← e4m3(x / s) · s`, ties to even.
///
/// Shapes: `x` `[…, dim]` f32. Where 64 does not divide `channels`, blocks have the largest power
/// of two that does. Errors: more channels than the rows have.
/// Source: DeepSeek V4's reference inference code (the KV part without position).
pub fn fp8_round_trip(x: &Tensor, channels: usize) -> Result<()> {
    let dim = x.dim(D::Minus1)?;
    if channels > dim {
        bail!("fp8_round_trip: {channels} channels of rows of {dim}");
    }
    let form = Form::Fp8 { channels, block: block_of(channels, 64) };
    timed(
        x,
        || Ok(("fp8_round_trip".to_owned(), 0)),
        || x.inplace_op1(&Round { name: "fp8_round_trip", dim, form }),
    )
}

/// Turns each row by the Walsh–Hadamard matrix (natural order, scaled by `dim^-1/2`), then rounds
/// it in place through FP4 E2M1 with one power-of-two scale per block of 32:
/// `s = 2^⌈log2(|x|max / 6)⌉`, ties to the even code.
///
/// Shapes: `x` `[…, dim]` f32, `dim` a power of two. Errors: another `dim`.
/// Source: DeepSeek V4's reference inference code (indexer queries and keys).
pub fn hadamard_fp4_round_trip(x: &Tensor) -> Result<()> {
    let dim = x.dim(D::Minus1)?;
    if !dim.is_power_of_two() {
        bail!("hadamard_fp4_round_trip: rows of {dim}, which is no power of two");
    }
    timed(
        x,
        || Ok(("hadamard_fp4_round_trip".to_owned(), 0)),
        || x.inplace_op1(&Round { name: "hadamard_fp4_round_trip", dim, form: Form::HadamardFp4 }),
    )
}

/// The largest power of two that divides `channels`, at most `most`.
fn block_of(channels: usize, most: usize) -> usize {
    match channels {
        0 => most,
        _ => most.min(1 << channels.trailing_zeros()),
    }
}

/// What becomes of a row.
#[derive(Clone, Copy)]
enum Form {
    Fp8 { channels: usize, block: usize },
    HadamardFp4,
}

struct Round {
    name: &'static str,
    dim: usize,
    form: Form,
}

impl InplaceOp1 for Round {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            let values = layout.shape().elem_count();
            return cuda::round(self, values, Target::emulated(x, layout));
        }
        let x = host_mut::<f32>(self.name, x, layout)?;
        for_each_row(x, self.dim, |_, row| match self.form {
            Form::Fp8 { channels, block } => cpu::fp8_round_trip(&mut row[..channels], block),
            Form::HadamardFp4 => {
                cpu::hadamard(row);
                cpu::fp4_round_trip(row, self.dim.min(32));
            }
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::round(self, layout.shape().elem_count(), Target::cuda(x, layout))
    }
}
