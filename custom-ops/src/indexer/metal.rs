//! The launches: scores of all visible rows of some tokens, then the best of each.

use candle_core::{bail, DType, Result, Tensor};

use super::Select;
use crate::device::metal::{library, parameters, Launch, Library, Output};
use crate::device::{on_metal, Workspace};
use crate::ragged::{Ragged, Span};
use crate::{RopeTable, Rounding, RowFormat};

/// The head that the kernels are made for.
const DIM: usize = 128;
/// Rows and threads of a threadgroup that scores.
const ROWS: usize = 32;
const SCORE_THREADS: usize = 128;
const SELECT_THREADS: usize = 512;
/// Scores that are kept at a time: 64 MiB.
const MOST_SCORES: usize = 1 << 24;
/// Pairs of channels that the kernel for queries turns.
const MOST_PAIRS: usize = 32;
/// Rows, and fewer tokens than these, up to which queries are turned by whoever scores with them.
const FEW_ROWS: usize = 4096;
const MANY_TOKENS: usize = 8;

parameters! {
    struct Turn {
        pairs: u32,
        factor: f32,
        frequencies: [f32; MOST_PAIRS],
    }
}

parameters! {
    struct Params {
        heads: u32,
        row: u32,
        start: u32,
        ratio: u32,
        k: u32,
        stride: u32,
        page_rows: u32,
        row_bytes: u32,
        turn: Turn,
    }
}

fn kernels() -> &'static Library {
    library!()
}

/// Tokens of a span of `len` that are scored at once.
fn tokens_at_once(len: usize, visible: usize) -> usize {
    (MOST_SCORES / visible.max(1)).clamp(1, len.max(1))
}

/// Room for the scores of as many tokens as are treated at once.
pub(super) fn room_for_scores(ratio: usize, batch: &Ragged, ws: &Workspace) -> Result<Tensor> {
    let mut most = 1;
    if on_metal(ws.device()) {
        for span in batch.spans() {
            let visible = span.end() / ratio.max(1);
            most = most.max(tokens_at_once(span.len, visible) * visible);
        }
    }
    ws.f32(most)
}

/// Whether a kernel turns and rounds these queries.
pub(super) fn turns_itself(q: &Tensor, rope: &RopeTable, rounding: Rounding) -> Result<bool> {
    let fits = q.dim(2)? == DIM && rope.frequencies().len() <= MOST_PAIRS;
    Ok(on_metal(q.device()) && fits && rounding == Rounding::HadamardFp4)
}

impl Turn {
    fn new(rope: Option<&RopeTable>) -> Self {
        let table = rope.map_or(&[][..], RopeTable::frequencies);
        let mut frequencies = [0.0; MOST_PAIRS];
        frequencies[..table.len()].copy_from_slice(table);
        Self { pairs: table.len() as u32, factor: (DIM as f32).powf(-0.5), frequencies }
    }
}

impl Select<'_> {
    /// Whether so few threadgroups score that each may turn all queries again.
    fn turns_on_the_way(&self) -> bool {
        let few = |span: &Span| span.len < MANY_TOKENS && span.end() / self.ratio <= FEW_ROWS;
        self.batch.spans().iter().all(few)
    }

    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let (tokens, heads, dim) = self.q.dims3()?;
        if dim != DIM || heads % 8 != 0 {
            bail!("select_rows: Metal kernels have a multiple of 8 heads of {DIM}, not {heads} of {dim}");
        }
        let turn = Turn::new(self.turn);
        let turning = self.turn.is_some() && self.turns_on_the_way();
        if self.turn.is_some() && !turning {
            Launch::new("select_rows", kernels(), "index_queries", &turn)
                .constants(&[false, false])
                .read_u32(self.batch.positions())?
                .write_tensor(self.q, DType::F32)?
                .run(&out.gpu, [heads, tokens, 1], 32)?;
        }
        for (span, keys) in self.batch.spans().iter().zip(self.keys) {
            let visible = span.end() / self.ratio;
            let packed = match keys.format() {
                RowFormat::F32 { .. } => false,
                RowFormat::Fp4 { width: DIM } => true,
                other => bail!("select_rows: no Metal kernel reads keys of {other:?}"),
            };
            let pages = keys.metal("select_rows")?;
            let at_once = tokens_at_once(span.len, visible);
            for first in (0..span.len).step_by(at_once) {
                let tokens = at_once.min(span.len - first);
                let params = Params {
                    heads: heads as u32,
                    row: (span.row + first) as u32,
                    start: (span.start + first) as u32,
                    ratio: self.ratio as u32,
                    k: self.k as u32,
                    stride: visible as u32,
                    page_rows: keys.page_rows() as u32,
                    row_bytes: keys.format().row_bytes() as u32,
                    turn,
                };
                if visible > self.k {
                    Launch::new("select_rows", kernels(), "index_scores", &params)
                        .constants(&[packed, turning])
                        .table(&pages, crate::kv::RECENT_PAGES)
                        .read(self.q)?
                        .read(self.weights)?
                        .write_tensor(&self.scores, DType::F32)?
                        .run(&out.gpu, [visible.div_ceil(ROWS), tokens, 1], SCORE_THREADS)?;
                }
                Launch::new("select_rows", kernels(), "index_select", &params)
                    .read(&self.scores)?
                    .write(out)
                    .run(&out.gpu, [tokens, 1, 1], SELECT_THREADS)?;
            }
        }
        Ok(())
    }
}
