//! The few tokens that can be chosen at all, read back in place of all scores.

#[cfg(cuda_kernels)]
mod cuda;
#[cfg(metal_kernels)]
mod metal;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(cuda_kernels)]
use crate::device::cuda::{Gpu, Target};
use crate::device::{on_metal, Workspace};

/// Rows of one launch.
const ROWS: usize = 32;
/// Tokens of a list at most.
const ROOM: usize = 254;

/// Which tokens can be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// Those whose score is at most so far below the best.
    pub reach: f32,
    /// Above 0.
    pub temperature: f32,
}

/// The tokens within a reach of the best.
#[derive(Clone, Debug, PartialEq)]
pub struct Shortlist {
    /// Ascending; none if a score of the row is not finite.
    pub ids: Vec<u32>,
    /// Their scores.
    pub scores: Vec<f32>,
    /// What their probabilities add up to, in the softmax over all tokens.
    pub share: f32,
}

/// One list for each row of `scores` `[rows, n]` f32; `None` for a row with more than 254 tokens in reach.
/// `None` of all where scores are not on a GPU: they are read faster there.
///
/// # Errors
/// If there is not one reach for each row, or the device fails.
pub fn shortlists(
    scores: &Tensor,
    wanted: &[Reach],
    ws: &Workspace,
) -> Result<Option<Vec<Option<Shortlist>>>> {
    let (rows, count) = scores.dims2()?;
    if wanted.len() != rows {
        bail!("shortlists: {} for {rows} rows", wanted.len());
    }
    let on_gpu = on_metal(scores.device());
    #[cfg(cuda_kernels)]
    let on_gpu = on_gpu || Gpu::of(scores.device())?.is_some();
    if on_gpu && (1..=ROWS).contains(&rows) && count > 0 {
        let _frame = ws.frame();
        let out = ws.u32((rows, 2 + 2 * ROOM))?;
        out.inplace_op1(&Listing { scores, wanted })?;
        let lists = out.to_vec2::<u32>()?;
        return Ok(Some(
            lists.iter().zip(wanted).map(|(list, wanted)| of_row(list, *wanted)).collect(),
        ));
    }
    Ok(None)
}

fn of_row(list: &[u32], wanted: Reach) -> Option<Shortlist> {
    let (found, sum) = (list[0], f32::from_bits(list[1]));
    if found == u32::MAX {
        return Some(Shortlist { ids: Vec::new(), scores: Vec::new(), share: 0.0 });
    }
    let found = found as usize;
    if found > ROOM {
        return None;
    }
    let (ids, scores) = list[2..].split_at(ROOM);
    let mut both: Vec<(u32, f32)> =
        ids.iter().zip(scores).take(found).map(|(&id, &bits)| (id, f32::from_bits(bits))).collect();
    both.sort_unstable_by_key(|(id, _)| *id);
    let best = both.iter().map(|(_, score)| *score).fold(f32::NEG_INFINITY, f32::max);
    let weights = both.iter().map(|(_, score)| ((score - best) / wanted.temperature).exp());
    let share = (weights.sum::<f32>() / sum).min(1.0);
    let (ids, scores) = both.into_iter().unzip();
    Some(Shortlist { ids, scores, share })
}

/// Writes the lists.
#[cfg_attr(not(gpu_kernels), allow(dead_code, reason = "for kernels"))]
struct Listing<'a> {
    scores: &'a Tensor,
    wanted: &'a [Reach],
}

impl InplaceOp1 for Listing<'_> {
    fn name(&self) -> &'static str {
        "shortlist"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, _out: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, _out, _layout);
        #[cfg(feature = "cuda-emulator")]
        if crate::device::cuda::emulating() {
            return cuda::list(self, Target::emulated(_out, _layout));
        }
        bail!("shortlist: a launch on a GPU")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::list(self, Target::cuda(out, layout))
    }
}
