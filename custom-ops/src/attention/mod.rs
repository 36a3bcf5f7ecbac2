//! Attention over a sliding window and compressed rows, with a sink per head.

mod cpu;
#[cfg(cuda_kernels)]
mod cuda;
#[cfg(metal_kernels)]
mod metal;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
#[cfg(cuda_kernels)]
use crate::device::cuda::{Gpu, Target};
use crate::device::{host, host_mut, on_metal, timed, Workspace};
use crate::kv::{write_rings, Ring, Rows};
use crate::ragged::{check_ratio, Ragged, Span};
use crate::{rms_norm, rope, rope_normed, RopeTable, Turn};

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

/// What attention works on.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Queries `[tokens, heads, dim]` f32.
    pub q: &'a Tensor,
    /// The batch's own rows `[tokens, dim]` f32.
    pub kv: &'a Tensor,
    /// One ring `[≥ window − 1 slots, dim]` for each sequence, read for positions before the batch.
    pub windows: &'a [&'a Ring],
    /// Positions that a token sees of those, its own included.
    pub window: usize,
    /// Further rows.
    pub compressed: Option<Compressed<'a>>,
    /// `[heads]` f32.
    pub sinks: &'a Tensor,
    /// Of the scores.
    pub scale: f32,
    /// Which token is whose.
    pub batch: &'a Ragged,
}

/// Multi-query attention in which every row is key and value at once: with `s_r = q_h · row_r ·
/// scale` and `m = max(sink_h, max s)`, `out_h = Σ_r e^{s_r − m} row_r / (e^{sink_h − m} + Σ_r e^{s_r − m})`.
///
/// The rows of a token at position `p` are those of positions `p − window + 1 ..= p`, then its
/// compressed rows. A sink has no value: it takes weight and gives nothing.
///
/// Shapes: see [`Attention`] → `[tokens, heads, dim]`. The windows are not changed.
/// Errors: shapes that do not fit; a ratio of 0; a chosen row that its sequence does not have.
/// Source: DeepSeek V4; sinks as in "Efficient Streaming Language Models with Attention Sinks"
/// (Xiao et al., 2023), learned per head.
///
/// On NVIDIA GPUs rows have 512 values and are multiplied as halves, which rows that were rounded to FP8
/// fit exactly; a choice that points past the rows is not looked for there.
pub fn sink_attention(of: Attention<'_>, ws: &Workspace) -> Result<Tensor> {
    attend(of, None, ws)
}

/// [`sink_attention`] with all that surrounds it: each head's query is brought to length one (RMS norm
/// without a weight) and turned to its position; what comes out is turned back, since values carry the
/// turn of their keys; and the batch's rows are written to the windows. Queries may be changed.
///
/// Shapes and errors: as [`sink_attention`] and [`rope`].
/// Source: DeepSeek V4.
pub fn turned_attention(
    of: Attention<'_>,
    rope_table: &RopeTable,
    eps: f64,
    ws: &Workspace,
) -> Result<Tensor> {
    #[cfg(metal_kernels)]
    if crate::device::on_metal(of.q.device()) && metal::turns_itself(&of, rope_table)? {
        return attend(of, Some(Turning { rope: rope_table, eps }), ws);
    }
    #[cfg(cuda_kernels)]
    if let Some(gpu) = Gpu::of(of.q.device())? {
        if cuda::turns_itself(&gpu, &of, rope_table)? {
            return attend(of, Some(Turning { rope: rope_table, eps }), ws);
        }
    }
    let positions = of.batch.positions();
    let q = if on_metal(of.q.device()) {
        let q = rms_norm(of.q, None, eps, ws)?;
        rope(&q, rope_table, positions, Turn::Forward)?;
        q
    } else {
        rope_normed(of.q, eps, rope_table, positions)?;
        of.q.clone()
    };
    let out = attend(Attention { q: &q, ..of }, None, ws)?;
    write_rings(&[(of.windows.to_vec(), of.kv)], of.batch)?;
    rope(&out, rope_table, positions, Turn::Inverse)?;
    Ok(out)
}

