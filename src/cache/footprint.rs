//! What a set of caches and snapshots takes together.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Cache, LayerCache, Snapshot};

/// Adds up bytes on the device, each shared page once.
#[derive(Debug, Default)]
pub struct Footprint {
    pages: HashSet<usize>,
    bytes: usize,
}

impl Footprint {
    /// Of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of all that was added.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a cache; returns the bytes that nothing before it had.
    pub fn add_cache(&mut self, cache: &Cache) -> usize {
        self.add(&cache.layers)
    }

    /// Adds a snapshot; returns the bytes that nothing before it had.
    pub fn add_snapshot(&mut self, snapshot: &Snapshot) -> usize {
        self.add(&snapshot.layers)
    }

    fn add(&mut self, layers: &[LayerCache]) -> usize {
        let mut new = 0;
        for layer in layers {
            new += layer.bytes();
            for list in layer.lists() {
                // Pages are told apart by where they are, and live as long as what was added.
                let known = |page: &&Arc<_>| !self.pages.insert(Arc::as_ptr(page) as usize);
                new -= list.rows.pages().iter().filter(known).count() * list.rows.page_bytes();
            }
        }
        self.bytes += new;
        new
    }
}
