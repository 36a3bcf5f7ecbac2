//! What is kept of earlier prompts and answers, for prompts to come.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::job::Namespace;
use crate::cache::{Snapshot, REWIND_TOKENS};

/// A tree of token runs for each namespace, with frontiers at some of its nodes: states that a
/// prompt can go on from. Frontiers share the pages of their common prefixes.
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
    nodes: Vec<Node>,
    free: Vec<usize>,
    roots: HashMap<Namespace, usize>,
    /// How many frontiers hold a page, and its bytes; by address.
    pages: HashMap<usize, (usize, usize)>,
    bytes: usize,
    frontiers: usize,
    lookups: u64,
}

/// A place where runs part, or a frontier is.
struct Node {
    namespace: Namespace,
    parent: Option<usize>,
    /// Tokens since the parent.
    run: Vec<u32>,
    /// Tokens since the root.
    end: usize,
    /// By their first token.
    children: BTreeMap<u32, usize>,
    frontier: Option<Frontier>,
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

/// How far a prompt leads into a tree.
struct Walk {
    /// The last node that is wholly on its way.
    node: usize,
    /// A child of that node whose run the prompt leaves half-way.
    below: Option<usize>,
    /// Tokens in common.
    shared: usize,
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
        let Some(walk) = self.walk(namespace, prompt) else { return found };
        found.shared = walk.shared;
        let wanted = walk.shared.min(prompt.len().saturating_sub(1));
        let best = self.best(&walk, wanted);
        if let Some((frontier, len)) =
            best.and_then(|(node, len)| Some((self.nodes[node].frontier.as_mut()?, len)))
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
        self.walk(namespace, tokens).is_some_and(|walk| {
            let node = &self.nodes[walk.node];
            node.end == tokens.len() && node.frontier.is_some()
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
        let walk = match self.walk(namespace, tokens) {
            Some(walk) => walk,
            None => {
                let root = self.add(namespace, None, Vec::new(), 0);
                self.roots.insert(namespace, root);
                Walk { node: root, below: None, shared: 0 }
            }
        };
        let mut node = match walk.below {
            Some(below) => self.split(below, walk.shared),
            None => walk.node,
        };
        if walk.shared < tokens.len() {
            let run = tokens[walk.shared..].to_vec();
            let first = run[0];
            let leaf = self.add(namespace, Some(node), run, tokens.len());
            self.nodes[node].children.insert(first, leaf);
            node = leaf;
        }
        if self.nodes[node].frontier.is_some() {
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
        self.nodes[node].frontier = Some(Frontier { state, saved, hits: 0, used: self.lookups });
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
            .frontier_nodes()
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
        self.frontier_nodes()
            .filter(|(_, frontier)| Arc::strong_count(&frontier.state) > 1)
            .map(|(_, frontier)| {
                let fresh = pages(&frontier.state).filter(|(page, _)| seen.insert(*page));
                fresh.map(|(_, bytes)| bytes).sum::<usize>() + frontier.state.fixed_bytes()
            })
            .sum()
    }

    fn frontier_nodes(&self) -> impl Iterator<Item = (usize, &Frontier)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(index, node)| Some((index, node.frontier.as_ref()?)))
    }

    fn worth(&self, node: usize, frontier: &Frontier) -> f64 {
        let Node { parent, end, .. } = self.nodes[node];
        let before = self.last_frontier(parent, end).map_or(0, |before| self.nodes[before].end);
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
            let here = &self.nodes[index];
            if here.frontier.is_some() && here.end <= most {
                return Some(index);
            }
            node = here.parent;
        }
        None
    }

