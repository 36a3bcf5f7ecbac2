//! A ragged batch: tokens of several sequences, flattened one after the other.

use candle_core::{bail, Device, Result, Tensor};

/// The tokens that one sequence contributes to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Row of its first token in the flattened batch.
    pub row: usize,
    /// How many tokens.
    pub len: usize,
    /// Position of the first of them in its sequence, from 0.
    pub start: usize,
}

impl Span {
    /// Position just past the last token.
    pub fn end(&self) -> usize {
        self.start + self.len
    }

    /// Windows of `ratio` tokens that end inside this span, as indices `from..to`.
    pub fn windows(&self, ratio: usize) -> std::ops::Range<usize> {
        self.start / ratio..self.end() / ratio
    }
}

/// Which rows of a flattened batch belong to which sequence, and at which positions.
#[derive(Clone, Debug)]
pub struct Ragged {
    spans: Vec<Span>,
    /// What kernels read, u32: positions `[tokens]`, the index of each token's sequence `[tokens]`, and
    /// row, length and start of each span.
    table: Tensor,
    positions: Tensor,
}

impl Ragged {
    /// Lays out sequences one after the other; each is `(start position, token count)`.
    ///
    /// # Errors
    /// If a position does not fit in 32 bits, or the device refuses the upload.
    pub fn new(sequences: &[(usize, usize)], device: &Device) -> Result<Self> {
        let mut spans = Vec::with_capacity(sequences.len());
        let mut row = 0;
        for &(start, len) in sequences {
            let span = Span { row, len, start };
            if u32::try_from(span.end()).is_err() {
                bail!("ragged batch: position {} does not fit in 32 bits", span.end());
            }
            spans.push(span);
            row += len;
        }
        let table = table_of(&spans);
        let len = table.len();
        let table = Tensor::from_vec(table, len, device)?;
        let positions = table.narrow(0, 0, row)?;
        Ok(Self { spans, table, positions })
    }

    /// What kernels read of the batch: its positions first.
    #[cfg(cuda_kernels)]
    pub(crate) fn table(&self) -> &Tensor {
        &self.table
    }

    /// Where in [`Ragged::table`] the tokens' sequences and the spans begin.
    #[cfg(cuda_kernels)]
    pub(crate) fn table_parts(&self) -> [usize; 2] {
        [self.tokens(), 2 * self.tokens()]
    }

    /// One span per sequence, in order, without gaps.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Positions `[tokens]` u32.
    pub fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.spans.last().map_or(0, |span| span.row + span.len)
    }

    /// Positions `[entries]` u32 of the first token of each window of `ratio` tokens that ends
    /// inside this batch, sequence by sequence: what the compressed entries are rotated by.
    ///
    /// # Errors
    /// If the device refuses the upload.
    pub fn window_starts(&self, ratio: usize) -> Result<Tensor> {
        let starts: Vec<u32> = self
            .spans
            .iter()
            .flat_map(|span| span.windows(ratio))
            .map(|window| (window * ratio) as u32)
            .collect();
        let entries = starts.len();
        Tensor::from_vec(starts, entries, self.positions.device())
    }

    /// The most compressed rows that any token of this batch can see.
    pub fn max_visible(&self, ratio: usize) -> usize {
        self.spans.iter().map(|span| span.end() / ratio).max().unwrap_or(0)
    }
}

/// The content of [`Ragged::table`]; its numbers are known to fit.
fn table_of(spans: &[Span]) -> Vec<u32> {
    let positions = spans.iter().flat_map(|span| span.start..span.end());
    let sequences = spans.iter().enumerate().flat_map(|(i, s)| std::iter::repeat_n(i, s.len));
    let spans = spans.iter().flat_map(|span| [span.row, span.len, span.start]);
    positions.chain(sequences).chain(spans).map(|n| n as u32).collect()
}
