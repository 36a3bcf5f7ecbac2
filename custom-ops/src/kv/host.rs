//! Rows borrowed on the host: f32 pages as they are, packed ones unpacked as they are needed.

use candle_core::Result;

use super::unpack::{unpack_row, unpack_rows};
use super::{RowFormat, Rows};
use crate::device::{for_each_row, host, Host};
use crate::dot;

pub(crate) struct HostRows<'a> {
    pages: Pages<'a>,
    len: usize,
    format: RowFormat,
    page_rows: usize,
}

enum Pages<'a> {
    Plain(Vec<Host<'a, f32>>),
    Packed(Vec<Host<'a, u8>>),
}

impl<'a> HostRows<'a> {
    pub(crate) fn new(op: &'static str, rows: &'a Rows) -> Result<Self> {
        let (format, pages) = (rows.format(), rows.pages().iter());
        let pages = match format {
            RowFormat::F32 { .. } => {
                Pages::Plain(pages.map(|page| host::<f32>(op, page)).collect::<Result<_>>()?)
            }
            _ => Pages::Packed(pages.map(|page| host::<u8>(op, page)).collect::<Result<_>>()?),
        };
        Ok(Self { pages, len: rows.len(), format, page_rows: rows.page_rows() })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether rows must be unpacked to be read.
    pub(crate) fn packed(&self) -> bool {
        matches!(self.pages, Pages::Packed(_))
    }

    /// Page and number of rows of each run of the first `count` rows.
    pub(crate) fn runs(&self, count: usize) -> impl Iterator<Item = (usize, usize)> {
        let page_rows = self.page_rows;
        (0..count.div_ceil(page_rows)).map(move |page| {
            let run = page_rows.min(count - page * page_rows);
            (page, run)
        })
    }

    /// The first `count` rows of a page, unpacked into `scratch` if need be.
    pub(crate) fn page<'s>(
        &'s self,
        page: usize,
        count: usize,
        scratch: &'s mut Vec<f32>,
    ) -> dot::Rows<'s> {
        let width = self.format.width();
        match &self.pages {
            Pages::Plain(pages) => dot::Rows::new(&pages[page], count, width, width),
            Pages::Packed(pages) => {
                let (bytes, row_bytes) = (&pages[page], self.format.row_bytes());
                if scratch.len() < count * width {
                    scratch.resize(count * width, 0.0);
                }
                for (row, bytes) in
                    scratch.chunks_exact_mut(width).zip(bytes.chunks_exact(row_bytes)).take(count)
                {
                    unpack_row(self.format, bytes, row);
                }
                dot::Rows::new(scratch, count, width, width)
            }
        }
    }

    /// The first `count` rows, page by page. Of plain rows only.
    pub(crate) fn plain<'s>(&'s self, count: usize, runs: &mut Vec<dot::Rows<'s>>) {
        let Pages::Plain(pages) = &self.pages else { return };
        let width = self.format.width();
        runs.extend(
            self.runs(count).map(|(page, run)| dot::Rows::new(&pages[page], run, width, width)),
        );
    }

    /// The rows named by ascending `ids`, page by page; `in_page` receives the indices. Of plain
    /// rows only.
    pub(crate) fn picks<'s>(
        &'s self,
        ids: &[u32],
        in_page: &'s mut Vec<u32>,
        runs: &mut Vec<dot::Rows<'s>>,
    ) {
        let Pages::Plain(pages) = &self.pages else { return };
        let width = self.format.width();
        in_page.clear();
        in_page.extend(ids.iter().map(|&id| id % self.page_rows as u32));
        let page = |id: &u32| *id as usize / self.page_rows;
        let mut rest: &'s [u32] = in_page;
        for same in ids.chunk_by(|a, b| page(a) == page(b)) {
            let (of_page, after) = rest.split_at(same.len());
            let rows = dot::Rows::new(&pages[page(&same[0])], self.page_rows, width, width);
            runs.push(rows.pick(of_page));
            rest = after;
        }
    }

    /// The first `count` rows, unpacked one after the other; on all cores if there are many.
    pub(crate) fn unpack_first(&self, count: usize) -> Vec<f32> {
        let (width, page_values) = (self.format.width(), self.page_rows * self.format.width());
        let mut values = vec![0f32; count * width];
        if let Pages::Packed(pages) = &self.pages {
            for (page, values) in pages.iter().zip(values.chunks_mut(page_values.max(1))) {
                unpack_rows(self.format, page, values);
            }
        }
        values
    }

    /// The rows of these ids, unpacked one after the other; on all cores if there are many.
    pub(crate) fn unpack(&self, ids: &[u32]) -> Vec<f32> {
        let row_bytes = self.format.row_bytes();
        let mut values = vec![0f32; ids.len() * self.format.width()];
        if let Pages::Packed(pages) = &self.pages {
            for_each_row(&mut values, self.format.width(), |index, row| {
                let id = ids[index] as usize;
                let page = &pages[id / self.page_rows];
                unpack_row(self.format, &page[id % self.page_rows * row_bytes..][..row_bytes], row);
            });
        }
        values
    }
}
