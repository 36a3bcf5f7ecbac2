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

    /// Bytes that another token of a long sequence takes.
    pub fn token(&self) -> usize {
        self.page.div_ceil(PAGE_TOKENS)
    }

    /// A sequence that may grow to `tokens` tokens, the first `shared` of them in pages that are
    /// accounted for elsewhere: its rows, its own state, and the copy of the page that it shares
    /// in part.
    pub fn reserve(&self, tokens: usize, shared: usize) -> usize {
        let pages = tokens.div_ceil(PAGE_TOKENS) - (shared / PAGE_TOKENS).min(tokens / PAGE_TOKENS);
        // A point to come back to has a state of its own, and its last page is copied.
        let (states, copies) = if shared == 0 { (2, 1) } else { (1, 0) };
        (pages + copies).saturating_mul(self.page).saturating_add(states * self.fixed)
    }
}
