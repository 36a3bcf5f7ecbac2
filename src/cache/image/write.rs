//! Images of a snapshot.

use candle_ds4_ops::BytesError;

use super::{ImageError, ImageLayout};
use crate::cache::Snapshot;

impl ImageLayout {
    /// Writes page `page` of a snapshot over `out`, which has [`ImageLayout::page_bytes`] bytes.
    ///
    /// # Errors
    /// If the snapshot is of another model or has no such page, `out` has another size, or the
    /// device refuses.
    pub fn write_page(
        &self,
        snapshot: &Snapshot,
        page: usize,
        out: &mut [u8],
    ) -> Result<(), ImageError> {
        if !self.fits(&snapshot.layers) {
            return Err(ImageError::Shape);
        }
        let pages = self.pages(snapshot.len);
        if page >= pages {
            return Err(ImageError::Page { page, pages, len: snapshot.len });
        }
        check_size("page", out.len(), self.page_bytes())?;
        let mut out = Cursor { rest: out };
        let first = page * self.page_tokens();
        for (index, (layout, layer)) in self.layers.iter().zip(&snapshot.layers).enumerate() {
            for (part, list) in layout.lists.iter().zip(layer.lists()) {
                let bytes = out.take(part.page_bytes(self.page_tokens()));
                let read = list.rows.read(part.rows(first..first).start, bytes);
                read.map_err(in_part(index, part.name))?;
            }
        }
        Ok(())
    }

    /// Writes the frontier of a snapshot over `out`, which has [`ImageLayout::frontier_bytes`]
    /// bytes.
    ///
    /// # Errors
    /// If the snapshot is of another model, `out` has another size, a value is not finite, or the
    /// device refuses.
    pub fn write_frontier(&self, snapshot: &Snapshot, out: &mut [u8]) -> Result<(), ImageError> {
        if !self.fits(&snapshot.layers) {
            return Err(ImageError::Shape);
        }
        let len = snapshot.len;
        check_size("frontier", out.len(), self.frontier_bytes(len))?;
        let mut out = Cursor { rest: out };
        out.take(8).copy_from_slice(&(len as u64).to_le_bytes());
        let first = self.pages(len) * self.page_tokens();
        for (index, (layout, layer)) in self.layers.iter().zip(&snapshot.layers).enumerate() {
            let recent = layout.recent(len);
            let bytes = out.take(recent.len() * layout.row.row_bytes());
            layer.window.read(recent, layout.row, bytes).map_err(in_part(index, "window"))?;
            for (part, list) in layout.lists.iter().zip(layer.lists()) {
                let (unfinished, pooled) = (part.unfinished(len), part.pooled());
                for ring in [&list.state.values, &list.state.gates] {
                    let bytes = out.take(unfinished.len() * pooled.row_bytes());
                    let read = ring.read(unfinished.clone(), pooled, bytes);
                    read.map_err(in_part(index, part.name))?;
                }
                let rows = part.rows(first..len);
                let bytes = out.take(rows.len() * part.row.row_bytes());
                list.rows.read(rows.start, bytes).map_err(in_part(index, part.name))?;
            }
        }
        Ok(())
    }
}

/// Hands out a buffer whose size was checked, part by part.
struct Cursor<'a> {
    rest: &'a mut [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> &'a mut [u8] {
        let rest = std::mem::take(&mut self.rest);
        let (part, rest) = rest.split_at_mut(len.min(rest.len()));
        self.rest = rest;
        part
    }
}

pub(super) fn check_size(
    image: &'static str,
    bytes: usize,
    wanted: usize,
) -> Result<(), ImageError> {
    match bytes == wanted {
        true => Ok(()),
        false => Err(ImageError::Size { image, bytes, wanted }),
    }
}

pub(super) fn in_part(layer: usize, part: &'static str) -> impl Fn(BytesError) -> ImageError {
    move |error| ImageError::Part { layer, part, error }
}
