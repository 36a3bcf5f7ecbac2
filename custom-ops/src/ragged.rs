//! A ragged batch: tokens of several sequences, flattened one after the other.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{bail, Device, Result, Tensor};

use crate::device::upload;

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
    /// By ratio: what [`Ragged::window_starts`] has made.
    starts: Arc<Mutex<Vec<(usize, Tensor)>>>,
    /// Of a batch that moves: no position reaches this far.
    fixed: Option<usize>,
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
        Ok(Self { spans, table, positions, starts: Arc::default(), fixed: None })
    }

    /// One token of each of some sequences, at positions below `reach` that are yet to be set with
    /// [`Ragged::set_starts`].
    ///
    /// Nothing that a step takes from such a batch changes its shape or its place with the positions,
    /// so that a step that was recorded can be replayed: each sequence has one row of windows, used or
    /// not.
    ///
    /// # Errors
    /// If the device refuses the upload.
    pub fn fixed(sequences: usize, reach: usize, device: &Device) -> Result<Self> {
        Ok(Self { fixed: Some(reach), ..Self::new(&vec![(0, 1); sequences], device)? })
    }

    /// Moves the tokens of a [`Ragged::fixed`] batch to other positions, in the memory that they have.
    ///
    /// # Errors
    /// If the batch is of another kind or size, a position out of its reach, or the device refuses the
    /// upload.
    pub fn set_starts(&mut self, starts: &[usize]) -> Result<()> {
        let Some(reach) = self.fixed.filter(|_| starts.len() == self.spans.len()) else {
            let sequences = self.spans.len();
            bail!("ragged batch: {} positions for {sequences} fixed sequences", starts.len());
        };
        let too_far = |&&p: &&usize| p >= reach || u32::try_from(p + 1).is_err();
        if let Some(position) = starts.iter().find(too_far) {
            bail!("ragged batch: position {position}, made for positions below {reach}");
        }
        for (span, &start) in self.spans.iter_mut().zip(starts) {
            span.start = start;
        }
        upload(&self.table, &table_of(&self.spans))?;
        for (ratio, tensor) in self.starts.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            upload(tensor, &self.starts_of(*ratio))?;
        }
        Ok(())
    }

    /// Whether the batch was made by [`Ragged::fixed`].
    pub fn is_fixed(&self) -> bool {
        self.fixed.is_some()
    }

    /// Rows that the windows of `ratio` tokens take which end in this batch, sequence by sequence.
    pub fn window_rows(&self, ratio: usize) -> usize {
        (0..self.spans.len()).map(|sequence| self.window_rows_of(sequence, ratio)).sum()
    }

    /// The same of one sequence; of a [`Ragged::fixed`] batch always one, whether a window ends or not.
    pub fn window_rows_of(&self, sequence: usize, ratio: usize) -> usize {
        match self.fixed {
            Some(_) => 1,
            None => self.spans.get(sequence).map_or(0, |span| span.windows(ratio).len()),
        }
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

    /// Positions `[rows]` u32 of the first token of each window of `ratio` tokens that ends inside this
    /// batch, one for each of [`Ragged::window_rows`]: what the compressed rows are rotated by.
    ///
    /// # Errors
    /// If the device refuses the upload.
    pub fn window_starts(&self, ratio: usize) -> Result<Tensor> {
        let mut known = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tensor)) = known.iter().find(|(of, _)| *of == ratio) {
            return Ok(tensor.clone());
        }
        let starts = self.starts_of(ratio);
        let rows = starts.len();
        let tensor = Tensor::from_vec(starts, rows, self.positions.device())?;
        known.push((ratio, tensor.clone()));
        Ok(tensor)
    }

    fn starts_of(&self, ratio: usize) -> Vec<u32> {
        let start = |window: usize| (window * ratio) as u32;
        match self.fixed {
            Some(_) => self.spans.iter().map(|span| start(span.start / ratio)).collect(),
            None => self.spans.iter().flat_map(|s| s.windows(ratio)).map(start).collect(),
        }
    }

    /// Tokens up to which a sequence may grow before what an op has launched for this batch is too small:
    /// those of the longest sequence, or the reach of a [`Ragged::fixed`] batch.
    pub fn horizon(&self) -> usize {
        self.fixed.unwrap_or_else(|| self.spans.iter().map(Span::end).max().unwrap_or(0))
    }

    /// The most compressed rows that any token of this batch can see, or that one of a
    /// [`Ragged::fixed`] batch will.
    pub fn max_visible(&self, ratio: usize) -> usize {
        self.horizon() / ratio
    }
}

/// The content of [`Ragged::table`]; its numbers are known to fit.
fn table_of(spans: &[Span]) -> Vec<u32> {
    let positions = spans.iter().flat_map(|span| span.start..span.end());
    let sequences = spans.iter().enumerate().flat_map(|(i, s)| std::iter::repeat_n(i, s.len));
    let spans = spans.iter().flat_map(|span| [span.row, span.len, span.start]);
    positions.chain(sequences).chain(spans).map(|n| n as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_batch_moves_in_place_and_keeps_its_shape() -> Result<()> {
        let mut fixed = Ragged::fixed(3, 1 << 20, &Device::Cpu)?;
        let positions = fixed.positions().clone();
        let starts = fixed.window_starts(4)?;
        for at in [[0, 3, 127], [4, 7, 8], [1_048_574, 1, 2]] {
            fixed.set_starts(&at)?;
            let plain = Ragged::new(&at.map(|start| (start, 1)), &Device::Cpu)?;
            assert_eq!(fixed.spans(), plain.spans());
            assert_eq!(positions.to_vec1::<u32>()?, at.map(|p| p as u32));
            assert_eq!(fixed.table.to_vec1::<u32>()?, plain.table.to_vec1::<u32>()?);
            assert_eq!(starts.to_vec1::<u32>()?, at.map(|p| (p / 4 * 4) as u32));
            assert_eq!((fixed.window_rows(4), fixed.window_rows_of(2, 128)), (3, 1));
        }
        assert!(fixed.set_starts(&[1, 2]).is_err());
        assert!(fixed.set_starts(&[1, 2, 1 << 20]).is_err());
        assert_eq!(fixed.max_visible(4), 1 << 18);
        assert!(Ragged::new(&[(0, 1)], &Device::Cpu)?.set_starts(&[1]).is_err());
        Ok(())
    }
}