    /// The node of the frontier that serves most of a walk's first `wanted` tokens, and how many.
    fn best(&self, walk: &Walk, wanted: usize) -> Option<(usize, usize)> {
        let mut node = walk.node;
        let start = match walk.below {
            Some(below) if self.nodes[node].end < wanted => below,
            _ => node,
        };
        let mut len = wanted;
        let mut found = self.near(start, len);
        while found.is_none() {
            len = self.nodes[node].end.min(wanted);
            found = self.near(node, len);
            match self.nodes[node].parent {
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
            let node = &self.nodes[index];
            if node.end <= len + REWIND_TOKENS {
                if node.frontier.as_ref().is_some_and(|frontier| frontier.reaches(node.end, len)) {
                    return Some(index);
                }
                open.extend(node.children.values());
            }
        }
        None
    }

    fn walk(&self, namespace: Namespace, tokens: &[u32]) -> Option<Walk> {
        let mut walk = Walk { node: *self.roots.get(&namespace)?, below: None, shared: 0 };
        while let Some(first) = tokens.get(walk.shared) {
            let Some(&child) = self.nodes[walk.node].children.get(first) else { break };
            let run = &self.nodes[child].run;
            let same = common(run, &tokens[walk.shared..]);
            walk.shared += same;
            if same < run.len() {
                walk.below = Some(child);
                break;
            }
            walk.node = child;
        }
        Some(walk)
    }

    fn add(
        &mut self,
        namespace: Namespace,
        parent: Option<usize>,
        run: Vec<u32>,
        end: usize,
    ) -> usize {
        let node = Node { namespace, parent, run, end, children: BTreeMap::new(), frontier: None };
        match self.free.pop() {
            Some(index) => {
                self.nodes[index] = node;
                index
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    /// Puts a node where the way to `node` has `end` tokens, inside its run.
    fn split(&mut self, node: usize, end: usize) -> usize {
        let Node { namespace, parent, end: old_end, .. } = self.nodes[node];
        let run = &mut self.nodes[node].run;
        let rest = run.split_off(run.len() - (old_end - end));
        let run = std::mem::replace(run, rest);
        let (first, next) = (run[0], self.nodes[node].run[0]);
        let middle = self.add(namespace, parent, run, end);
        self.nodes[middle].children.insert(next, node);
        self.nodes[node].parent = Some(middle);
        if let Some(parent) = parent {
            self.nodes[parent].children.insert(first, middle);
        }
        middle
    }

    /// Gives up a frontier, and the nodes that nothing needs without it.
    fn remove(&mut self, mut node: usize) {
        let Some(Frontier { state, .. }) = self.nodes[node].frontier.take() else { return };
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
        while self.nodes[node].frontier.is_none() && self.nodes[node].children.is_empty() {
            let Node { namespace, parent, .. } = self.nodes[node];
            let run = std::mem::take(&mut self.nodes[node].run);
            self.free.push(node);
            let Some(parent) = parent else {
                self.roots.remove(&namespace);
                return;
            };
            self.nodes[parent].children.remove(&run[0]);
            node = parent;
        }
        self.join(node);
    }

    /// Takes a node out at which nothing is and nothing parts.
    fn join(&mut self, node: usize) {
        let Node { parent: Some(parent), frontier: None, ref children, .. } = self.nodes[node]
        else {
            return;
        };
        let mut children = children.values().copied();
        let (Some(child), None) = (children.next(), children.next()) else { return };
        let mut run = std::mem::take(&mut self.nodes[node].run);
        let first = run[0];
        run.append(&mut self.nodes[child].run);
        self.nodes[child].run = run;
        self.nodes[child].parent = Some(parent);
        self.nodes[parent].children.insert(first, child);
        self.nodes[node].children.clear();
        self.free.push(node);
    }
}

/// Address and bytes of each page of a state.
fn pages(state: &Snapshot) -> impl Iterator<Item = (usize, usize)> + '_ {
    state.rows().flat_map(|rows| {
        rows.pages().iter().map(|page| (Arc::as_ptr(page) as usize, rows.page_bytes()))
    })
}

/// How many tokens two sequences have in common at their beginnings.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    // Whole blocks are compared at the speed of memory.
    const BLOCK: usize = 64;
    let blocks = a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK));
    let same = blocks.take_while(|(a, b)| a == b).count() * BLOCK;
    same + a[same..].iter().zip(&b[same..]).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::config::Config;
    use crate::demo::demo_model;
    use crate::gguf::Gguf;
    use candle_core::Device;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const ALICE: Namespace = Namespace([1; 16]);
    const BOB: Namespace = Namespace([2; 16]);

    fn state() -> Arc<Snapshot> {
        let gguf = Gguf::from_bytes(demo_model()).unwrap();
        let config = Config::from_metadata(gguf.metadata()).unwrap();
        Arc::new(Cache::new(&config, &Device::Cpu).unwrap().into_snapshot().unwrap())
    }

    /// A snapshot of its own with the same content.
    fn another(state: &Snapshot) -> Arc<Snapshot> {
        Arc::new(state.duplicate().unwrap())
    }

