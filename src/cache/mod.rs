//! The KV state of one sequence: append, rewind, snapshot, restore; and a [`store`] for many.

mod layer;
pub mod store;

use candle_core::{Device, Result};
use candle_ds4_ops::Rows;

use crate::config::Config;
pub use candle_ds4_ops::PAGE_TOKENS;
pub(crate) use layer::pooling;
pub use layer::{CompressorCache, LayerCache};

/// Tokens that [`Cache::truncate`] can always take back without a snapshot.
///
/// Rings keep so many tokens more than attention needs.
pub const REWIND_TOKENS: usize = 8;

/// Why a cache cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The state that far back is overwritten.
    #[error(
        "cannot rewind to token {wanted}: the sequence has {len} tokens, and only the last \
         {REWIND_TOKENS} can be taken back; restore a snapshot instead"
    )]
    TooFarBack {
        /// The length asked for.
        wanted: usize,
        /// The length now.
        len: usize,
    },
    /// It is not shorter than the sequence.
    #[error("cannot rewind to token {wanted}: the sequence has only {len} tokens")]
    Ahead {
        /// The length asked for.
        wanted: usize,
        /// The length now.
        len: usize,
    },
    /// The device refused.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

/// What the model remembers of one sequence.
///
/// Compressed rows are append-only and grow with the sequence; all else has a fixed size.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<LayerCache>,
    len: usize,
    /// A forward pass failed half-way: layers disagree about the length.
    torn: bool,
    config: Config,
    device: Device,
}

/// A cache as it was at some length; shares full pages of compressed rows with it.
#[derive(Debug)]
pub struct Snapshot {
    layers: Vec<LayerCache>,
    len: usize,
}

impl Cache {
    /// The cache of an empty sequence.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn new(config: &Config, device: &Device) -> Result<Self> {
        Ok(Self {
            layers: empty_layers(config, device)?,
            len: 0,
            torn: false,
            config: config.clone(),
            device: device.clone(),
        })
    }

    /// Tokens remembered.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes held on the device, shared pages included.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::bytes).sum()
    }

    /// Forgets all tokens from the `len`-th on.
    ///
    /// # Errors
    /// If more than [`REWIND_TOKENS`] would have to be taken back (but zero always works), or the
    /// sequence is shorter; the cache is then as before.
    pub fn truncate(&mut self, len: usize) -> std::result::Result<(), CacheError> {
        if len > self.len {
            return Err(CacheError::Ahead { wanted: len, len: self.len });
        }
        if len == 0 {
            self.clear()?;
            return Ok(());
        }
        if self.len - len > REWIND_TOKENS {
            return Err(CacheError::TooFarBack { wanted: len, len: self.len });
        }
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
        self.len = len;
        Ok(())
    }

    /// Forgets everything.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn clear(&mut self) -> Result<()> {
        self.layers = empty_layers(&self.config, &self.device)?;
        self.len = 0;
        self.torn = false;
        Ok(())
    }

    /// A copy of the state to come back to: full pages are shared, the rest is copied.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let layers = self.layers.iter().map(LayerCache::duplicate).collect::<Result<_>>()?;
        Ok(Snapshot { layers, len: self.len })
    }

    /// Goes back to a snapshot of this cache or of another one of the same model.
    ///
    /// # Errors
    /// If the snapshot is another model's, or the device has no memory left; the cache is then as
    /// before.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        let fits = self.layers.len() == snapshot.layers.len()
            && self.layers.iter().zip(&snapshot.layers).all(|(a, b)| a.same_shape(b));
        if !fits {
            candle_core::bail!("restore: the snapshot is of a model of another shape");
        }
        self.layers = snapshot.layers.iter().map(LayerCache::duplicate).collect::<Result<_>>()?;
        self.len = snapshot.len;
        self.torn = false;
        Ok(())
    }

    /// The state itself as something to come back to, nothing copied; `None` if a forward pass
    /// failed half-way.
    pub fn into_snapshot(self) -> Option<Snapshot> {
        (!self.torn).then_some(Snapshot { layers: self.layers, len: self.len })
    }

    /// Whether a forward pass failed half-way, so that only [`Cache::clear`] and
    /// [`Cache::restore`] are of use.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// Bytes that do not depend on the length, and bytes of the rows of each [`PAGE_TOKENS`]
    /// tokens begun.
    pub fn footprint(&self) -> (usize, usize) {
        let fixed = self.layers.iter().map(LayerCache::fixed_bytes).sum();
        let page = self.layers.iter().flat_map(LayerCache::rows).map(Rows::page_bytes).sum();
        (fixed, page)
    }

    /// The layers, for a forward pass, which must say how it ended with [`Cache::advance`].
    ///
    /// # Errors
    /// If an earlier pass failed half-way.
    pub(crate) fn begin(&mut self) -> Result<&mut [LayerCache]> {
        if self.torn {
            candle_core::bail!(
                "a forward pass over this sequence failed half-way: clear the cache or restore a \
                 snapshot before going on"
            );
        }
        self.torn = true;
        Ok(&mut self.layers)
    }

    /// The pass that [`Cache::begin`] opened has appended `tokens` to every layer.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
        self.torn = false;
    }
}

impl Snapshot {
    /// Tokens that it remembers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it remembers nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes held on the device, shared pages included.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::bytes).sum()
    }

    /// The same state once more: pages are shared, the rest is copied.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn duplicate(&self) -> Result<Self> {
        let layers = self.layers.iter().map(LayerCache::duplicate).collect::<Result<_>>()?;
        Ok(Self { layers, len: self.len })
    }

    /// Bytes that it shares with no other snapshot.
    pub fn fixed_bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::fixed_bytes).sum()
    }

    /// The lists of compressed rows, whose pages may be shared.
    pub fn rows(&self) -> impl Iterator<Item = &Rows> {
        self.layers.iter().flat_map(LayerCache::rows)
    }
}

fn empty_layers(config: &Config, device: &Device) -> Result<Vec<LayerCache>> {
    config.layers.iter().map(|&kind| LayerCache::new(kind, config, device)).collect()
}
