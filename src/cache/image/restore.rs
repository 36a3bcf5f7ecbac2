//! A snapshot from its images.

use candle_core::Device;

use super::write::{check_size, in_part};
use super::{ImageError, ImageLayout};
use crate::cache::{empty_layers, Snapshot};

/// Builds a snapshot: pages in order, then the frontier. Memory is taken as pages come.
#[derive(Debug)]
pub struct Restore {
    layout: ImageLayout,
    snapshot: Snapshot,
    pages: usize,
    broken: bool,
}

impl ImageLayout {
    /// Begins a snapshot of `len` tokens.
    ///
    /// # Errors
    /// If a sequence cannot have so many tokens, or the device has no memory left.
    pub fn restore(&self, len: usize, device: &Device) -> Result<Restore, ImageError> {
        self.check_tokens(len, 0)?;
        let layers = empty_layers(&self.config, device)?;
        let snapshot = Snapshot { layers, len, oldest: len };
        Ok(Restore { layout: self.clone(), snapshot, pages: 0, broken: false })
    }

    /// Begins a snapshot of `len` tokens with the first `pages` pages of another one, which the
    /// two share from then on.
    ///
    /// # Errors
    /// If the other snapshot is of another model or has fewer whole pages, a sequence cannot have so
    /// many tokens, or the device has no memory left.
    pub fn restore_on(
        &self,
        shared: &Snapshot,
        pages: usize,
        len: usize,
        device: &Device,
    ) -> Result<Restore, ImageError> {
        if !self.fits(&shared.layers) {
            return Err(ImageError::Shape);
        }
        let have = self.pages(shared.len);
        if pages > have {
            return Err(ImageError::Page { page: pages, pages: have, len: shared.len });
        }
        let tokens = pages * self.page_tokens();
        self.check_tokens(len, tokens)?;
        let mut restore = self.restore(len, device)?;
        for (layer, shared) in restore.snapshot.layers.iter_mut().zip(&shared.layers) {
            for (list, shared) in layer.lists_mut().zip(shared.lists()) {
                list.rows = shared.rows.clone();
                list.truncate(tokens);
            }
        }
        restore.pages = pages;
        Ok(restore)
    }

    fn check_tokens(&self, len: usize, least: usize) -> Result<(), ImageError> {
        let most = self.config.context_length;
        match (least..=most).contains(&len) {
            true => Ok(()),
            false => Err(ImageError::Tokens { len, least, most }),
        }
    }
}

impl Restore {
    /// The next page that is wanted; `None` once all are there.
    pub fn next_page(&self) -> Option<usize> {
        (self.pages < self.layout.pages(self.snapshot.len)).then_some(self.pages)
    }

    /// Takes the next page's image; its bytes are copied once, to where they stay.
    ///
    /// # Errors
    /// If the page has another size, holds what is no row, is one too many, or the device has no
    /// memory left. The rest is then refused too.
    pub fn push(&mut self, page: &[u8]) -> Result<(), ImageError> {
        if self.broken {
            return Err(ImageError::Broken);
        }
        let pushed = self.try_push(page);
        self.broken = pushed.is_err();
        pushed
    }

    fn try_push(&mut self, page: &[u8]) -> Result<(), ImageError> {
        let Self { layout, snapshot, pages, .. } = self;
        let wanted = layout.pages(snapshot.len);
        if *pages >= wanted {
            return Err(ImageError::Page { page: *pages, pages: wanted, len: snapshot.len });
        }
        check_size("page", page.len(), layout.page_bytes())?;
        let mut rest = page;
        for (index, (layer, parts)) in snapshot.layers.iter_mut().zip(&layout.layers).enumerate() {
            for (list, part) in layer.lists_mut().zip(&parts.lists) {
                let (bytes, after) = split(rest, part.page_bytes(layout.page_tokens()));
                list.rows.extend_bytes(bytes).map_err(in_part(index, part.name))?;
                rest = after;
            }
        }
        *pages += 1;
        Ok(())
    }

    /// Takes the frontier's image, and is done.
    ///
    /// # Errors
    /// If pages are missing or were refused, the image has another size, is of another length, or
    /// holds what is no row, or the device has no memory left.
    pub fn finish(self, frontier: &[u8]) -> Result<Snapshot, ImageError> {
        let Self { layout, mut snapshot, pages, broken } = self;
        let len = snapshot.len;
        let wanted = layout.pages(len);
        match (broken, pages == wanted) {
            (true, _) => return Err(ImageError::Broken),
            (false, false) => return Err(ImageError::Missing { have: pages, wanted }),
            (false, true) => {}
        }
        check_size("frontier", frontier.len(), layout.frontier_bytes(len))?;
        let (head, mut rest) = split(frontier, 8);
        let found = head.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        if found != len as u64 {
            return Err(ImageError::Length { found, wanted: len });
        }
        let first = pages * layout.page_tokens();
        let mut take = |len: usize| {
            let (part, after) = split(rest, len);
            rest = after;
            part
        };
        for (index, (layer, parts)) in snapshot.layers.iter_mut().zip(&layout.layers).enumerate() {
            let recent = parts.recent(len);
            let bytes = take(recent.len() * parts.row.row_bytes());
            layer.window.fill(recent, parts.row, bytes).map_err(in_part(index, "window"))?;
            for (list, part) in layer.lists_mut().zip(&parts.lists) {
                let (unfinished, pooled) = (part.unfinished(len), part.pooled());
                for ring in [&list.state.values, &list.state.gates] {
                    let bytes = take(unfinished.len() * pooled.row_bytes());
                    let filled = ring.fill(unfinished.clone(), pooled, bytes);
                    filled.map_err(in_part(index, part.name))?;
                }
                let bytes = take(part.rows(first..len).len() * part.row.row_bytes());
                list.rows.extend_bytes(bytes).map_err(in_part(index, part.name))?;
            }
        }
        Ok(snapshot)
    }
}

/// The first `len` bytes of an image whose size was checked, and the rest.
fn split(bytes: &[u8], len: usize) -> (&[u8], &[u8]) {
    bytes.split_at(len.min(bytes.len()))
}
