//! What is in the folder, in memory: made from the files' headers, never written.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::format::{FrontierHead, Origin, PagesHead};
use super::key::{Key, Name};

/// A file of pages that follow each other.
#[derive(Debug)]
pub(super) struct Run {
    pub name: Name,
    pub origin: Origin,
    /// The page in front of the first, or the root.
    pub parent: Key,
    pub keys: Vec<Key>,
    pub sums: Vec<[u8; 32]>,
    /// Of the file.
    pub bytes: u64,
}

impl Run {
    pub fn new(head: PagesHead) -> Self {
        let keys = head.keys();
        let last = keys.last().copied().unwrap_or(head.parent);
        let bytes =
            PagesHead::file_len(keys.len(), head.origin.page_tokens, head.origin.page_bytes);
        let name = head.parent.run_name(&last);
        let PagesHead { origin, parent, sums, .. } = head;
        Self { name, origin, parent, keys, sums, bytes }
    }

    /// Where a page begins in the file.
    pub fn offset(&self, page: usize) -> u64 {
        PagesHead::len(self.keys.len(), self.origin.page_tokens) as u64
            + page as u64 * self.origin.page_bytes
    }
}

/// A frontier's file.
#[derive(Debug)]
pub(super) struct Frontier {
    pub name: Name,
    pub head: FrontierHead,
    /// Of the file.
    pub bytes: u64,
    /// Shared with those who are reading it.
    pub pin: Arc<()>,
}

impl Frontier {
    pub fn new(head: FrontierHead) -> Self {
        let name = head.key().name();
        Self { name, bytes: head.file_len(), head, pin: Arc::new(()) }
    }

    /// Whether somebody in this process is reading it.
    pub fn is_pinned(&self) -> bool {
        Arc::strong_count(&self.pin) > 1
    }
}

/// Where a page is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub run: Arc<Run>,
    /// In the run.
    pub page: usize,
}

/// All that is known of the folder.
#[derive(Debug, Default)]
pub(super) struct Index {
    runs: HashMap<Name, Arc<Run>>,
    /// In the order of their names, so that processes agree.
    frontiers: BTreeMap<Name, Arc<Frontier>>,
    pages: HashMap<Key, Place>,
    /// Further places of pages that are there more than once: files were copied in.
    copies: HashMap<Key, Vec<Place>>,
    /// Frontiers by their last whole page.
    by_page: HashMap<Key, Vec<Name>>,
    /// Files of ours that are of another version, and their bytes.
    pub foreign: HashMap<String, u64>,
    /// Names that are not looked at until this time, since 1970.
    pub shunned: HashMap<String, Duration>,
    /// The folder's state when it was last read, if nothing can have come in unnoticed since.
    pub seen: Option<Duration>,
}

