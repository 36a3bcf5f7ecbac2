//! A ragged batch: tokens of several sequences, flattened one after the other.

use std::ops::Range;
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

    /// Windows of `ratio` tokens that end inside this span, as indices `from..to`; of 0 tokens none does.
    pub fn windows(&self, ratio: usize) -> Range<usize> {
        ended(self.start, ratio)..ended(self.end(), ratio)
    }
}

/// Windows of `ratio` tokens that the first `tokens` of a sequence fill.
fn ended(tokens: usize, ratio: usize) -> usize {
    tokens.checked_div(ratio).unwrap_or(0)
}

/// Refuses windows of no tokens: no place in a sequence tells how many of them there are.
pub(crate) fn check_ratio(op: &str, ratio: usize) -> Result<()> {
    if ratio == 0 {
        bail!("{op}: ratio 0: a window has at least one token");
    }
    Ok(())
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
    starts: Known<Tensor>,
    /// By tokens: what [`Ragged::slices`] has made.
    slices: Known<Arc<[Slice]>>,
    /// Of a batch that moves: no position reaches this far.
    fixed: Option<usize>,
}

/// What has been made of a batch, by a number.
type Known<T> = Arc<Mutex<Vec<(usize, T)>>>;

/// Some of a batch's tokens, one after the other, as a batch of their own.
#[derive(Clone, Debug)]
pub struct Slice {
    /// These tokens.
    pub batch: Ragged,
    /// Their rows in the whole batch.
    pub rows: Range<usize>,
    /// Which of the whole batch's sequences they belong to.
    pub sequences: Range<usize>,
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
        let (starts, slices) = Default::default();
        Ok(Self { spans, table, positions, starts, slices, fixed: None })
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
    /// If the ratio is 0, or the device refuses the upload.
    pub fn window_starts(&self, ratio: usize) -> Result<Tensor> {
        check_ratio("window_starts", ratio)?;
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

    /// Slices of at most `most` tokens, about as many in each: for what takes so much memory a token that a
    /// long batch goes through it part by part.
    ///
    /// # Errors
    /// If `most` is 0, the batch is a [`Ragged::fixed`] one, or the device refuses the upload.
    pub fn slices(&self, most: usize) -> Result<Arc<[Slice]>> {
        if most == 0 || self.fixed.is_some() {
            bail!("ragged batch: slices of at most {most} tokens, fixed {:?}", self.fixed);
        }
        let mut known = self.slices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, slices)) = known.iter().find(|(of, _)| *of == most) {
            return Ok(slices.clone());
        }
        let tokens = self.tokens();
        let each = tokens.div_ceil(tokens.div_ceil(most).max(1)).max(1);
        let slices = (0..tokens).step_by(each).map(|row| self.slice(row..tokens.min(row + each)));
        let slices: Arc<[Slice]> = slices.collect::<Result<_>>()?;
        known.push((most, slices.clone()));
        Ok(slices)
    }

    fn slice(&self, rows: Range<usize>) -> Result<Slice> {
        // Spans are in order, without gaps.
        let first = self.spans.partition_point(|span| span.row + span.len <= rows.start);
        let end = self.spans.partition_point(|span| span.row < rows.end);
        let of = |span: &Span| {
            let (from, to) = (span.row.max(rows.start), (span.row + span.len).min(rows.end));
            (span.start + from - span.row, to - from)
        };
        let sequences: Vec<_> = self.spans[first..end].iter().map(of).collect();
        let batch = Self::new(&sequences, self.positions.device())?;
        Ok(Slice { batch, rows, sequences: first..end })
    }

    fn starts_of(&self, ratio: usize) -> Vec<u32> {
        let start = |window: usize| (window * ratio) as u32;
        match self.fixed {
            Some(_) => self.spans.iter().map(|span| start(ended(span.start, ratio))).collect(),
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
        ended(self.horizon(), ratio)
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
    fn slices_are_the_batch_cut_where_its_sequences_go_on() -> Result<()> {
        let whole = Ragged::new(&[(0, 2), (40, 5), (7, 1), (9, 3)], &Device::Cpu)?;
        for most in 1..13 {
            let slices = whole.slices(most)?;
            assert_eq!(slices.len(), 11usize.div_ceil(most));
            let (mut positions, mut sequences) = (Vec::new(), Vec::new());
            for slice in slices.iter() {
                assert_eq!(slice.rows.start, positions.len());
                assert_eq!(slice.rows.len(), slice.batch.tokens());
                assert!(slice.rows.len() <= most && 1 + slice.rows.len() >= 11 / slices.len());
                assert_eq!(slice.sequences.len(), slice.batch.spans().len());
                positions.extend(slice.batch.positions().to_vec1::<u32>()?);
                for (sequence, span) in slice.sequences.clone().zip(slice.batch.spans()) {
                    sequences.extend(std::iter::repeat_n(sequence, span.len));
                }
            }
            assert_eq!(positions, whole.positions().to_vec1::<u32>()?);
            assert_eq!(sequences, [0, 0, 1, 1, 1, 1, 1, 2, 3, 3, 3]);
        }
        assert!(whole.slices(0).is_err());
        assert!(Ragged::fixed(3, 1 << 20, &Device::Cpu)?.slices(2).is_err());
        Ok(())
    }

    #[test]
    fn no_window_of_no_tokens_ends_anywhere() -> Result<()> {
        let batch = Ragged::new(&[(0, 2), (40, 5)], &Device::Cpu)?;
        assert!(batch.spans().iter().all(|span| span.windows(0).is_empty()));
        assert_eq!((batch.window_rows(0), batch.max_visible(0)), (0, 0));
        assert!(batch.window_starts(0).unwrap_err().to_string().contains("ratio 0"));
        Ok(())
    }

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
