//! What is where in an image.

use std::ops::Range;

use candle_ds4_ops::{Pooling, RowFormat};

use super::{ImageError, PAGE_TOKENS, VERSION};
use crate::cache::layer::{key_format, pooling, row_format};
use crate::cache::LayerCache;
use crate::config::{Config, LayerKind};

/// Tokens of a page at most.
const MOST_PAGE_TOKENS: usize = 1 << 16;

/// The images of one model: sizes, and the bytes that tell its format from others.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageLayout {
    pub(super) layers: Vec<LayerLayout>,
    pub(super) config: Config,
    page_tokens: usize,
}

/// The parts of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LayerLayout {
    pub window: usize,
    pub row: RowFormat,
    /// Compressed rows, then keys.
    pub lists: Vec<ListLayout>,
}

/// A compressor and its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListLayout {
    pub name: &'static str,
    pub pooling: Pooling,
    pub row: RowFormat,
}

impl ImageLayout {
    /// The images of a model of this shape.
    ///
    /// # Errors
    /// If its compression ratios have no common multiple of a page's size.
    pub fn new(config: &Config) -> Result<Self, ImageError> {
        let ratios: Vec<usize> = config.layers.iter().filter_map(|kind| kind.ratio()).collect();
        let page_tokens = ratios
            .iter()
            .try_fold(PAGE_TOKENS, |page, &ratio| {
                let page = page / greatest_common_divisor(page, ratio) * ratio;
                (page <= MOST_PAGE_TOKENS).then_some(page)
            })
            .ok_or(ImageError::Ratios { ratios, most: MOST_PAGE_TOKENS })?;
        let layers = config.layers.iter().map(|&kind| LayerLayout::new(kind, config)).collect();
        Ok(Self { layers, config: config.clone(), page_tokens })
    }

    /// Tokens that a page image covers: 128, or the least multiple of it in which all windows end.
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// Whole pages of a sequence of `len` tokens.
    pub fn pages(&self, len: usize) -> usize {
        len / self.page_tokens
    }

    /// Bytes of a page image.
    pub fn page_bytes(&self) -> usize {
        let lists = self.layers.iter().flat_map(|layer| &layer.lists);
        lists.map(|list| list.page_bytes(self.page_tokens)).sum()
    }

    /// Bytes of the frontier image of a sequence of `len` tokens.
    pub fn frontier_bytes(&self, len: usize) -> usize {
        let first = self.pages(len) * self.page_tokens;
        let layers = self.layers.iter().map(|layer| {
            let lists = layer.lists.iter().map(|list| {
                2 * list.unfinished(len).len() * list.pooled().row_bytes()
                    + list.rows(first..len).len() * list.row.row_bytes()
            });
            layer.recent(len).len() * layer.row.row_bytes() + lists.sum::<usize>()
        });
        8 + layers.sum::<usize>()
    }

    /// Bytes that differ wherever images of another model or version could not be read: version,
    /// page size, and each layer's window, ratios, overlap and row formats. They say nothing of the
    /// weights: whoever names images adds the model's own fingerprint.
    pub fn fingerprint(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |value: usize| bytes.extend_from_slice(&(value as u64).to_le_bytes());
        put(VERSION as usize);
        put(self.page_tokens);
        put(self.layers.len());
        for layer in &self.layers {
            put(layer.window);
            format_words(layer.row).into_iter().for_each(&mut put);
            put(layer.lists.len());
            for list in &layer.lists {
                put(list.pooling.ratio);
                put(usize::from(list.pooling.overlap));
                format_words(list.row).into_iter().for_each(&mut put);
            }
        }
        bytes
    }

    /// Whether these are the layers of such a model.
    pub(super) fn fits(&self, layers: &[LayerCache]) -> bool {
        self.layers.len() == layers.len()
            && self.layers.iter().zip(layers).all(|(layout, layer)| layout.fits(layer))
    }
}

impl LayerLayout {
    fn new(kind: LayerKind, config: &Config) -> Self {
        let row = row_format(config);
        let mut lists = Vec::new();
        if let Some(pooling) = pooling(kind) {
            lists.push(ListLayout { name: "compressed rows", pooling, row });
            if let (LayerKind::Sparse { .. }, Some(indexer)) = (kind, &config.indexer) {
                let row = key_format(config, indexer);
                lists.push(ListLayout { name: "indexer keys", pooling, row });
            }
        }
        Self { window: config.sliding_window, row, lists }
    }

    /// Positions whose raw rows the next token attends to.
    pub(super) fn recent(&self, len: usize) -> Range<usize> {
        (len + 1).saturating_sub(self.window)..len
    }

    fn fits(&self, layer: &LayerCache) -> bool {
        let ring = |ring: &candle_ds4_ops::Ring, least: usize, width: usize| {
            ring.slots() >= least && ring.data().dims().get(1) == Some(&width)
        };
        ring(&layer.window, self.window, self.row.width())
            && self.lists.len() == layer.lists().count()
            && self.lists.iter().zip(layer.lists()).all(|(layout, list)| {
                let (reach, width) = (layout.pooling.reach(), layout.pooled().width());
                list.rows.format() == layout.row
                    && list.ratio() == layout.pooling.ratio
                    && ring(&list.state.values, reach, width)
                    && ring(&list.state.gates, reach, width)
            })
    }
}

impl ListLayout {
    /// Rows of a page.
    pub(super) fn page_bytes(&self, page_tokens: usize) -> usize {
        page_tokens / self.pooling.ratio * self.row.row_bytes()
    }

    /// Rows whose windows end in these positions.
    pub(super) fn rows(&self, tokens: Range<usize>) -> Range<usize> {
        tokens.start / self.pooling.ratio..tokens.end / self.pooling.ratio
    }

    /// Positions whose projections the next row needs.
    pub(super) fn unfinished(&self, len: usize) -> Range<usize> {
        let Pooling { ratio, overlap } = self.pooling;
        let window = len / ratio;
        let first = if overlap { window.saturating_sub(1) } else { window };
        first * ratio..len
    }

    /// The form of the projections.
    pub(super) fn pooled(&self) -> RowFormat {
        RowFormat::F32 { width: self.pooling.width(self.row.width()) }
    }
}

fn format_words(format: RowFormat) -> [usize; 3] {
    match format {
        RowFormat::F32 { width } => [0, width, 0],
        RowFormat::Fp8 { nope, rope } => [1, nope, rope],
        RowFormat::Fp4 { width } => [2, width, 0],
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        _ => greatest_common_divisor(b, a % b),
    }
}
