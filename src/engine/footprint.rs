//! How many bytes a sequence takes on the device.

use crate::cache::{Cache, PAGE_TOKENS};

/// The sizes that a model's caches are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Footprint {
    fixed: usize,
    page: usize,
}

impl Footprint {
    pub fn new(cache: &Cache) -> Self {
        let (fixed, page) = cache.sizes();
        Self { fixed, page }
    }

    /// A sequence that may grow to `tokens` tokens, the first `shared` of them in pages that are
    /// accounted for elsewhere: its rows, its own state, and the copy of the page that it shares
    /// in part.
    pub fn reserve(&self, tokens: usize, shared: usize) -> usize {
        let pages = tokens.div_ceil(PAGE_TOKENS) - (shared / PAGE_TOKENS).min(tokens / PAGE_TOKENS);
        // A point to come back to has a state of its own.
        let states = if shared == 0 { 2 } else { 1 };
        pages.saturating_mul(self.page).saturating_add(states * self.fixed)
    }
}
