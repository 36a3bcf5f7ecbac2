//! Compressed rows of a sequence, in pages that sequences can share.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::Copy;
use crate::device::{host, Host};
use crate::dot;

/// Tokens that one page covers, whatever the compression ratio.
pub const PAGE_TOKENS: usize = 1024;

/// An append-only list of f32 rows.
///
/// A clone shares the pages; a shared page is never written (the one being filled is copied
/// first), so a clone is a snapshot.
#[derive(Clone, Debug)]
pub struct Rows {
    pages: Vec<Arc<Tensor>>,
    len: usize,
    width: usize,
    page_rows: usize,
    device: Device,
}

impl Rows {
    /// No rows yet; `ratio` is the number of tokens that a row stands for.
    pub fn new(ratio: usize, width: usize, device: &Device) -> Self {
        let page_rows = (PAGE_TOKENS / ratio.max(1)).max(1);
        Self { pages: Vec::new(), len: 0, width, page_rows, device: device.clone() }
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
        self.width
    }

    /// Rows in a page.
    pub fn page_rows(&self) -> usize {
        self.page_rows
    }

    /// Pages, each `[page_rows, width]`; the last may be filled in part.
    pub fn pages(&self) -> &[Arc<Tensor>] {
        &self.pages
    }

    /// Bytes of one page.
    pub fn page_bytes(&self) -> usize {
        self.page_rows * self.width * 4
    }

    /// Bytes held, shared pages included.
    pub fn bytes(&self) -> usize {
        self.pages.len() * self.page_bytes()
    }

    /// Appends `count` rows of `batch` `[rows, width]`, from row `from` on.
    ///
    /// # Errors
    /// If the rows are not there, or the device has no memory left.
    pub fn append(&mut self, batch: &Tensor, from: usize, count: usize) -> Result<()> {
        let mut done = 0;
        while done < count {
            let at = self.len % self.page_rows;
            let run = (self.page_rows - at).min(count - done);
            let source = batch.narrow(0, from + done, run)?;
            let page = self.open_page(at)?;
            page.narrow(0, at, run)?.inplace_op1(&Copy { source: &source })?;
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
        }
    }

    /// The page that the next row goes to, owned by this list alone.
    fn open_page(&mut self, at: usize) -> Result<&Tensor> {
        if at == 0 {
            let page = Tensor::zeros((self.page_rows, self.width), DType::F32, &self.device)?;
            self.pages.push(Arc::new(page));
        }
        match self.pages.last_mut() {
            Some(page) => {
                if Arc::get_mut(page).is_none() {
                    *page = Arc::new(page.copy()?);
                }
                Ok(page)
            }
            None => candle_core::bail!("kv rows: no page open at row {at}"),
        }
    }
}

/// Rows borrowed on the host.
pub(crate) struct HostRows<'a> {
    pages: Vec<Host<'a, f32>>,
    len: usize,
    width: usize,
    page_rows: usize,
}

impl<'a> HostRows<'a> {
    pub(crate) fn new(op: &'static str, rows: &'a Rows) -> Result<Self> {
        let pages = rows.pages.iter().map(|page| host::<f32>(op, page)).collect::<Result<_>>()?;
        Ok(Self { pages, len: rows.len, width: rows.width, page_rows: rows.page_rows })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first `count` rows, page by page.
    pub(crate) fn runs<'s>(&'s self, count: usize, runs: &mut Vec<dot::Rows<'s>>) {
        let mut left = count;
        for page in &self.pages {
            let run = left.min(self.page_rows);
            if run == 0 {
                break;
            }
            runs.push(dot::Rows::new(page, run, self.width, self.width));
            left -= run;
        }
    }

    /// The rows named by ascending `ids`, page by page; `in_page` receives the indices.
    pub(crate) fn picks<'s>(
        &'s self,
        ids: &[u32],
        in_page: &'s mut Vec<u32>,
        runs: &mut Vec<dot::Rows<'s>>,
    ) {
        in_page.clear();
        in_page.extend(ids.iter().map(|&id| id % self.page_rows as u32));
        let page = |id: &u32| *id as usize / self.page_rows;
        let mut rest: &'s [u32] = in_page;
        for same in ids.chunk_by(|a, b| page(a) == page(b)) {
            let (of_page, after) = rest.split_at(same.len());
            let rows = &self.pages[page(&same[0])];
            let rows = dot::Rows::new(rows, self.page_rows, self.width, self.width);
            runs.push(rows.pick(of_page));
            rest = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(from: usize, count: usize) -> Result<Tensor> {
        let values: Vec<f32> = (from * 2..(from + count) * 2).map(|v| v as f32).collect();
        Tensor::from_vec(values, (count, 2), &Device::Cpu)
    }

    fn values(rows: &Rows) -> Result<Vec<f32>> {
        let host = HostRows::new("test", rows)?;
        let mut runs = Vec::new();
        host.runs(rows.len(), &mut runs);
        Ok(runs.iter().flat_map(|run| (0..run.count()).flat_map(|i| run.row(i)).copied()).collect())
    }

    #[test]
    fn a_clone_keeps_its_rows_when_the_original_goes_on() -> Result<()> {
        let mut rows = Rows::new(PAGE_TOKENS / 4, 2, &Device::Cpu);
        rows.append(&numbered(0, 6)?, 0, 6)?;
        let snapshot = rows.clone();
        rows.truncate(5);
        rows.append(&numbered(100, 3)?, 1, 2)?;
        let want: Vec<f32> = (0..12).map(|v| v as f32).collect();
        assert_eq!(values(&snapshot)?, want);
        let other: Vec<f32> = (0..10).chain(202..206).map(|v| v as f32).collect();
        assert_eq!(values(&rows)?, other);
        assert!(Arc::ptr_eq(&rows.pages()[0], &snapshot.pages()[0]), "full pages are shared");
        Ok(())
    }

    #[test]
    fn appending_in_pieces_is_appending_at_once() -> Result<()> {
        let all = numbered(0, 23)?;
        let mut whole = Rows::new(PAGE_TOKENS / 4, 2, &Device::Cpu);
        whole.append(&all, 0, 23)?;
        for cut in 0..=23 {
            let mut parts = Rows::new(PAGE_TOKENS / 4, 2, &Device::Cpu);
            parts.append(&all, 0, cut)?;
            parts.append(&all, cut, 23 - cut)?;
            assert_eq!(values(&parts)?, values(&whole)?, "cut at {cut}");
        }
        Ok(())
    }
}
