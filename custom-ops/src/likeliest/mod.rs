//! The likeliest token of each row of scores, read back without the scores where a GPU has them.

#[cfg(cuda_kernels)]
mod cuda;
#[cfg(metal_kernels)]
mod metal;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(cuda_kernels)]
use crate::device::cuda::{Gpu, Target};
use crate::device::{on_metal, Workspace};

/// The index of the highest of each row of `scores` `[rows, n]` f32, `skip` left out; ties go to the lower
/// index. `None` for a row that has a score which is not finite.
///
/// # Errors
/// If rows are empty, or the device fails.
pub fn likeliest(scores: &Tensor, skip: Option<u32>, ws: &Workspace) -> Result<Vec<Option<u32>>> {
    let (rows, count) = scores.dims2()?;
    if count == 0 {
        bail!("likeliest: rows without scores");
    }
    let on_gpu = on_metal(scores.device());
    #[cfg(cuda_kernels)]
    let on_gpu = on_gpu || Gpu::of(scores.device())?.is_some();
    if on_gpu {
        let _frame = ws.frame();
        let out = ws.u32(rows)?;
        if rows > 0 {
            out.inplace_op1(&Likeliest { scores, skip })?;
        }
        let found = out.to_vec1::<u32>()?;
        return Ok(found.into_iter().map(|id| (id != u32::MAX).then_some(id)).collect());
    }
    let all = scores.to_vec2::<f32>()?;
    Ok(all.iter().map(|scores| of_row(scores, skip)).collect())
}

fn of_row(scores: &[f32], skip: Option<u32>) -> Option<u32> {
    let mut best = (f32::NEG_INFINITY, None);
    for (index, &score) in scores.iter().enumerate() {
        if !score.is_finite() {
            return None;
        }
        if score > best.0 && Some(index as u32) != skip {
            best = (score, Some(index as u32));
        }
    }
    best.1
}

/// Writes the indices.
#[cfg_attr(not(gpu_kernels), allow(dead_code, reason = "for kernels"))]
struct Likeliest<'a> {
    scores: &'a Tensor,
    skip: Option<u32>,
}

impl InplaceOp1 for Likeliest<'_> {
    fn name(&self) -> &'static str {
        "likeliest"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, _out: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, _out, _layout);
        #[cfg(feature = "cuda-emulator")]
        if crate::device::cuda::emulating() {
            return cuda::likeliest(self, Target::emulated(_out, _layout));
        }
        bail!("likeliest: a launch on a GPU, a loop on a CPU")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::likeliest(self, Target::cuda(out, layout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_lowest_of_equals_and_nothing_among_odd_ones() -> Result<()> {
        let ws = Workspace::new(&Device::Cpu);
        let scores = Tensor::new(
            &[[1f32, 5.0, 5.0, 2.0], [-3.0, -1.0, f32::NAN, 9.0], [f32::INFINITY, 0.0, 0.0, 0.0]],
            &Device::Cpu,
        )?;
        assert_eq!(likeliest(&scores, None, &ws)?, [Some(1), None, None]);
        assert_eq!(likeliest(&scores, Some(1), &ws)?, [Some(2), None, None]);
        Ok(())
    }
}
