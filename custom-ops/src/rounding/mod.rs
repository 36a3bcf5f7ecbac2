//! The rounding that the model was trained with: FP8 and BF16 of KV rows, Hadamard and FP4 of the
//! indexer.
//!
//! V4 was trained with its KV cache in eight bits and its indexer in four. Weights expect that
//! rounding, so it is applied even where values are kept in f32.

mod cpu;
#[cfg(cuda_kernels)]
mod cuda;
#[cfg(metal_kernels)]
mod metal;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor, D};

#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
#[cfg(cuda_kernels)]
use crate::device::cuda::Target;
use crate::device::{for_each_row, host_mut, timed};
pub(crate) use cpu::{fp4_scale, fp8_scale};

/// Values of a KV row that share a scale.
pub(crate) const FP8_BLOCK: usize = 64;
/// Values of an indexer's key or query that share a scale.
pub(crate) const FP4_BLOCK: usize = 32;

/// The rounding that a row gets before it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// None: as in implementations that leave it out.
    Off,
    /// FP8 of the channels that do not turn, BF16 of the others: rows that are attended to.
    Fp8 {
        /// How many do not turn.
        nope_dim: usize,
    },
    /// Hadamard, then FP4: the indexer's keys and queries.
    HadamardFp4,
}

impl Rounding {
    /// Rounds rows in place.
    ///
    /// # Errors
    /// If the rows do not have the channels.
    pub fn apply(self, rows: &Tensor) -> Result<()> {
        match self {
            Self::Off => Ok(()),
            Self::Fp8 { nope_dim } => kv_round_trip(rows, nope_dim),
            Self::HadamardFp4 => hadamard_fp4_round_trip(rows),
        }
    }
}

/// Rounds KV rows in place as they are kept: the first `nope` channels through FP8 E4M3 with one
/// power-of-two scale per block of 64, `s = 2^⌈log2(max(|x|max, 1e-4) / 448)⌉`,
/// `x ← e4m3(x / s) · s`; the others, which carry the position, through BF16. Ties go to even.
///
/// Shapes: `x` `[…, dim]` f32. Where 64 does not divide `nope`, blocks have the largest power of
/// two that does. Errors: more channels than the rows have.
/// Source: DeepSeek V4's reference inference code, whose KV cache is BF16 with that FP8 part.
pub fn kv_round_trip(x: &Tensor, nope: usize) -> Result<()> {
    let dim = x.dim(D::Minus1)?;
    if nope > dim {
        bail!("kv_round_trip: {nope} channels of rows of {dim}");
    }
    round(x, Round { name: "kv_round_trip", dim, form: Form::Kv { nope } })
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
    round(x, Round { name: "hadamard_fp4_round_trip", dim, form: Form::HadamardFp4 })
}

fn round(x: &Tensor, round: Round) -> Result<()> {
    timed(x, || Ok((round.name.to_owned(), 0)), || x.inplace_op1(&round))
}

/// The largest power of two that divides `channels`, at most `most`.
pub(crate) fn block_of(channels: usize, most: usize) -> usize {
    match channels {
        0 => most,
        _ => most.min(1 << channels.trailing_zeros()),
    }
}

/// What becomes of a row.
#[derive(Clone, Copy)]
enum Form {
    Kv { nope: usize },
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

    crate::device::metal_forward!();

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, x, layout);
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            let values = layout.shape().elem_count();
            return cuda::round(self, values, Target::emulated(x, layout));
        }
        let x = host_mut::<f32>(self.name, x, layout)?;
        for_each_row(x, self.dim, |_, row| match self.form {
            Form::Kv { nope } => {
                let (row, turned) = row.split_at_mut(nope);
                cpu::fp8_round_trip(row, block_of(nope, FP8_BLOCK));
                cpu::bf16_round_trip(turned);
            }
            Form::HadamardFp4 => {
                cpu::hadamard(row);
                cpu::fp4_round_trip(row, self.dim.min(FP4_BLOCK));
            }
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::round(self, layout.shape().elem_count(), Target::cuda(x, layout))
    }
}
