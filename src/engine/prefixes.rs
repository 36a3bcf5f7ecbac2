//! What is kept of earlier prompts and answers, for prompts to come.

#[cfg(test)]
mod tests;
mod tree;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::job::Namespace;
use crate::cache::{Snapshot, REWIND_TOKENS};
pub(super) use tree::common;
use tree::{Tree, Walk};

/// Frontiers: states that a prompt can go on from, by the tokens that they come after. Frontiers
/// share the pages of their common prefixes.
///
/// Over its budget it gives up what is worth least by the byte, where the worth of a frontier is
/// the work of computing it again × the chance that it is asked for:
///
/// `(tokens since the frontier before it) · (1 + hits) / (1 + lookups since the last hit) / bytes`
///
/// and `bytes` are those that would really be freed. A frontier that anybody still holds (a running
/// sequence that started there, a save under way) is never given up.
#[derive(Default)]
pub(super) struct Prefixes {
    tree: Tree<Frontier>,
    /// How many frontiers hold a page, and its bytes; by address.
    pages: HashMap<usize, (usize, usize)>,
    bytes: usize,
    frontiers: usize,
    lookups: u64,
}

struct Frontier {
    state: Arc<Snapshot>,
    /// Tokens of it that are on disk.
    saved: usize,
    hits: u64,
    /// Count of lookups at the last hit.
    used: u64,
}

impl Frontier {
    /// Whether the state after `end` tokens can go back to the one after `len`.
    fn reaches(&self, end: usize, len: usize) -> bool {
        end == len || self.state.oldest() <= len
    }
}

/// What is known of a prompt.
pub(super) struct Found {
    /// Where to go on from, and how many tokens of it are the prompt's: at most
    /// [`REWIND_TOKENS`] fewer than it has.
    pub frontier: Option<(Arc<Snapshot>, usize)>,
    /// How many tokens of the frontier are on disk.
    pub saved: usize,
    /// How many tokens the prompt shares with any kept sequence.
    pub shared: usize,
}

impl Found {
    /// Tokens that need not be computed.
    pub fn len(&self) -> usize {
        self.frontier.as_ref().map_or(0, |(_, len)| *len)
    }
}

impl Prefixes {
    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many frontiers there are.
    pub fn frontiers(&self) -> usize {
        self.frontiers
    }

    /// The longest prefix of `prompt` to go on from, at least one token of which is left to run.
    pub fn find(&mut self, namespace: Namespace, prompt: &[u32]) -> Found {
        self.lookups += 1;
        let mut found = Found { frontier: None, saved: 0, shared: 0 };
        let Some(walk) = self.tree.walk(namespace, prompt) else { return found };
        found.shared = walk.shared;
        let wanted = walk.shared.min(prompt.len().saturating_sub(1));
        let best = self.best(&walk, wanted);
        if let Some((frontier, len)) =
            best.and_then(|(node, len)| Some((self.tree.value_mut(node)?, len)))
        {
            frontier.hits += 1;
            frontier.used = self.lookups;
            found.saved = frontier.saved.min(len);
            found.frontier = Some((frontier.state.clone(), len));
        }
        found
    }

    /// Whether there is a frontier after exactly these tokens.
    pub fn contains(&self, namespace: Namespace, tokens: &[u32]) -> bool {
        self.tree.walk(namespace, tokens).is_some_and(|walk| {
            let is_there = self.tree.value(walk.node).is_some();
            is_there && self.tree.end(walk.node) == tokens.len()
        })
    }

    /// Keeps the state after `tokens`, unless there is one; `saved` of them are on disk.
    pub fn insert(
        &mut self,
        namespace: Namespace,
        tokens: &[u32],
        state: Arc<Snapshot>,
        saved: usize,
    ) {
        let frontier = Frontier { state: state.clone(), saved, hits: 0, used: self.lookups };
        if !self.tree.insert(namespace, tokens, frontier) {
            return;
        }
        for (page, bytes) in pages(&state) {
            let entry = self.pages.entry(page).or_insert((0, bytes));
            entry.0 += 1;
            if entry.0 == 1 {
                self.bytes += bytes;
            }
        }
        self.bytes += state.fixed_bytes();
        self.frontiers += 1;
    }

