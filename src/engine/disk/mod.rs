//! Sequences that outlive the process: what a store has of a prompt, and what goes into it.
//!
//! Neither reading nor writing holds up the engine: a job whose prefix is being read waits in the
//! queue while others run, and states are written down by a thread of their own.

mod loader;
mod saver;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use candle_core::Device;

use super::job::{Attach, Namespace};
use super::prefixes::Found;
use super::Engine;
use crate::cache::image::{ImageError, ImageLayout};
use crate::cache::store::{Fingerprint, Hit, OpenError, Settings, SourceError, Store};
use crate::cache::Snapshot;
use crate::config::Config;
use crate::gguf::{self, Gguf};
use crate::tokenizer::Tokenizer;
pub(super) use loader::{LoadError, Loaded};
use loader::{Loader, Order};
use saver::Saver;
pub(super) use saver::{Save, Saves};

/// Tokens that a store must have beyond what is in memory to be read from.
const WORTH_LOADING: usize = 64;
/// The shortest sequence that is written down.
const LEAST_SAVED: usize = 128;
/// A state is written down if more than one in so many of its tokens would be lost otherwise: so
/// 99 % of any prompt can be found again, and a frontier is not written for a few tokens.
const LOST_SHARE: usize = 128;

/// Why there is no store for a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The model's file.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// The model's shape.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The folder.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Opens a store for the states that an engine computes: `gguf` is the file that it was loaded
/// from, and all files of the store together may have `budget` bytes.
///
/// # Errors
/// The model's states do not fit into a store, or the folder cannot be used.
pub fn open_store(
    gguf: &Gguf,
    engine: &Engine,
    folder: &Path,
    budget: u64,
) -> Result<Store, StoreError> {
    let layout = ImageLayout::new(engine.model().config())?;
    let device = match engine.model().device() {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    };
    let shape: String = layout.fingerprint().iter().map(|byte| format!("{byte:02x}")).collect();
    let fingerprint = Fingerprint::of(gguf)?.with(device).with(&shape);
    let settings = Settings {
        page_tokens: layout.page_tokens(),
        budget,
        ..Settings::new(fingerprint, layout.page_bytes())
    };
    Ok(Store::open(folder, settings)?)
}

/// A store at work.
pub(super) struct Disk {
    shared: Shared,
    loader: Loader,
    saver: Saver,
}

/// What both threads need.
#[derive(Clone)]
struct Shared {
    store: Store,
    layout: Arc<ImageLayout>,
    config: Arc<Config>,
    device: Device,
    tokenizer: Arc<Tokenizer>,
    attach: Arc<OnceLock<Arc<dyn Attach>>>,
}

impl Shared {
    fn new(
        engine: &Engine,
        store: Store,
        attach: Arc<OnceLock<Arc<dyn Attach>>>,
    ) -> Result<Self, ImageError> {
        let config = engine.model().config();
        Ok(Self {
            store,
            layout: Arc::new(ImageLayout::new(config)?),
            config: Arc::new(config.clone()),
            device: engine.model().device().clone(),
            tokenizer: Arc::new(engine.tokenizer().clone()),
            attach,
        })
    }
}

/// Writes a state down and waits for it.
pub(super) fn save_now(engine: &Engine, store: &Store, save: &Save) -> Result<(), SourceError> {
    saver::write(&Shared::new(engine, store.clone(), Arc::default())?, save)
}

/// Reads what a store has of a prompt beyond what is in memory; says how many tokens that is.
pub(super) fn load_now(
    engine: &Engine,
    store: &Store,
    namespace: Namespace,
    prompt: &[u32],
    found: &Found,
) -> Result<Option<(usize, Arc<Snapshot>)>, ImageError> {
    let shared = Shared::new(engine, store.clone(), Arc::default())?;
    while let Some(hit) = store.lookup(&namespace.0, prompt).filter(|hit| hit.len() > found.len()) {
        let tokens = prompt[..hit.len()].to_vec();
        let order = Order { job: 0, namespace, tokens, shared: found.frontier.clone(), hit };
        match loader::read(&shared, &order) {
            Ok(state) => return Ok(Some((order.tokens.len(), Arc::new(state)))),
            // The next lookup finds what is left without it.
            Err(LoadError::Read(_)) => {}
            Err(LoadError::Image(error)) => return Err(error),
            Err(LoadError::Panicked) => return Ok(None),
        }
    }
    Ok(None)
}

impl Disk {
    pub fn new(
        engine: &Engine,
        store: Store,
        attach: Arc<OnceLock<Arc<dyn Attach>>>,
    ) -> std::io::Result<Self> {
        let shared = Shared::new(engine, store, attach).map_err(std::io::Error::other)?;
        let loader = Loader::start(shared.clone())?;
        let saver = Saver::start(shared.clone())?;
        Ok(Self { shared, loader, saver })
    }

    /// What the store has of a prompt, if that is worth reading beyond what is in memory.
    pub fn find(&self, namespace: Namespace, prompt: &[u32], found: &Found) -> Option<Hit> {
        // A token is left to run.
        let known = found.len() + WORTH_LOADING;
        let most = &prompt[..prompt.len().saturating_sub(1)];
        if most.len() < known {
            return None;
        }
        let hit = self.shared.store.lookup(&namespace.0, prompt)?;
        (hit.len() >= known && hit.len() <= most.len()).then_some(hit)
    }

    /// Begins to read what was found; [`Disk::loaded`] tells when it is there.
    pub fn load(&self, job: u64, namespace: Namespace, prompt: &[u32], found: Found, hit: Hit) {
        let tokens = prompt[..hit.len()].to_vec();
        self.loader.load(Order { job, namespace, tokens, shared: found.frontier, hit });
    }

    /// Something that was read, or could not be.
    pub fn loaded(&self) -> Option<Loaded> {
        self.loader.next()
    }

    /// Writes a state down; says whether it will be. If the saver is behind, it is only waited for
    /// if that is wanted.
    pub fn save(&self, save: Save, wait: bool) -> bool {
        self.saver.save(save, wait)
    }

    /// What was written, and what was not.
    pub fn saves(&self) -> &Arc<Saves> {
        self.saver.saves()
    }
}

/// Whether a state of `len` tokens is to be written down if one of the first `saved` of them is.
pub(super) fn worth_saving(len: usize, saved: usize) -> bool {
    len >= LEAST_SAVED && len.saturating_sub(saved) > len / LOST_SHARE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_99_of_100_tokens_can_be_found_again() {
        for len in LEAST_SAVED..5000 {
            for saved in [0, len / 2, len * 98 / 100, len * 99 / 100 - 1] {
                assert!(worth_saving(len, saved), "{len} tokens, {saved} saved");
            }
        }
        assert!(!worth_saving(127, 0) && !worth_saving(100_000, 99_500));
        assert!(!worth_saving(500, 600), "it was saved further on");
    }
}