/// What a kernel does with queries and values itself.
#[derive(Clone, Copy)]
#[cfg_attr(not(gpu_kernels), allow(dead_code, reason = "for kernels"))]
struct Turning<'a> {
    rope: &'a RopeTable,
    eps: f64,
}

fn attend(of: Attention<'_>, turn: Option<Turning<'_>>, ws: &Workspace) -> Result<Tensor> {
    let Attention { q, kv, windows, window, compressed, sinks, batch, .. } = of;
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
        match compressed.selection {
            Selection::Visible { ratio } => check_ratio("attention", ratio)?,
            Selection::Chosen(ids) if ids.dims2()?.0 != tokens => {
                bail!("attention: choices {:?} for {tokens} tokens", ids.dims());
            }
            Selection::Chosen(_) => {}
        }
    }
    let out = ws.f32((tokens, heads, dim))?;
    #[cfg(metal_kernels)]
    let partial = metal::partial_results(heads, window, compressed.as_ref(), batch, ws)?;
    let attend = Attend {
        of,
        turn,
        #[cfg(metal_kernels)]
        partial,
    };
    timed(
        &out,
        || Ok(("attention".to_owned(), read_bytes(dim, window, compressed, batch))),
        || out.inplace_op1(&attend),
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
    of: Attention<'a>,
    #[cfg_attr(not(gpu_kernels), allow(dead_code, reason = "for kernels"))]
    turn: Option<Turning<'a>>,
    /// Where the shares of a token's rows wait to be joined.
    #[cfg(metal_kernels)]
    partial: Tensor,
}

impl<'a> std::ops::Deref for Attend<'a> {
    type Target = Attention<'a>;

    fn deref(&self) -> &Attention<'a> {
        &self.of
    }
}

impl InplaceOp1 for Attend<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, out, layout);
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
        let spans = self.batch.spans();
        let past: Vec<_> = self
            .windows
            .iter()
            .map(|ring| host::<f32>(self.name(), ring.data()))
            .collect::<Result<_>>()?;
        let rows: Vec<_> = match &self.compressed {
            Some(compressed) => compressed
                .rows
                .iter()
                .map(|rows| crate::kv::HostRows::new(self.name(), rows).map(Some))
                .collect::<Result<_>>()?,
            None => spans.iter().map(|_| None).collect(),
        };
        let picks = |span: &Span| match (self.compressed.map(|c| c.selection), &chosen) {
            (Some(Selection::Visible { ratio }), _) => cpu::Picks::Visible { ratio },
            (_, Some((ids, k))) => {
                let ids = &ids[span.row * k..(span.row + span.len) * k];
                cpu::Picks::Chosen { ids, k: *k }
            }
            (_, None) => cpu::Picks::Chosen { ids: &[], k: 0 },
        };
        let mut rest = out;
        let mut sequences = Vec::with_capacity(spans.len());
        for ((span, ring), (past, rows)) in
            spans.iter().zip(self.windows).zip(past.iter().zip(&rows))
        {
            let sequence = cpu::Sequence {
                span: *span,
                kv: &kv[span.row * dim..(span.row + span.len) * dim],
                past,
                slots: ring.slots(),
                window: self.window,
                compressed: rows.as_ref().map(|rows| (rows, picks(span))),
                sinks: &sinks,
                scale: self.scale,
                heads,
                dim,
            };
            let q = &q[span.row * heads * dim..(span.row + span.len) * heads * dim];
            // Spans are in order, without gaps.
            let (out, after) = rest.split_at_mut(q.len());
            rest = after;
            sequences.push((sequence, q, out));
        }
        cpu::attend_all(sequences)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::attend(self, Target::cuda(out, layout))
    }
}

#[cfg(test)]
mod tests;
