//! The KV state of one sequence: append, rewind, snapshot, restore; as bytes in [`image`]; and a
//! [`store`] for many.

mod footprint;
pub mod image;
mod layer;
pub mod store;

use candle_core::{Device, Result};
use candle_ds4_ops::Rows;

use crate::config::Config;
pub use candle_ds4_ops::PAGE_TOKENS;
pub use footprint::Footprint;
pub(crate) use layer::pooling;
pub use layer::{CompressorCache, LayerCache};

/// Tokens that [`Cache::truncate`] can take back without a snapshot.
///
/// Rings keep so many tokens more than attention needs. What comes back from an [`image`] has only
/// what attention needs.
pub const REWIND_TOKENS: usize = 8;

/// Why a cache cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The state that far back is overwritten.
    #[error(
        "cannot rewind to token {wanted}: the sequence has {len} tokens and can go back to \
         {oldest} at most; restore a snapshot instead"
    )]
    TooFarBack {
        /// The length asked for.
        wanted: usize,
        /// The length now.
        len: usize,
        /// The least length that it can go back to, but for zero.
        oldest: usize,
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
    /// The least length whose rows the rings still have.
    oldest: usize,
    /// A forward pass failed half-way: layers disagree about the length.
    torn: bool,
    config: Config,
    device: Device,
    /// Another number whenever the layers are other ones: work that was recorded on them is void.
    layers_id: u64,
}

/// A cache as it was at some length; shares full pages of compressed rows with it.
#[derive(Debug)]
pub struct Snapshot {
    layers: Vec<LayerCache>,
    len: usize,
    oldest: usize,
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
            oldest: 0,
            torn: false,
            config: config.clone(),
            device: device.clone(),
            layers_id: fresh_id(),
        })
    }

    /// The cache of a sequence of `tokens` tokens that never were: for measurements at contexts that would
    /// take long to read.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn made_up(config: &Config, device: &Device, tokens: usize) -> Result<Self> {
        let mut cache = Self::new(config, device)?;
        cache.layers.iter_mut().try_for_each(|layer| layer.make_up(tokens))?;
        (cache.len, cache.oldest) = (tokens, tokens);
        Ok(cache)
    }

    /// Which layers these are: the number changes when [`Cache::clear`] or [`Cache::restore`] replace
    /// them.
    pub(crate) fn layers_id(&self) -> u64 {
        self.layers_id
    }

    /// Makes room for the rows of `tokens` more tokens in every layer, where kernels find it.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<()> {
        let end = self.len + tokens;
        self.layers.iter_mut().try_for_each(|layer| layer.reserve(end))
    }

    /// Rows of `tokens` more tokens have been written to every layer by work that was replayed.
    ///
    /// # Errors
    /// If there was no room for them.
    pub(crate) fn replayed(&mut self, tokens: usize) -> Result<()> {
        let end = self.len + tokens;
        self.layers.iter_mut().try_for_each(|layer| layer.replayed(end))
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

    /// Bytes that would be free without it: all but pages that others share.
    pub fn own_bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::own_bytes).sum()
    }

    /// The least length that [`Cache::truncate`] can go back to, but for zero, which always works.
    pub fn oldest(&self) -> usize {
        self.oldest
    }

    /// Forgets all tokens from the `len`-th on.
    ///
    /// # Errors
    /// If that is less than [`Cache::oldest`] (but zero always works), or the sequence is shorter;
    /// the cache is then as before.
    pub fn truncate(&mut self, len: usize) -> std::result::Result<(), CacheError> {
        if len > self.len {
            return Err(CacheError::Ahead { wanted: len, len: self.len });
        }
        if len == 0 {
            self.clear()?;
            return Ok(());
        }
        if len < self.oldest {
            let Self { len: now, oldest, .. } = *self;
            return Err(CacheError::TooFarBack { wanted: len, len: now, oldest });
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
        self.layers_id = fresh_id();
        (self.len, self.oldest) = (0, 0);
        self.torn = false;
        Ok(())
    }

    /// A copy of the state to come back to: full pages are shared, the rest is copied.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let layers = self.layers.iter().map(LayerCache::duplicate).collect::<Result<_>>()?;
        Ok(Snapshot { layers, len: self.len, oldest: self.oldest })
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
        self.layers_id = fresh_id();
        (self.len, self.oldest) = (snapshot.len, snapshot.oldest);
        self.torn = false;
        Ok(())
    }

    /// The state itself as something to come back to, nothing copied; `None` if a forward pass
    /// failed half-way.
    pub fn into_snapshot(self) -> Option<Snapshot> {
        let Self { layers, len, oldest, torn, .. } = self;
        (!torn).then_some(Snapshot { layers, len, oldest })
    }

    /// Whether a forward pass failed half-way, so that only [`Cache::clear`] and
    /// [`Cache::restore`] are of use.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// Bytes that do not depend on the length, and bytes of the rows of each [`PAGE_TOKENS`]
    /// tokens begun.
    pub fn sizes(&self) -> (usize, usize) {
        let fixed = self.layers.iter().map(LayerCache::fixed_bytes).sum();
        let lists = self.layers.iter().flat_map(LayerCache::lists);
        (fixed, lists.map(|list| list.rows.page_bytes()).sum())
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
        self.oldest = self.oldest.max(self.len.saturating_sub(REWIND_TOKENS));
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

    /// The least length that a cache restored from it can go back to, but for zero.
    pub fn oldest(&self) -> usize {
        self.oldest
    }

    /// Bytes that would be free without it: all but pages that others share.
    pub fn own_bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::own_bytes).sum()
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
        Ok(Self { layers, len: self.len, oldest: self.oldest })
    }

    /// Bytes that it shares with no other snapshot.
    pub fn fixed_bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::fixed_bytes).sum()
    }

    /// The lists of compressed rows, whose pages may be shared.
    pub fn rows(&self) -> impl Iterator<Item = &Rows> {
        self.layers.iter().flat_map(LayerCache::lists).map(|list| &list.rows)
    }
}

fn fresh_id() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn empty_layers(config: &Config, device: &Device) -> Result<Vec<LayerCache>> {
    config.layers.iter().map(|&kind| LayerCache::new(kind, config, device)).collect()
}
