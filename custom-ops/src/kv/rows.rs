//! Compressed rows of a sequence, in pages that sequences can share.

use std::sync::Arc;

use candle_core::{bail, DType, Device, Result, Tensor};

use super::{Copy, Pack, RowFormat};
use crate::device::timed;
use crate::ragged::{check_ratio, Ragged, Span};

/// Tokens that one page covers, whatever the compression ratio.
pub const PAGE_TOKENS: usize = 1024;

/// An append-only list of rows, each kept in the list's [`RowFormat`].
///
/// A clone shares the pages; a shared page is never written (the one being filled is copied
/// first), so a clone is a snapshot.
#[derive(Clone, Debug)]
pub struct Rows {
    pages: Vec<Arc<Tensor>>,
    len: usize,
    format: RowFormat,
    page_rows: usize,
    device: Device,
    #[cfg(cuda_kernels)]
    table: super::cuda::PageTable,
}

impl Rows {
    /// No rows yet, to be kept as f32; `ratio` is the number of tokens that a row stands for.
    pub fn new(ratio: usize, width: usize, device: &Device) -> Self {
        Self::with_format(ratio, RowFormat::F32 { width }, device)
    }

    /// No rows yet; `ratio` is the number of tokens that a row stands for.
    pub fn with_format(ratio: usize, format: RowFormat, device: &Device) -> Self {
        let page_rows = (PAGE_TOKENS / ratio.max(1)).max(1);
        Self {
            pages: Vec::new(),
            len: 0,
            format,
            page_rows,
            device: device.clone(),
            #[cfg(cuda_kernels)]
            table: Default::default(),
        }
    }

    /// `count` rows of random numbers, page after page the same few: for measurements, which do not mind
    /// what rows say.
    ///
    /// # Errors
    /// If the format cannot hold rows of its width, or the device has no memory left.
    pub fn made_up(ratio: usize, format: RowFormat, count: usize, device: &Device) -> Result<Self> {
        const PAGES: usize = 8;
        let mut rows = Self::with_format(ratio, format, device);
        let width = format.width();
        let mut pages = Vec::with_capacity(PAGES);
        for _ in 0..PAGES {
            let values = Tensor::randn(0f32, 1.0, (rows.page_rows, width), &Device::Cpu)?;
            match format {
                RowFormat::F32 { .. } => {}
                RowFormat::Fp8 { nope, .. } => crate::kv_round_trip(&values, nope)?,
                RowFormat::Fp4 { .. } => crate::hadamard_fp4_round_trip(&values)?,
            }
            if let RowFormat::F32 { .. } = format {
                pages.push(values.to_device(device)?);
                continue;
            }
            let row_bytes = format.row_bytes();
            let mut bytes = vec![0; rows.page_rows * row_bytes];
            let of_rows = values.flatten_all()?.to_vec1::<f32>()?;
            for (row, bytes) in of_rows.chunks(width).zip(bytes.chunks_mut(row_bytes)) {
                format.pack(row, bytes).map_err(candle_core::Error::wrap)?;
            }
            pages.push(Tensor::from_vec(bytes, (rows.page_rows, row_bytes), device)?);
        }
        for index in 0..count.div_ceil(rows.page_rows) {
            rows.pages.push(Arc::new(pages[index % PAGES].copy()?));
        }
        rows.len = count;
        Ok(rows)
    }

    /// Rows present.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Values in a row.
    pub fn width(&self) -> usize {
        self.format.width()
    }

    /// How rows are kept.
    pub fn format(&self) -> RowFormat {
        self.format
    }

    /// Rows in a page.
    pub fn page_rows(&self) -> usize {
        self.page_rows
    }

    /// Pages, the last perhaps filled in part: `[page_rows, width]` f32, or, in a packed format,
    /// `[page_rows, row_bytes]` u8.
    pub fn pages(&self) -> &[Arc<Tensor>] {
        &self.pages
    }

    /// The pages as a kernel's buffers.
    ///
    /// # Errors
    /// If they are on a device without Metal kernels.
    #[cfg(metal_kernels)]
    pub(crate) fn metal(&self, op: &'static str) -> Result<Vec<crate::device::metal::Binding<'_>>> {
        let dtype = match self.format {
            RowFormat::F32 { .. } => DType::F32,
            _ => DType::U8,
        };
        let page = |page| crate::device::metal::Binding::tensor(op, page, dtype);
        self.pages.iter().map(|tensor| page(&**tensor)).collect()
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.page_rows * self.format.row_bytes()
    }

    /// Bytes held, shared pages included.
    pub fn bytes(&self) -> usize {
        self.pages.len() * self.page_bytes()
    }

    /// Bytes that the first `count` rows take.
    pub(crate) fn bytes_of(&self, count: usize) -> usize {
        count * self.format.row_bytes()
    }

    /// Makes room for `count` rows more, in pages that are this list's alone and that kernels find.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn reserve(&mut self, count: usize) -> Result<()> {
        let end = if count == 0 { 0 } else { (self.len + count).div_ceil(self.page_rows) };
        let mut changed = false;
        for index in self.len / self.page_rows..end {
            match self.pages.get_mut(index) {
                Some(page) => {
                    if Arc::get_mut(page).is_none() {
                        *page = Arc::new(page.copy()?);
                        changed = true;
                    }
                }
                None => {
                    self.pages.push(Arc::new(self.empty_page()?));
                    changed = true;
                }
            }
        }
        // A step that needs no page more must not look at all that there are.
        #[cfg(cuda_kernels)]
        if changed || !self.table.lists(self.pages.len()) {
            if let Some(gpu) = crate::device::cuda::Gpu::of(&self.device)? {
                self.page_table("kv rows", &gpu)?;
            }
        }
        let _ = changed;
        Ok(())
    }