    /// Gives up the least valuable frontiers until at most `budget` bytes are held, or all others
    /// are in use; returns how many.
    ///
    /// If any has to go, so many go that a sixteenth of the budget is free: choosing is not for
    /// every step.
    pub fn shrink(&mut self, budget: usize) -> usize {
        if self.bytes <= budget {
            return 0;
        }
        let mut worth: Vec<(f64, usize)> = self
            .tree
            .values()
            .filter(|(_, frontier)| Arc::strong_count(&frontier.state) == 1)
            .map(|(node, frontier)| (self.worth(node, frontier), node))
            .collect();
        worth.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut given_up = 0;
        for (_, node) in worth {
            if self.bytes <= budget - budget / 16 {
                break;
            }
            self.remove(node);
            given_up += 1;
        }
        given_up
    }

    /// Bytes of frontiers that are in use.
    pub fn pinned_bytes(&self) -> usize {
        let mut seen = HashSet::new();
        self.tree
            .values()
            .filter(|(_, frontier)| Arc::strong_count(&frontier.state) > 1)
            .map(|(_, frontier)| {
                let fresh = pages(&frontier.state).filter(|(page, _)| seen.insert(*page));
                fresh.map(|(_, bytes)| bytes).sum::<usize>() + frontier.state.fixed_bytes()
            })
            .sum()
    }

    fn worth(&self, node: usize, frontier: &Frontier) -> f64 {
        let end = self.tree.end(node);
        let before = self.last_frontier(self.tree.parent(node), end);
        let before = before.map_or(0, |before| self.tree.end(before));
        let chance = (1 + frontier.hits) as f64 / (1 + self.lookups - frontier.used) as f64;
        (end - before) as f64 * chance / self.freed(&frontier.state).max(1) as f64
    }

    /// Bytes that giving up a state would free.
    fn freed(&self, state: &Snapshot) -> usize {
        let alone = |page: &usize| self.pages.get(page).is_some_and(|(holders, _)| *holders == 1);
        // Lists with a common prefix share the pages of the prefix: what is not shared is last.
        let rows = state.rows().map(|rows| {
            let addresses = rows.pages().iter().rev().map(|page| Arc::as_ptr(page) as usize);
            addresses.take_while(alone).count() * rows.page_bytes()
        });
        rows.sum::<usize>() + state.fixed_bytes()
    }

    /// The node of the last frontier of at most `most` tokens, from `node` up.
    fn last_frontier(&self, mut node: Option<usize>, most: usize) -> Option<usize> {
        while let Some(index) = node {
            if self.tree.value(index).is_some() && self.tree.end(index) <= most {
                return Some(index);
            }
            node = self.tree.parent(index);
        }
        None
    }

    /// The node of the frontier that serves most of a walk's first `wanted` tokens, and how many.
    fn best(&self, walk: &Walk, wanted: usize) -> Option<(usize, usize)> {
        let mut node = walk.node;
        let start = match walk.below {
            Some(below) if self.tree.end(node) < wanted => below,
            _ => node,
        };
        let mut len = wanted;
        let mut found = self.near(start, len);
        while found.is_none() {
            len = self.tree.end(node).min(wanted);
            found = self.near(node, len);
            match self.tree.parent(node) {
                Some(parent) => node = parent,
                None => break,
            }
        }
        found.filter(|_| len > 0).map(|node| (node, len))
    }

    /// A frontier from `node` on, of at least `len` tokens, but not so many more that they cannot
    /// be taken back.
    fn near(&self, node: usize, len: usize) -> Option<usize> {
        let mut open = vec![node];
        while let Some(index) = open.pop() {
            let end = self.tree.end(index);
            if end <= len + REWIND_TOKENS {
                if self.tree.value(index).is_some_and(|frontier| frontier.reaches(end, len)) {
                    return Some(index);
                }
                open.extend(self.tree.children(index));
            }
        }
        None
    }

    /// Gives up a frontier.
    fn remove(&mut self, node: usize) {
        let Some(Frontier { state, .. }) = self.tree.take(node) else { return };
        self.frontiers -= 1;
        self.bytes -= state.fixed_bytes();
        for (page, bytes) in pages(&state) {
            if let Entry::Occupied(mut entry) = self.pages.entry(page) {
                entry.get_mut().0 -= 1;
                if entry.get().0 == 0 {
                    entry.remove();
                    self.bytes -= bytes;
                }
            }
        }
    }
}

/// Address and bytes of each page of a state.
fn pages(state: &Snapshot) -> impl Iterator<Item = (usize, usize)> + '_ {
    state.rows().flat_map(|rows| {
        rows.pages().iter().map(|page| (Arc::as_ptr(page) as usize, rows.page_bytes()))
    })
}
