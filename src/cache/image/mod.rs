//! A sequence's state as bytes, for whoever keeps it longer than the process lives.
//!
//! A [`Snapshot`] of `len` tokens is `⌊len / page_tokens⌋` *page images*, all of one size, and one
//! *frontier image*. A page image never changes once its tokens are known: sequences that share a
//! prefix have the same ones. [`ImageLayout`] says how large they are and what is where; it writes
//! both, and [`Restore`] makes a snapshot of them again, which continues to the bit as the one that
//! was written. The format of the file around them, its checksums and its names are others' concern.
//!
//! # Page image
//! For each layer that compresses, its compressed rows of the page's tokens, then the indexer's
//! keys if it has one: `page_tokens / ratio` rows each, in the byte form of
//! [`RowFormat`](candle_ds4_ops::RowFormat). Nothing between them.
//!
//! # Frontier image
//! | bytes | what |
//! |---|---|
//! | 8 | `len`, little endian |
//! | | for each layer: |
//! | | the raw rows of the last `window − 1` tokens, by position, in the byte form of its rows |
//! | | for its compressor, then its indexer's: |
//! | | · values, then gates, of the tokens that the next row needs, by position, f32 little endian: from the start of the unfinished window on, or, if windows overlap, of the one before |
//! | | · rows past the last whole page |
//!
//! So its size depends on `len` alone, and is least where `len` is a multiple of `page_tokens`: for
//! the full model 4.1 MB there, and about 90 kB more for each token past it.
#![forbid(unsafe_code)]

mod layout;
mod restore;
mod write;

#[cfg(test)]
mod tests;

use candle_ds4_ops::BytesError;

pub use layout::ImageLayout;
pub use restore::Restore;

#[cfg(doc)]
use super::Snapshot;

/// Version of the layout of images: another one is another format.
pub const VERSION: u32 = 1;

/// Tokens of a page image at least.
pub const PAGE_TOKENS: usize = 128;

/// Why bytes did not become a snapshot, or a snapshot bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A model whose windows end together too seldom.
    #[error("compression ratios {ratios:?} have no common page of at most {most} tokens")]
    Ratios {
        /// The ratios.
        ratios: Vec<usize>,
        /// Tokens of a page at most.
        most: usize,
    },
    /// A snapshot of another model.
    #[error("the snapshot is of a model of another shape")]
    Shape,
    /// A page that is not there, or not whole.
    #[error("page {page} of a sequence of {len} tokens with {pages} whole pages")]
    Page {
        /// The page.
        page: usize,
        /// Whole pages that there are.
        pages: usize,
        /// Tokens.
        len: usize,
    },
    /// More tokens than the model can have, or fewer than are there already.
    #[error("{len} tokens are outside {least} to {most}")]
    Tokens {
        /// The length.
        len: usize,
        /// At least.
        least: usize,
        /// At most.
        most: usize,
    },
    /// An image of another size.
    #[error("the {image} image has {bytes} bytes, not {wanted}")]
    Size {
        /// Which image.
        image: &'static str,
        /// Its size.
        bytes: usize,
        /// The size of such an image.
        wanted: usize,
    },
    /// A frontier of another length than announced.
    #[error("the frontier image is of {found} tokens, not of {wanted}")]
    Length {
        /// What it says.
        found: u64,
        /// What was announced.
        wanted: usize,
    },
    /// An earlier page was refused.
    #[error("an earlier page was refused")]
    Broken,
    /// Pages are missing.
    #[error("{have} of {wanted} pages are there")]
    Missing {
        /// Pages so far.
        have: usize,
        /// Pages needed.
        wanted: usize,
    },
    /// Bytes that are no rows, rows that are no bytes, or the device.
    #[error("layer {layer}, {part}: {error}")]
    Part {
        /// The layer.
        layer: usize,
        /// Which of its parts.
        part: &'static str,
        /// What is wrong.
        error: BytesError,
    },
    /// The device refused.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}