    /// The next `count` rows, for which there was room, have been written.
    ///
    /// # Errors
    /// If there was no room.
    pub fn advance(&mut self, count: usize) -> Result<()> {
        let room = self.pages.len() * self.page_rows;
        if self.len + count > room {
            bail!("kv rows: {count} rows after {} in room for {room}", self.len);
        }
        self.len += count;
        Ok(())
    }

    /// Where kernels find the pages.
    #[cfg(cuda_kernels)]
    pub(super) fn page_table(
        &self,
        op: &'static str,
        gpu: &crate::device::cuda::Gpu,
    ) -> Result<super::cuda::Table> {
        self.table.of(op, gpu, &self.pages, &self.device)
    }

    fn empty_page(&self) -> Result<Tensor> {
        match self.format {
            RowFormat::F32 { width } => {
                Tensor::zeros((self.page_rows, width), DType::F32, &self.device)
            }
            packed => {
                let shape = (self.page_rows, packed.row_bytes());
                Tensor::zeros(shape, DType::U8, &self.device)
            }
        }
    }

    /// Appends `count` rows of `batch` `[rows, width]` f32, from row `from` on.
    ///
    /// # Errors
    /// If the rows are not there, the format cannot hold one of them to the bit (they were not
    /// rounded, or are not finite), or the device has no memory left.
    pub fn append(&mut self, batch: &Tensor, from: usize, count: usize) -> Result<()> {
        if batch.dims2()?.1 != self.width() {
            bail!("kv rows: rows {:?} into a list of width {}", batch.dims(), self.width());
        }
        let format = self.format;
        self.extend(count, |page, done, run| {
            let source = batch.narrow(0, from + done, run)?;
            match format {
                RowFormat::F32 { .. } => page.inplace_op1(&Copy { source: &source }),
                packed => page.inplace_op1(&Pack { source: &source, format: packed }),
            }
        })
    }

    /// Calls `write(page part [run, …], rows done, run)` for each run of `count` new rows.
    pub(super) fn extend(
        &mut self,
        count: usize,
        mut write: impl FnMut(&Tensor, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < count {
            let at = self.len % self.page_rows;
            let run = (self.page_rows - at).min(count - done);
            write(&self.open_page(at)?.narrow(0, at, run)?, done, run)?;
            self.len += run;
            done += run;
        }
        Ok(())
    }

    /// Forgets all rows from the `len`-th on.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = len;
            self.pages.truncate(len.div_ceil(self.page_rows));
            #[cfg(cuda_kernels)]
            self.table.forget();
        }
    }

    /// The page that the next row goes to, owned by this list alone.
    fn open_page(&mut self, at: usize) -> Result<&Tensor> {
        #[cfg(cuda_kernels)]
        self.table.forget();
        if at == 0 {
            // A write that failed has left it.
            self.pages.truncate(self.len / self.page_rows);
            self.pages.push(Arc::new(self.empty_page()?));
        }
        match self.pages.last_mut() {
            Some(page) => {
                if Arc::get_mut(page).is_none() {
                    *page = Arc::new(page.copy()?);
                }
                Ok(page)
            }
            None => bail!("kv rows: no page open at row {at}"),
        }
    }
}