    #[test]
    fn lookups_are_those_of_a_plain_list_whatever_was_put_in_and_taken_out() {
        let mut rng = StdRng::seed_from_u64(1);
        let state = state();
        let one = state.fixed_bytes();
        for round in 0..40 {
            let mut prefixes = Prefixes::default();
            let mut list: Vec<(Namespace, Vec<u32>)> = Vec::new();
            for _ in 0..60 {
                // Few letters and lengths, so that everything parts from everything everywhere.
                let mut tokens: Vec<u32> = match rng.random_range(0..3) {
                    0 if !list.is_empty() => list[rng.random_range(0..list.len())].1.clone(),
                    _ => Vec::new(),
                };
                tokens.truncate(rng.random_range(0..=tokens.len()));
                let more = rng.random_range(1..30);
                tokens.extend((0..more).map(|_| rng.random_range(0..2u32)));
                let namespace = if rng.random_bool(0.7) { ALICE } else { BOB };

                let found = prefixes.find(namespace, &tokens);
                let own = || list.iter().filter(|(of, _)| *of == namespace);
                let shared = own().map(|(_, kept)| common(kept, &tokens)).max().unwrap_or(0);
                let usable = own().map(|(_, kept)| {
                    let same = common(kept, &tokens).min(tokens.len() - 1);
                    if kept.len() <= same + REWIND_TOKENS {
                        same.min(kept.len())
                    } else {
                        0
                    }
                });
                assert_eq!(found.shared, shared, "round {round}");
                assert_eq!(found.len(), usable.max().unwrap_or(0), "round {round}");
                drop(found);

                let known = own().any(|(_, kept)| *kept == tokens);
                assert_eq!(prefixes.contains(namespace, &tokens), known);
                prefixes.insert(namespace, &tokens, another(&state), 0);
                if !known {
                    list.push((namespace, tokens));
                }
                assert_eq!(
                    (prefixes.frontiers(), prefixes.bytes()),
                    (list.len(), one * list.len())
                );
                if rng.random_bool(0.05) {
                    let budget = one * rng.random_range(0..=list.len());
                    prefixes.shrink(budget);
                    assert!(prefixes.bytes() <= budget);
                    list.retain(|(namespace, tokens)| prefixes.contains(*namespace, tokens));
                    assert_eq!(prefixes.frontiers(), list.len());
                }
            }
            prefixes.shrink(0);
            assert_eq!((prefixes.bytes(), prefixes.frontiers()), (0, 0));
            assert!(prefixes.roots.is_empty() && prefixes.pages.is_empty());
            assert_eq!(prefixes.free.len(), prefixes.nodes.len(), "a node leaked");
        }
    }

    #[test]
    fn what_is_in_use_stays_and_what_is_worth_most_goes_last() {
        let state = state();
        let mut prefixes = Prefixes::default();
        let tokens: Vec<u32> = (0..1000).collect();
        // A long prefix that is asked for, a long one that is not, a short step after it.
        prefixes.insert(ALICE, &tokens[..500], another(&state), 0);
        let held = another(&state);
        prefixes.insert(ALICE, &tokens[1..10], held.clone(), 0);
        prefixes.insert(ALICE, &tokens[..900], another(&state), 0);
        prefixes.insert(ALICE, &tokens[..910], another(&state), 0);
        for _ in 0..3 {
            assert_eq!(prefixes.find(ALICE, &tokens[..600]).len(), 500);
        }
        let one = state.fixed_bytes();
        let left = |prefixes: &Prefixes| {
            [500, 900, 910].map(|len| prefixes.contains(ALICE, &tokens[..len]))
        };
        assert_eq!(prefixes.shrink(one * 4 - 1), 1);
        assert_eq!(left(&prefixes), [true, true, false]);
        assert_eq!(prefixes.shrink(one * 3 - 1), 1);
        assert_eq!(left(&prefixes), [true, false, false]);
        assert_eq!(prefixes.shrink(0), 1);
        assert!(prefixes.contains(ALICE, &tokens[1..10]), "somebody holds it");
        assert_eq!((prefixes.pinned_bytes(), prefixes.bytes()), (one, one));
        drop(held);
        assert_eq!((prefixes.shrink(0), prefixes.bytes()), (1, 0));
    }

    #[test]
    fn common_prefixes_are_exact_around_blocks() {
        for len in [0, 1, 63, 64, 65, 127, 128, 200] {
            for other in [0, 1, 63, 64, 65, 127, 128, 200] {
                for at in 0..=len.min(other) {
                    let a: Vec<u32> = (0..len as u32).collect();
                    let mut b: Vec<u32> = (0..other as u32).collect();
                    b.iter_mut().skip(at).for_each(|token| *token += 1);
                    assert_eq!(common(&a, &b), at);
                }
            }
        }
    }
}