impl Index {
    pub fn add_run(&mut self, run: Run) {
        let run = Arc::new(run);
        for (page, key) in run.keys.iter().enumerate() {
            let place = Place { run: run.clone(), page };
            match self.pages.entry(*key) {
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(place);
                }
                std::collections::hash_map::Entry::Occupied(_) => {
                    self.copies.entry(*key).or_default().push(place);
                }
            }
        }
        self.runs.insert(run.name, run);
    }

    pub fn add_frontier(&mut self, frontier: Frontier) {
        self.by_page.entry(frontier.head.parent).or_default().push(frontier.name);
        self.frontiers.insert(frontier.name, Arc::new(frontier));
    }

    /// A new file has taken the place of one that could not be used.
    pub fn replaced(&mut self, name: &str) {
        self.shunned.remove(name);
        self.foreign.remove(name);
    }

    pub fn remove_run(&mut self, name: Name) {
        let Some(run) = self.runs.remove(&name) else { return };
        for key in &run.keys {
            if let Some(copies) = self.copies.get_mut(key) {
                copies.retain(|place| place.run.name != name);
            }
            if self.pages.get(key).is_some_and(|place| place.run.name == name) {
                match self.copies.get_mut(key).and_then(Vec::pop) {
                    Some(copy) => self.pages.insert(*key, copy),
                    None => self.pages.remove(key),
                };
            }
            if self.copies.get(key).is_some_and(Vec::is_empty) {
                self.copies.remove(key);
            }
        }
    }

    pub fn remove_frontier(&mut self, name: Name) {
        let Some(frontier) = self.frontiers.remove(&name) else { return };
        let parent = frontier.head.parent;
        if let Some(names) = self.by_page.get_mut(&parent) {
            names.retain(|other| *other != name);
            if names.is_empty() {
                self.by_page.remove(&parent);
            }
        }
    }

    pub fn run(&self, name: Name) -> Option<&Arc<Run>> {
        self.runs.get(&name)
    }

    pub fn frontier(&self, name: Name) -> Option<&Arc<Frontier>> {
        self.frontiers.get(&name)
    }

    pub fn runs(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.runs.values()
    }

    pub fn frontiers(&self) -> impl Iterator<Item = &Arc<Frontier>> {
        self.frontiers.values()
    }

    pub fn page(&self, key: &Key) -> Option<&Place> {
        self.pages.get(key)
    }

    /// Pages, each counted once.
    pub fn page_count(&self) -> usize {
        self.pages.len()
    }

    /// Bytes of the files that can be used.
    pub fn bytes(&self) -> u64 {
        let runs: u64 = self.runs.values().map(|run| run.bytes).sum();
        runs + self.frontiers.values().map(|frontier| frontier.bytes).sum::<u64>()
    }

    /// The frontiers whose last whole page is this one.
    pub fn frontiers_at(&self, page: &Key) -> impl Iterator<Item = &Arc<Frontier>> {
        let names = self.by_page.get(page).map_or(&[][..], Vec::as_slice);
        names.iter().filter_map(|name| self.frontiers.get(name))
    }

    /// The longest frontier of a prefix of `ids` whose pages are all here, and these pages.
    ///
    /// A frontier of all of `ids` counts only with logits: without them, a token must be left to
    /// run.
    pub fn longest(
        &self,
        root: Key,
        page_tokens: usize,
        ids: &[u32],
    ) -> Option<(Arc<Frontier>, Vec<Place>)> {
        let fits = |frontier: &Frontier, whole: usize| {
            let rest = &ids[whole * page_tokens..];
            let tail = &frontier.head.tail;
            rest.starts_with(tail) && (rest.len() > tail.len() || frontier.head.logits > 0)
        };
        let mut places = Vec::new();
        let mut best: Option<Arc<Frontier>> = None;
        let mut key = root;
        loop {
            let here = self.frontiers_at(&key).filter(|frontier| fits(frontier, places.len()));
            if let Some(longest) = here.max_by_key(|frontier| frontier.head.tail.len()) {
                best = Some(longest.clone());
            }
            let start = places.len() * page_tokens;
            let Some(page) = ids.get(start..start + page_tokens) else { break };
            key = key.page(page);
            let Some(place) = self.pages.get(&key) else { break };
            places.push(place.clone());
        }
        let best = best?;
        places.truncate(best.head.pages());
        Some((best, places))
    }

    /// The files that hold a frontier's pages, the last first; `None` if a page is missing.
    pub fn runs_of(&self, frontier: &Frontier) -> Option<Vec<Arc<Run>>> {
        let mut runs = Vec::new();
        let mut left = frontier.head.pages();
        let mut key = frontier.head.parent;
        while left > 0 {
            let Place { run, page } = self.pages.get(&key)?;
            left = left.checked_sub(page + 1)?;
            key = run.parent;
            runs.push(run.clone());
        }
        (key == frontier.head.origin.root()).then_some(runs)
    }

    /// The next shorter frontier whose whole pages this one shares.
    ///
    /// Ids after the other's last whole page are compared only within the same page; elsewhere
    /// they are taken to be the same, which is close enough for a value.
    pub fn below(&self, frontier: &Frontier) -> Option<Arc<Frontier>> {
        let mut left = frontier.head.pages();
        let mut key = frontier.head.parent;
        let tail = &frontier.head.tail;
        let same_page = self
            .frontiers_at(&key)
            .filter(|other| other.head.tail.len() < tail.len())
            .filter(|other| tail.starts_with(&other.head.tail))
            .max_by_key(|other| other.head.tokens);
        if let Some(other) = same_page {
            return Some(other.clone());
        }
        while left > 0 {
            let Place { run, page } = self.pages.get(&key)?;
            for page in (0..=*page).rev() {
                left = left.checked_sub(1)?;
                key = if page == 0 { run.parent } else { run.keys[page - 1] };
                let found = self.frontiers_at(&key).max_by_key(|other| other.head.tokens);
                if let Some(other) = found {
                    return Some(other.clone());
                }
            }
        }
        None
    }

    /// Pages that no frontier needs.
    pub fn orphans(&self) -> Vec<Arc<Run>> {
        let needed: HashSet<Name> = self
            .frontiers
            .values()
            .filter_map(|frontier| self.runs_of(frontier))
            .flatten()
            .map(|run| run.name)
            .collect();
        let orphan = |run: &&Arc<Run>| !needed.contains(&run.name);
        self.runs.values().filter(orphan).cloned().collect()
    }
}
