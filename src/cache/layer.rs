//! What one layer remembers of a sequence.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use candle_ds4_ops::{PoolState, Pooling, Ring, RowFormat, Rows};

use super::REWIND_TOKENS;
use crate::config::{Config, IndexerConfig, LayerKind};

/// A compressor's state and the rows that it has made.
#[derive(Debug)]
pub struct CompressorCache {
    /// Projections of the last tokens.
    pub state: PoolState,
    /// One row per ended window.
    pub rows: Rows,
    ratio: usize,
}

/// The raw rows of the sliding window, and in compressing layers the compressed ones.
#[derive(Debug)]
pub struct LayerCache {
    /// Rows of the last tokens.
    pub window: Ring,
    /// Compressed rows, keys and values at once.
    pub compressed: Option<CompressorCache>,
    /// The indexer's keys, one for each compressed row.
    pub keys: Option<CompressorCache>,
}

impl CompressorCache {
    fn new(kind: LayerKind, format: RowFormat, device: &Device) -> Result<Option<Self>> {
        let Some(pooling) = pooling(kind) else { return Ok(None) };
        let slots = pooling.reach() + REWIND_TOKENS;
        let width = pooling.width(format.width());
        let state = PoolState {
            values: Ring::new(slots, width, device)?,
            gates: Ring::new(slots, width, device)?,
        };
        let ratio = pooling.ratio;
        Ok(Some(Self { state, rows: Rows::with_format(ratio, format, device), ratio }))
    }

    /// Tokens that a row stands for.
    pub fn ratio(&self) -> usize {
        self.ratio
    }

    fn duplicate(&self) -> Result<Self> {
        let state = PoolState {
            values: self.state.values.duplicate()?,
            gates: self.state.gates.duplicate()?,
        };
        Ok(Self { state, rows: self.rows.clone(), ratio: self.ratio })
    }

    pub(super) fn truncate(&mut self, tokens: usize) {
        self.rows.truncate(tokens / self.ratio);
    }

    /// Rows that `end` tokens have and this list has not.
    fn missing(&self, end: usize) -> usize {
        (end / self.ratio).saturating_sub(self.rows.len())
    }

    fn bytes(&self) -> usize {
        self.state.values.bytes() + self.state.gates.bytes() + self.rows.bytes()
    }

    /// All but pages that others share.
    fn own_bytes(&self) -> usize {
        let shared = self.rows.pages().iter().filter(|page| Arc::strong_count(page) > 1).count();
        self.bytes() - shared * self.rows.page_bytes()
    }

    fn same_shape(&self, other: &Self) -> bool {
        self.ratio == other.ratio
            && self.rows.format() == other.rows.format()
            && self.state.values.data().dims() == other.state.values.data().dims()
    }
}

impl LayerCache {
    pub(super) fn new(kind: LayerKind, config: &Config, device: &Device) -> Result<Self> {
        let slots = config.sliding_window + REWIND_TOKENS;
        let keys = match (kind, &config.indexer) {
            (LayerKind::Sparse { .. }, Some(indexer)) => {
                CompressorCache::new(kind, key_format(config, indexer), device)?
            }
            _ => None,
        };
        Ok(Self {
            window: Ring::new(slots, config.head_dim, device)?,
            compressed: CompressorCache::new(kind, row_format(config), device)?,
            keys,
        })
    }

    /// As if `tokens` tokens had been there, of random numbers.
    pub(super) fn make_up(&mut self, tokens: usize) -> Result<()> {
        let random =
            |ring: &Ring| Tensor::randn(0f32, 1.0, ring.data().dims(), ring.data().device());
        let fill = |ring: &Ring| ring.overwrite(&random(ring)?);
        fill(&self.window)?;
        for list in self.lists_mut() {
            fill(&list.state.values)?;
            fill(&list.state.gates)?;
            let (format, device) = (list.rows.format(), list.state.values.data().device().clone());
            list.rows = Rows::made_up(list.ratio, format, tokens / list.ratio, &device)?;
        }
        Ok(())
    }

    pub(super) fn duplicate(&self) -> Result<Self> {
        let duplicate =
            |c: &Option<CompressorCache>| c.as_ref().map(CompressorCache::duplicate).transpose();
        Ok(Self {
            window: self.window.duplicate()?,
            compressed: duplicate(&self.compressed)?,
            keys: duplicate(&self.keys)?,
        })
    }

    pub(super) fn truncate(&mut self, tokens: usize) {
        self.lists_mut().for_each(|list| list.truncate(tokens));
    }

    /// Room for the rows of all windows that end before token `end`.
    pub(super) fn reserve(&mut self, end: usize) -> Result<()> {
        self.lists_mut().try_for_each(|list| list.rows.reserve(list.missing(end)))
    }

    /// These rows are there now.
    pub(super) fn replayed(&mut self, end: usize) -> Result<()> {
        self.lists_mut().try_for_each(|list| list.rows.advance(list.missing(end)))
    }

    pub(super) fn bytes(&self) -> usize {
        self.window.bytes() + self.lists().map(CompressorCache::bytes).sum::<usize>()
    }

    /// All but the pages.
    pub(super) fn fixed_bytes(&self) -> usize {
        self.bytes() - self.lists().map(|list| list.rows.bytes()).sum::<usize>()
    }

    /// All but pages that others share.
    pub(super) fn own_bytes(&self) -> usize {
        let lists = self.lists().map(CompressorCache::own_bytes);
        self.window.bytes() + lists.sum::<usize>()
    }

    /// The compressed rows and the keys, as far as there are any.
    pub(super) fn lists(&self) -> impl Iterator<Item = &CompressorCache> {
        [&self.compressed, &self.keys].into_iter().flatten()
    }

    /// The same, to change.
    pub(super) fn lists_mut(&mut self) -> impl Iterator<Item = &mut CompressorCache> {
        [&mut self.compressed, &mut self.keys].into_iter().flatten()
    }

    pub(super) fn same_shape(&self, other: &Self) -> bool {
        let same = |a: &Option<CompressorCache>, b: &Option<CompressorCache>| match (a, b) {
            (Some(a), Some(b)) => a.same_shape(b),
            (None, None) => true,
            _ => false,
        };
        self.window.data().dims() == other.window.data().dims()
            && same(&self.compressed, &other.compressed)
            && same(&self.keys, &other.keys)
    }
}

/// How a layer of this kind pools, if it does.
pub(crate) fn pooling(kind: LayerKind) -> Option<Pooling> {
    match kind {
        LayerKind::Window => None,
        LayerKind::Sparse { ratio } => Some(Pooling { ratio, overlap: true }),
        LayerKind::Heavy { ratio } => Some(Pooling { ratio, overlap: false }),
    }
}

/// How rows that attention reads are kept: as the model rounds them.
pub(in crate::cache) fn row_format(config: &Config) -> RowFormat {
    match config.activation_rounding {
        true => RowFormat::Fp8 { nope: config.nope_dim(), rope: config.rope_dim },
        false => RowFormat::F32 { width: config.head_dim },
    }
}

/// How the indexer's keys are kept: as the model rounds them.
pub(in crate::cache) fn key_format(config: &Config, indexer: &IndexerConfig) -> RowFormat {
    match config.activation_rounding {
        true => RowFormat::Fp4 { width: indexer.head_dim },
        false => RowFormat::F32 { width: indexer.head_dim },
    }
}
