//! Partial, interleaved rotary position embedding, and its inverse.

mod cpu;
#[cfg(cuda_kernels)]
mod cuda;
#[cfg(metal_kernels)]
mod metal;
mod table;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
#[cfg(cuda_kernels)]
use crate::device::cuda::Target;
use crate::device::{for_each_row, host, host_mut, timed};
pub use table::{RopeTable, Yarn};

/// Which way to turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Queries, keys and compressed rows.
    Forward,
    /// The output of attention: values carry their rotation, so the query's is taken back.
    Inverse,
}

/// Rotates the last `2·n` channels of each head in place, `n` the number of frequencies: channels
/// `(2i, 2i+1)` of those turn by the angle `position · f_i`.
///
/// Shapes: `x` `[tokens, heads, dim]` or `[tokens, dim]` f32 · `positions` `[tokens]` u32.
/// Errors: fewer channels than the table has, another number of positions than of tokens.
/// Source: RoFormer (Su et al., 2021), in DeepSeek's interleaved form. The angle is the f32
/// product of position and frequency, as in the model's reference code: at long range its
/// rounding is part of the result.
pub fn rope(x: &Tensor, table: &RopeTable, positions: &Tensor, turn: Turn) -> Result<()> {
    let tokens = x.dim(0)?;
    let dim = x.dim(candle_core::D::Minus1)?;
    if table.channels() > dim {
        bail!("rope: {} channels to rotate in heads of {dim}", table.channels());
    }
    if positions.dims() != [tokens] {
        bail!("rope: {tokens} tokens with positions {:?}", positions.dims());
    }
    if tokens == 0 {
        return Ok(());
    }
    timed(
        x,
        || Ok(("rope".to_owned(), 0)),
        || x.inplace_op1(&Rope { table, positions, turn, per_token: x.elem_count() / tokens, dim }),
    )
}

/// [`rope`] forward of heads that are brought to length one first: each is divided by the root of the mean
/// of its squares, to which `eps` is added ([`rms_norm`](crate::rms_norm()) without a weight). In place, and
/// on a GPU in one pass over memory. There is no Metal kernel.
///
/// Shapes and errors: as [`rope`]. Source: as those; the queries of DeepSeek V4.
pub fn rope_normed(x: &Tensor, eps: f64, table: &RopeTable, positions: &Tensor) -> Result<()> {
    let (tokens, _, dim) = x.dims3()?;
    if table.channels() > dim || positions.dims() != [tokens] {
        bail!(
            "rope: {} channels to rotate in heads of {dim}, {tokens} tokens with positions {:?}",
            table.channels(),
            positions.dims()
        );
    }
    if x.elem_count() == 0 {
        return Ok(());
    }
    let per_token = x.elem_count() / tokens;
    timed(
        x,
        || Ok(("rope".to_owned(), 0)),
        || x.inplace_op1(&RopeNormed { table, positions, eps, per_token, dim }),
    )
}

struct RopeNormed<'a> {
    table: &'a RopeTable,
    positions: &'a Tensor,
    eps: f64,
    per_token: usize,
    dim: usize,
}

impl InplaceOp1 for RopeNormed<'_> {
    fn name(&self) -> &'static str {
        "rope_normed"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::rope_normed(self, Target::emulated(x, layout));
        }
        let x = host_mut::<f32>(self.name(), x, layout)?;
        let positions = host::<u32>(self.name(), self.positions)?;
        let (dim, frequencies, positions) = (self.dim, self.table.frequencies(), &*positions);
        for_each_row(x, self.per_token, |token, heads| {
            for head in heads.chunks_exact_mut(dim) {
                let scale = crate::rms_norm::scale(head, self.eps);
                head.iter_mut().for_each(|x| *x *= scale);
            }
            cpu::rotate(heads, dim, frequencies, positions[token], 1.0);
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::rope_normed(self, Target::cuda(x, layout))
    }
}

struct Rope<'a> {
    table: &'a RopeTable,
    positions: &'a Tensor,
    turn: Turn,
    per_token: usize,
    dim: usize,
}

impl InplaceOp1 for Rope<'_> {
    fn name(&self) -> &'static str {
        "rope"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, x, layout);
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::rope(self, Target::emulated(x, layout));
        }
        let x = host_mut::<f32>(self.name(), x, layout)?;
        let positions = host::<u32>(self.name(), self.positions)?;
        let sign = if self.turn == Turn::Inverse { -1.0 } else { 1.0 };
        let (dim, frequencies, positions) = (self.dim, self.table.frequencies(), &*positions);
        for_each_row(x, self.per_token, |token, heads| {
            cpu::rotate(heads, dim, frequencies, positions[token], sign);
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::rope(self, Target::cuda(x, layout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// The complex number `a + ib` of a pair times `e^{iθ}`, in f64.
    #[test]
    fn only_the_last_channels_turn_and_pairs_are_interleaved() -> Result<()> {
        let table = RopeTable::plain(10_000.0, 4);
        let x: Vec<f32> = (0..12).map(|v| v as f32 * 0.25 - 1.0).collect();
        let t = Tensor::from_vec(x.clone(), (1, 2, 6), &Device::Cpu)?;
        let positions = Tensor::new(&[7u32], &Device::Cpu)?;
        rope(&t, &table, &positions, Turn::Forward)?;
        let got = t.flatten_all()?.to_vec1::<f32>()?;
        for head in 0..2 {
            let (x, got) = (&x[head * 6..][..6], &got[head * 6..][..6]);
            assert_eq!(got[..2], x[..2]);
            for i in 0..2 {
                let angle = f64::from(7.0 * table.frequencies()[i]);
                let (a, b) = (f64::from(x[2 + 2 * i]), f64::from(x[3 + 2 * i]));
                let want = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos());
                assert!((f64::from(got[2 + 2 * i]) - want.0).abs() < 1e-6);
                assert!((f64::from(got[3 + 2 * i]) - want.1).abs() < 1e-6);
            }
        }
        Ok(())
    }

    #[test]
    fn the_inverse_undoes_the_rotation_at_any_position() -> Result<()> {
        let table = RopeTable::yarn(160_000.0, 64, &Yarn::default());
        let x = Tensor::randn(0f32, 1.0, (3, 5, 80), &Device::Cpu)?;
        let before = x.flatten_all()?.to_vec1::<f32>()?;
        let positions = Tensor::new(&[0u32, 4095, 1_048_575], &Device::Cpu)?;
        rope(&x, &table, &positions, Turn::Forward)?;
        rope(&x, &table, &positions, Turn::Inverse)?;
        for (a, b) in x.flatten_all()?.to_vec1::<f32>()?.iter().zip(before) {
            assert!((a - b).abs() < 1e-5, "{a} is not {b}");
        }
        Ok(())
    }

    #[test]
    fn a_table_wider_than_the_heads_is_refused() -> Result<()> {
        let x = Tensor::zeros((1, 1, 32), candle_core::DType::F32, &Device::Cpu)?;
        let positions = Tensor::new(&[0u32], &Device::Cpu)?;
        let table = RopeTable::plain(10_000.0, 64);
        let error = rope(&x, &table, &positions, Turn::Forward).unwrap_err().to_string();
        assert!(error.contains("64 channels to rotate in heads of 32"), "{error}");
        Ok(())
    }
}
