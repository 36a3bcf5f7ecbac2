//! What one layer remembers of a sequence.

use candle_core::{Device, Result};
use candle_ds4_ops::{PoolState, Pooling, Ring, Rows};

use super::REWIND_TOKENS;
use crate::config::{Config, LayerKind};

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
    fn new(kind: LayerKind, dim: usize, device: &Device) -> Result<Option<Self>> {
        let Some(pooling) = pooling(kind) else { return Ok(None) };
        let slots = pooling.reach() + REWIND_TOKENS;
        let width = pooling.width(dim);
        let state = PoolState {
            values: Ring::new(slots, width, device)?,
            gates: Ring::new(slots, width, device)?,
        };
        let ratio = pooling.ratio;
        Ok(Some(Self { state, rows: Rows::new(ratio, dim, device), ratio }))
    }

    fn duplicate(&self) -> Result<Self> {
        let state = PoolState {
            values: self.state.values.duplicate()?,
            gates: self.state.gates.duplicate()?,
        };
        Ok(Self { state, rows: self.rows.clone(), ratio: self.ratio })
    }

    fn truncate(&mut self, tokens: usize) {
        self.rows.truncate(tokens / self.ratio);
    }

    fn fixed_bytes(&self) -> usize {
        self.state.values.bytes() + self.state.gates.bytes()
    }

    fn same_shape(&self, other: &Self) -> bool {
        self.ratio == other.ratio
            && self.rows.width() == other.rows.width()
            && self.state.values.data().dims() == other.state.values.data().dims()
    }
}

impl LayerCache {
    pub(super) fn new(kind: LayerKind, config: &Config, device: &Device) -> Result<Self> {
        let slots = config.sliding_window + REWIND_TOKENS;
        let keys = match (kind, &config.indexer) {
            (LayerKind::Sparse { .. }, Some(indexer)) => {
                CompressorCache::new(kind, indexer.head_dim, device)?
            }
            _ => None,
        };
        Ok(Self {
            window: Ring::new(slots, config.head_dim, device)?,
            compressed: CompressorCache::new(kind, config.head_dim, device)?,
            keys,
        })
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
        for compressor in [&mut self.compressed, &mut self.keys].into_iter().flatten() {
            compressor.truncate(tokens);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.fixed_bytes() + self.rows().map(Rows::bytes).sum::<usize>()
    }

    pub(super) fn fixed_bytes(&self) -> usize {
        let compressors = [&self.compressed, &self.keys].into_iter().flatten();
        self.window.bytes() + compressors.map(CompressorCache::fixed_bytes).sum::<usize>()
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &Rows> {
        [&self.compressed, &self.keys].into_iter().flatten().map(|compressor| &compressor.rows)
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