/// Appends to each list the rows whose windows of `ratio` tokens end in this batch, out of `source`
/// `[rows, width]`, which has [`Ragged::window_rows`] of them.
///
/// # Errors
/// If the ratio is 0, there is not one list for each sequence, widths differ, the format cannot hold a row (see
/// [`Rows::append`]; on a GPU that is not looked at), or the device has no memory left.
pub fn append_rows(
    mut lists: Vec<&mut Rows>,
    source: &Tensor,
    batch: &Ragged,
    ratio: usize,
) -> Result<()> {
    check_ratio("append_rows", ratio)?;
    let (rows, width) = source.dims2()?;
    if lists.len() != batch.spans().len() || rows != batch.window_rows(ratio) {
        bail!(
            "append_rows: {} lists and {rows} rows for {} sequences with {}",
            lists.len(),
            batch.spans().len(),
            batch.window_rows(ratio)
        );
    }
    if let Some(list) = lists.iter().find(|list| list.width() != width) {
        bail!("append_rows: rows of {width} to a list of rows of {}", list.width());
    }
    let ended = |span: &Span| span.windows(ratio).len();
    let class = || Ok(("append_rows".to_owned(), 0));
    #[cfg(cuda_kernels)]
    if let Some(gpu) = crate::device::cuda::Gpu::of(batch.positions().device())? {
        for (list, span) in lists.iter_mut().zip(batch.spans()) {
            list.reserve(ended(span))?;
        }
        let shared: Vec<&Rows> = lists.iter().map(|list| &**list).collect();
        timed(source, class, || super::cuda::append_rows(&gpu, &shared, source, batch, ratio))?;
        for (list, span) in lists.iter_mut().zip(batch.spans()) {
            list.advance(ended(span))?;
        }
        return Ok(());
    }
    let append = || {
        let mut from = 0;
        for (sequence, (list, span)) in lists.iter_mut().zip(batch.spans()).enumerate() {
            list.append(source, from, ended(span))?;
            from += batch.window_rows_of(sequence, ratio);
        }
        Ok(())
    };
    timed(source, class, append)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::HostRows;

    fn numbered(from: usize, count: usize) -> Result<Tensor> {
        let values: Vec<f32> = (from * 2..(from + count) * 2).map(|v| v as f32).collect();
        Tensor::from_vec(values, (count, 2), &Device::Cpu)
    }

    fn values(rows: &Rows) -> Result<Vec<f32>> {
        let host = HostRows::new("test", rows)?;
        let mut scratch = Vec::new();
        let mut values = Vec::new();
        for (page, run) in host.runs(rows.len()) {
            let run = host.page(page, run, &mut scratch);
            values.extend((0..run.count()).flat_map(|i| run.row(i)).copied());
        }
        Ok(values)
    }

    /// Formats that hold small whole numbers.
    fn formats() -> [RowFormat; 2] {
        [RowFormat::F32 { width: 2 }, RowFormat::Fp8 { nope: 0, rope: 2 }]
    }

    #[test]
    fn a_clone_keeps_its_rows_when_the_original_goes_on() -> Result<()> {
        for format in formats() {
            let mut rows = Rows::with_format(PAGE_TOKENS / 4, format, &Device::Cpu);
            rows.append(&numbered(0, 6)?, 0, 6)?;
            let snapshot = rows.clone();
            rows.truncate(5);
            rows.append(&numbered(50, 3)?, 1, 2)?;
            let want: Vec<f32> = (0..12).map(|v| v as f32).collect();
            assert_eq!(values(&snapshot)?, want);
            let other: Vec<f32> = (0..10).chain(102..106).map(|v| v as f32).collect();
            assert_eq!(values(&rows)?, other);
            assert!(Arc::ptr_eq(&rows.pages()[0], &snapshot.pages()[0]), "full pages are shared");
        }
        Ok(())
    }

    #[test]
    fn appending_in_pieces_is_appending_at_once() -> Result<()> {
        let all = numbered(0, 23)?;
        for format in formats() {
            let mut whole = Rows::with_format(PAGE_TOKENS / 4, format, &Device::Cpu);
            whole.append(&all, 0, 23)?;
            for cut in 0..=23 {
                let mut parts = Rows::with_format(PAGE_TOKENS / 4, format, &Device::Cpu);
                parts.append(&all, 0, cut)?;
                parts.append(&all, cut, 23 - cut)?;
                assert_eq!(values(&parts)?, values(&whole)?, "cut at {cut}");
            }
        }
        Ok(())
    }

    #[test]
    fn windows_of_no_tokens_are_refused() -> Result<()> {
        let mut rows = Rows::new(4, 2, &Device::Cpu);
        let batch = Ragged::new(&[(0, 8)], &Device::Cpu)?;
        let error = append_rows(vec![&mut rows], &numbered(0, 2)?, &batch, 0).unwrap_err();
        assert!(error.to_string().starts_with("append_rows: ratio 0"), "{error}");
        Ok(())
    }

    #[test]
    fn a_row_that_the_format_cannot_hold_is_refused_by_its_place() -> Result<()> {
        let rounded = Tensor::new(&[[1f32, 0.0], [1.0, 1.0 / 3.0], [2.0, 0.0]], &Device::Cpu)?;
        let mut rows = Rows::with_format(2, RowFormat::Fp8 { nope: 0, rope: 2 }, &Device::Cpu);
        let error = rows.append(&rounded, 0, 3).unwrap_err().to_string();
        assert!(error.contains("row 1: channel 1 is 3.333"), "{error}");
        assert!(rows.is_empty(), "nothing is appended");
        rows.append(&rounded, 2, 1)?;
        assert_eq!((rows.len(), rows.pages().len()), (1, 1));
        assert_eq!(values(&rows)?, [2.0, 0.0]);
        Ok(())
    }
}
