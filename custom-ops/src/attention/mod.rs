//! Attention over a sliding window and compressed rows, with a sink per head.

mod cpu;
#[cfg(cuda_kernels)]
mod cuda;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
#[cfg(cuda_kernels)]
use crate::device::cuda::Target;
use crate::device::{host, host_mut, timed, Workspace};
use crate::kv::{Ring, Rows};
use crate::ragged::Ragged;

/// Which compressed rows a token attends to, of those its sequence has.
#[derive(Clone, Copy, Debug)]
pub enum Selection<'a> {
    /// All rows whose window has ended: at position `p` the first `⌊(p+1)/ratio⌋`.
    Visible {
        /// Tokens in a window.
        ratio: usize,
    },
    /// The rows named in `[tokens, k]` u32, ascending; [`NO_ROW`](crate::NO_ROW) ends a list early.
    Chosen(&'a Tensor),
}

/// Compressed rows of each sequence of a batch, and which of them count.
#[derive(Clone, Copy, Debug)]
pub struct Compressed<'a> {
    /// One for each sequence.
    pub rows: &'a [&'a Rows],
    /// Which of them.
    pub selection: Selection<'a>,
}

/// Multi-query attention in which every row is key and value at once: with `s_r = q_h · row_r ·
/// scale` and `m = max(sink_h, max s)`, `out_h = Σ_r e^{s_r − m} row_r / (e^{sink_h − m} + Σ_r e^{s_r − m})`.
///
/// The rows of a token at position `p` are those of positions `p − window + 1 ..= p`, then its
/// compressed rows. A sink has no value: it takes weight and gives nothing.
///
/// Shapes: `q` `[tokens, heads, dim]` f32 · `kv` `[tokens, dim]` f32, the batch's own rows ·
/// `windows` one ring `[≥ window − 1 slots, dim]` for each sequence, read for positions before the
/// batch and not changed · `sinks` `[heads]` f32 → `[tokens, heads, dim]`.
/// Errors: shapes that do not fit; a chosen row that its sequence does not have.
/// Source: DeepSeek V4; sinks as in "Efficient Streaming Language Models with Attention Sinks"
/// (Xiao et al., 2023), learned per head.
///
/// On NVIDIA GPUs rows have 512 values and are multiplied as halves, which rows that were rounded to FP8
/// fit exactly; a choice that points past the rows is not looked for there.
#[allow(clippy::too_many_arguments)]
pub fn sink_attention(
    q: &Tensor,
    kv: &Tensor,
    windows: &[&Ring],
    window: usize,
    compressed: Option<Compressed<'_>>,
    sinks: &Tensor,
    scale: f32,
    batch: &Ragged,
    ws: &Workspace,
) -> Result<Tensor> {
    let (tokens, heads, dim) = q.dims3()?;
    if kv.dims() != [tokens, dim] || tokens != batch.tokens() {
        bail!("attention: q {:?}, kv {:?}, a batch of {}", q.dims(), kv.dims(), batch.tokens());
    }
    if sinks.dims() != [heads] {
        bail!("attention: sinks {:?} for {heads} heads", sinks.dims());
    }
    let sequences = batch.spans().len();
    if windows.len() != sequences {
        bail!("attention: {} windows for {sequences} sequences", windows.len());
    }
    for ring in windows {
        if ring.slots() + 1 < window || ring.data().dim(1)? != dim {
            bail!("attention: a ring {:?} for a window of {window}", ring.data().dims());
        }
    }
    if let Some(compressed) = &compressed {
        if compressed.rows.len() != sequences || compressed.rows.iter().any(|r| r.width() != dim) {
            bail!("attention: compressed rows do not fit {sequences} sequences of width {dim}");
        }
        if let Selection::Chosen(ids) = compressed.selection {
            if ids.dims2()?.0 != tokens {
                bail!("attention: choices {:?} for {tokens} tokens", ids.dims());
            }
        }
    }
    let out = ws.f32((tokens, heads, dim))?;
    timed(
        &out,
        || Ok(("attention".to_owned(), read_bytes(dim, window, compressed, batch))),
        || out.inplace_op1(&Attend { q, kv, windows, window, compressed, sinks, scale, batch }),
    )?;
    Ok(out)
}

/// Bytes of the rows that the last token of each sequence attends to.
fn read_bytes(dim: usize, window: usize, compressed: Option<Compressed>, batch: &Ragged) -> usize {
    let of_window = |end: usize| end.min(window) * dim * 4;
    let of_rows = |sequence: usize, end: usize| match compressed {
        Some(Compressed { rows, selection }) => {
            let rows = rows[sequence];
            let count = match selection {
                Selection::Visible { ratio } => end / ratio,
                Selection::Chosen(ids) => rows.len().min(ids.dim(1).unwrap_or(0)),
            };
            rows.bytes_of(count)
        }
        None => 0,
    };
    let spans = batch.spans().iter().map(|span| span.end()).enumerate();
    spans.map(|(sequence, end)| of_window(end) + of_rows(sequence, end)).sum()
}

struct Attend<'a> {
    q: &'a Tensor,
    kv: &'a Tensor,
    windows: &'a [&'a Ring],
    window: usize,
    compressed: Option<Compressed<'a>>,
    sinks: &'a Tensor,
    scale: f32,
    batch: &'a Ragged,
}

impl InplaceOp1 for Attend<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::attend(self, Target::emulated(out, layout));
        }
        let out = host_mut::<f32>(self.name(), out, layout)?;
        let (_, heads, dim) = self.q.dims3()?;
        let q = host::<f32>(self.name(), self.q)?;
        let kv = host::<f32>(self.name(), self.kv)?;
        let sinks = host::<f32>(self.name(), self.sinks)?;
        let chosen = match self.compressed.map(|c| c.selection) {
            Some(Selection::Chosen(ids)) => Some((host::<u32>(self.name(), ids)?, ids.dims2()?.1)),
            _ => None,
        };
        for (index, (span, ring)) in self.batch.spans().iter().zip(self.windows).enumerate() {
            let past = host::<f32>(self.name(), ring.data())?;
            let rows = match &self.compressed {
                Some(c) => Some((crate::kv::HostRows::new(self.name(), c.rows[index])?, c)),
                None => None,
            };
            let compressed = rows.as_ref().map(|(rows, c)| match (c.selection, &chosen) {
                (Selection::Visible { ratio }, _) => (rows, cpu::Picks::Visible { ratio }),
                (Selection::Chosen(_), Some((ids, k))) => {
                    let of_span = span.row * k..(span.row + span.len) * k;
                    (rows, cpu::Picks::Chosen { ids: &ids[of_span], k: *k })
                }
                (Selection::Chosen(_), None) => (rows, cpu::Picks::Chosen { ids: &[], k: 0 }),
            });
            let sequence = cpu::Sequence {
                span: *span,
                kv: &kv[span.row * dim..(span.row + span.len) * dim],
                past: &past,
                slots: ring.slots(),
                window: self.window,
                compressed,
                sinks: &sinks,
                scale: self.scale,
                heads,
                dim,
            };
            let of_span = span.row * heads * dim..(span.row + span.len) * heads * dim;
            sequence.attend(&q[of_span.clone()], &mut out[of_span])?;
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::attend(self, Target::cuda(out, layout))
    }
}

#[cfg(test)]
mod tests;
