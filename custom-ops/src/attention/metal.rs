//! The launches: one for each sequence, and one more that joins the shares of few tokens with many rows.

use candle_core::{bail, DType, Result, Tensor};

use super::{Attend, Attention, Compressed, Selection};
use crate::device::metal::{library, parameters, Binding, Launch, Library, Output};
use crate::device::{on_metal, Workspace};
use crate::ragged::{Ragged, Span};
use crate::{RopeTable, RowFormat};

/// The head that the kernels are made for.
const DIM: usize = 512;
/// Heads and threads of a threadgroup.
const HEADS: usize = 16;
const THREADS: usize = 256;
/// Heads of a threadgroup that has few tokens' rows whole, and rows up to which it has: more are worth
/// a second launch.
const WHOLE_HEADS: usize = 2;
const WHOLE_ROWS: usize = 1024;
const JOIN_THREADS: usize = 128;
/// Tokens from which on every token's rows stay together.
const MANY_TOKENS: usize = 8;
/// Threadgroups that keep a large GPU busy.
const BUSY: usize = 128;
/// The least rows that are worth a threadgroup of their own.
const LEAST_SHARE: usize = 32;
/// Pairs of channels that the kernels turn.
const MOST_PAIRS: usize = 32;

parameters! {
    struct Params {
        heads: u32,
        row: u32,
        start: u32,
        slots: u32,
        window: u32,
        ratio: u32,
        chosen: u32,
        rows: u32,
        page_rows: u32,
        row_bytes: u32,
        splits: u32,
        scale: f32,
        pairs: u32,
        norm_eps: f32,
        frequencies: [f32; MOST_PAIRS],
    }
}

fn kernels() -> &'static Library {
    library!()
}

/// Whether the kernels turn queries and results of this batch themselves, and write the rings: nobody may
/// attend to the slots that they overwrite.
pub(super) fn turns_itself(of: &Attention<'_>, rope: &RopeTable) -> Result<bool> {
    let (_, _, dim) = of.q.dims3()?;
    let few = |(span, ring): (&Span, &&crate::Ring)| {
        span.len < MANY_TOKENS && ring.slots() + 1 >= of.window + span.len
    };
    Ok(dim == DIM
        && rope.frequencies().len() <= MOST_PAIRS
        && of.windows.len() == of.batch.spans().len()
        && of.batch.spans().iter().zip(of.windows).all(few))
}

/// Rows that the last token of a span attends to at most.
fn most_rows(window: usize, compressed: Option<&Compressed<'_>>, span: &Span) -> Result<usize> {
    let chosen = match compressed.map(|c| c.selection) {
        None => 0,
        Some(Selection::Visible { ratio }) => span.end() / ratio.max(1),
        Some(Selection::Chosen(ids)) => ids.dim(1)?,
    };
    Ok(window.min(span.end()) + chosen)
}

/// Into how many shares a span's rows are split; none if they stay together.
fn splits(heads: usize, tokens: usize, rows: usize) -> Option<usize> {
    if tokens >= MANY_TOKENS || rows <= WHOLE_ROWS {
        return None;
    }
    let groups = heads.div_ceil(HEADS) * tokens.max(1);
    Some(BUSY.div_ceil(groups).min(rows / LEAST_SHARE))
}

/// Room for the results of shares: maximum, weight and sums of each head.
pub(super) fn partial_results(
    heads: usize,
    window: usize,
    compressed: Option<&Compressed<'_>>,
    batch: &Ragged,
    ws: &Workspace,
) -> Result<Tensor> {
    let mut most = 1;
    if on_metal(ws.device()) {
        for span in batch.spans() {
            if let Some(splits) = splits(heads, span.len, most_rows(window, compressed, span)?) {
                most = most.max(span.len * heads * splits * (DIM + 2));
            }
        }
    }
    ws.f32(most)
}

impl Attend<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let (_, heads, dim) = self.q.dims3()?;
        if dim != DIM {
            bail!("attention: Metal kernels have heads of {DIM} values, not {dim}");
        }
        let (mut pairs, mut norm_eps, mut frequencies) = (0, 0.0, [0.0; MOST_PAIRS]);
        if let Some(turn) = self.turn {
            let table = turn.rope.frequencies();
            (pairs, norm_eps) = (table.len(), turn.eps as f32);
            frequencies[..pairs].copy_from_slice(table);
        }
        let turning = self.turn.is_some();
        for (index, (span, ring)) in self.batch.spans().iter().zip(self.windows).enumerate() {
            let rows = self.compressed.as_ref().map(|c| c.rows[index]);
            let (ratio, chosen) = match self.compressed.as_ref().map(|c| c.selection) {
                None => (0, None),
                Some(Selection::Visible { ratio }) => (ratio, None),
                Some(Selection::Chosen(ids)) => (0, Some(ids)),
            };
            let format = rows.map_or(RowFormat::F32 { width: dim }, |rows| rows.format());
            let packed = match format {
                RowFormat::F32 { .. } => false,
                RowFormat::Fp8 { nope: 448, rope: 64 } => true,
                other => bail!("attention: no Metal kernel reads rows of {other:?}"),
            };
            let k = chosen.map_or(Ok(0), |ids| ids.dim(1))?;
            let shares =
                splits(heads, span.len, most_rows(self.window, self.compressed.as_ref(), span)?);
            let params = Params {
                heads: heads as u32,
                row: span.row as u32,
                start: span.start as u32,
                slots: ring.slots() as u32,
                window: self.window as u32,
                ratio: ratio as u32,
                chosen: k as u32,
                rows: rows.map_or(0, |rows| rows.len()) as u32,
                page_rows: rows.map_or(1, |rows| rows.page_rows()) as u32,
                row_bytes: format.row_bytes() as u32,
                splits: shares.unwrap_or(1) as u32,
                scale: self.scale,
                pairs: pairs as u32,
                norm_eps,
                frequencies,
            };
            let pages = match rows {
                Some(rows) => rows.metal("attention")?,
                None => Vec::new(),
            };
            let ids = match chosen {
                Some(ids) => Binding::tensor("attention", ids, DType::U32)?.skip(span.row * k * 4),
                None => Binding::tensor("attention", self.sinks, DType::F32)?,
            };
            let (kernel, groups) = match shares {
                Some(shares) => ("attend", [shares, heads.div_ceil(HEADS), span.len]),
                None if span.len >= MANY_TOKENS => {
                    ("attend_many", [heads.div_ceil(HEADS), span.len, 1])
                }
                None => ("attend_whole", [heads.div_ceil(WHOLE_HEADS), span.len, 1]),
            };
            let launch = Launch::new("attention", kernels(), kernel, &params)
                .constants(&[packed, turning])
                .table(&pages, crate::kv::RECENT_PAGES)
                .read(self.q)?
                .read(self.kv)?;
            let launch = match turning {
                true => launch.write_tensor(ring.data(), DType::F32)?,
                false => launch.read(ring.data())?,
            };
            let launch = launch.bind(ids);
            if shares.is_none() {
                launch.read(self.sinks)?.write(out).run(&out.gpu, groups, THREADS)?;
                continue;
            }
            launch.write_tensor(&self.partial, DType::F32)?.run(&out.gpu, groups, THREADS)?;
            Launch::new("attention", kernels(), "attend_join", &params)
                .constants(&[packed, turning])
                .read(&self.partial)?
                .read(self.sinks)?
                .write(out)
                .run(&out.gpu, [heads, span.len, 1], JOIN_THREADS)?;
        }
        Ok(())
    }
}
