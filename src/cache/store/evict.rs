//! What is removed when room is needed: the least valuable first.
//!
//! The value of a frontier is what it is likely to save, for the bytes that it takes:
//!
//! ```text
//! value  = tokens × chance / bytes
//! tokens   that would be computed again without it: down to the next shorter frontier kept
//! chance = (1 + hits) / (1 + idle / 6 h), a quarter of that if a longer frontier continues it
//! bytes    of its file, and of those files of pages that no other frontier needs
//! ```
//!
//! Conversations are taken up again most often soon, and mostly where they ended. Times between
//! two uses have a long tail, so the chance falls with one over the time and not faster.
//!
//! Files of pages go with the last frontier that needs them, never before. Before any frontier
//! go what is in quarantine, files of other versions of the format, and pages that no frontier
//! needs (of a save that did not come to its end). Never removed: what the save that room is made
//! for shares, what this process is reading, and in [`Store::gc`] the newest frontier.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::counters::Counters;
use super::folder::{frontier_name, pages_name, Writer};
use super::index::{Frontier, Index, Run};
use super::key::Name;
use super::uses::Uses;
use super::{SaveError, Store, LEAST_RESERVE, RESERVE_PERCENT};

/// Idle for so long, in seconds, a frontier is half as likely to be used.
const HALF_CHANCE: f64 = 6.0 * 3600.0;
/// How much less likely a frontier is to be used once a longer one continues it.
const CONTINUED: f64 = 4.0;

/// What must stay.
#[derive(Debug, Default)]
pub(super) struct Protected {
    pub runs: HashSet<Name>,
    pub frontier: Option<Name>,
}

/// What may go.
#[derive(Debug, PartialEq, Eq)]
enum Victim {
    Quarantined(String, u64),
    Foreign(String, u64),
    Run(Name, u64),
    Frontier(Name, u64),
}

impl Victim {
    fn bytes(&self) -> u64 {
        match self {
            Self::Quarantined(_, bytes)
            | Self::Foreign(_, bytes)
            | Self::Run(_, bytes)
            | Self::Frontier(_, bytes) => *bytes,
        }
    }
}

/// A frontier that may go, and what its value is made of.
struct Candidate {
    frontier: Arc<Frontier>,
    runs: Vec<Arc<Run>>,
    /// Whether all of its pages are there.
    usable: bool,
    below: Option<Arc<Frontier>>,
    continued: bool,
    chance: f64,
}

impl Store {
    /// Removes what is worth least until `needed` bytes may be written; returns how many
    /// frontiers went. Nothing is removed if even that would not do.
    pub(super) fn make_room(
        &self,
        writer: &Writer<'_>,
        index: &mut Index,
        uses: &Uses,
        needed: u64,
        protected: &Protected,
    ) -> Result<usize, SaveError> {
        let folder = &self.inner.folder;
        let budget = self.inner.settings.budget;
        let space = folder.io.space(&folder.dir)?;
        let usual = (space.total / 100 * RESERVE_PERCENT).max(LEAST_RESERVE);
        let reserve = self.inner.settings.reserve.unwrap_or(usual);
        let quarantined = folder.quarantined();
        let used = self.used(index, uses, &quarantined);

        let over_budget = (used + needed).saturating_sub(budget);
        // A disk that others have filled is not ours to empty: only as much goes as comes.
        let over_disk = needed.saturating_sub(space.free.saturating_sub(reserve));
        let wanted = over_budget.max(over_disk);
        if wanted == 0 {
            return Ok(0);
        }
        let victims = Plan::new(index, uses, protected, folder.io.now().as_secs())
            .victims(quarantined, wanted);
        let freed: u64 = victims.iter().map(Victim::bytes).sum();
        if freed < over_budget {
            let needed = used + needed - freed;
            return Err(SaveError::Budget { needed, budget });
        }
        if freed < over_disk {
            return Err(SaveError::Reserve { needed, free: space.free, reserve });
        }
        Ok(self.remove_all(writer, index, &victims)?)
    }

    /// Removes what is worth least until the budget is kept, or as much as may go; returns how many
    /// frontiers went.
    pub(super) fn shrink(
        &self,
        writer: &Writer<'_>,
        index: &mut Index,
        uses: &Uses,
        protected: &Protected,
    ) -> io::Result<usize> {
        let folder = &self.inner.folder;
        let quarantined = folder.quarantined();
        let over = self.used(index, uses, &quarantined).saturating_sub(self.inner.settings.budget);
        let victims =
            Plan::new(index, uses, protected, folder.io.now().as_secs()).victims(quarantined, over);
        self.remove_all(writer, index, &victims)
    }

    /// Bytes of all files of ours.
    pub(super) fn used(
        &self,
        index: &Index,
        uses: &Uses,
        quarantined: &[(String, super::Stat)],
    ) -> u64 {
        let foreign: u64 = index.foreign.values().sum();
        let quarantined: u64 = quarantined.iter().map(|(_, stat)| stat.len).sum();
        index.bytes() + foreign + quarantined + uses.bytes
    }

    /// Removes files, and returns how many frontiers were among them.
    fn remove_all(
        &self,
        writer: &Writer<'_>,
        index: &mut Index,
        victims: &[Victim],
    ) -> io::Result<usize> {
        let mut frontiers = 0;
        for victim in victims {
            match victim {
                Victim::Quarantined(name, _) => writer.remove_quarantined(name)?,
                Victim::Foreign(name, _) => {
                    writer.remove(name)?;
                    index.foreign.remove(name);
                }
                Victim::Run(name, _) => {
                    writer.remove(&pages_name(*name))?;
                    index.remove_run(*name);
                }
                Victim::Frontier(name, _) => {
                    writer.remove(&frontier_name(*name))?;
                    index.remove_frontier(*name);
                    Counters::add(&self.inner.counters.evicted, 1);
                    frontiers += 1;
                }
            }
        }
        Ok(frontiers)
    }
}

/// The state of a choice.
struct Plan {
    candidates: Vec<Candidate>,
    /// By how many frontiers a file of pages is needed.
    needed: HashMap<Name, usize>,
    orphans: Vec<Arc<Run>>,
    foreign: Vec<(String, u64)>,
}

impl Plan {
    fn new(index: &Index, uses: &Uses, protected: &Protected, now: u64) -> Self {
        let mut needed: HashMap<Name, usize> = HashMap::new();
        for name in &protected.runs {
            *needed.entry(*name).or_default() += 1;
        }
        let mut candidates = Vec::new();
        let mut continued = HashSet::new();
        for frontier in index.frontiers() {
            let runs = index.runs_of(frontier);
            for run in runs.iter().flatten() {
                *needed.entry(run.name).or_default() += 1;
            }
            let below = index.below(frontier);
            continued.extend(below.as_ref().map(|below| below.name));
            if frontier.is_pinned() || protected.frontier == Some(frontier.name) {
                continue;
            }
            let used = uses.of(frontier.name);
            let last = used.last.max(frontier.head.origin.created);
            let idle = now.saturating_sub(last) as f64;
            candidates.push(Candidate {
                frontier: frontier.clone(),
                usable: runs.is_some(),
                runs: runs.unwrap_or_default(),
                below,
                continued: false,
                chance: (1.0 + used.hits as f64) / (1.0 + idle / HALF_CHANCE),
            });
        }
        for candidate in &mut candidates {
            candidate.continued = continued.contains(&candidate.frontier.name);
        }
        let orphans = index.runs().filter(|run| !needed.contains_key(&run.name)).cloned().collect();
        let foreign = index.foreign.iter().map(|(name, len)| (name.clone(), *len)).collect();
        Self { candidates, needed, orphans, foreign }
    }

    /// What goes, in this order, so that `wanted` bytes are given back; less if there is no more.
    fn victims(mut self, mut quarantined: Vec<(String, super::Stat)>, wanted: u64) -> Vec<Victim> {
        quarantined.sort_by_key(|(_, stat)| stat.modified);
        let mut worthless: Vec<Victim> = quarantined
            .into_iter()
            .map(|(name, stat)| Victim::Quarantined(name, stat.len))
            .collect();
        let foreign = std::mem::take(&mut self.foreign);
        worthless.extend(foreign.into_iter().map(|(name, len)| Victim::Foreign(name, len)));
        worthless.extend(self.orphans.drain(..).map(|run| Victim::Run(run.name, run.bytes)));

        let mut victims = Vec::new();
        let mut freed = 0;
        let mut worthless = worthless.into_iter();
        while freed < wanted {
            let next = match worthless.next() {
                Some(victim) => vec![victim],
                None => self.least(),
            };
            if next.is_empty() {
                break;
            }
            freed += next.iter().map(Victim::bytes).sum::<u64>();
            victims.extend(next);
        }
        victims
    }

    /// Takes out the frontier that is worth least, and the files that only it needs.
    fn least(&mut self) -> Vec<Victim> {
        let by_value = |a: &Candidate, b: &Candidate| {
            let (a_value, b_value) = (self.value(a), self.value(b));
            a_value.total_cmp(&b_value).then(a.frontier.name.cmp(&b.frontier.name))
        };
        let least = (0..self.candidates.len())
            .min_by(|a, b| by_value(&self.candidates[*a], &self.candidates[*b]));
        let Some(least) = least else { return Vec::new() };
        let Candidate { frontier, runs, below, .. } = self.candidates.swap_remove(least);
        for other in &mut self.candidates {
            // What continued this one continues the next shorter one now.
            if other.below.as_ref().is_some_and(|below| below.name == frontier.name) {
                other.below = below.clone();
            }
        }
        let mut victims = vec![Victim::Frontier(frontier.name, frontier.bytes)];
        for run in runs {
            let Some(needed) = self.needed.get_mut(&run.name) else { continue };
            *needed -= 1;
            if *needed == 0 {
                victims.push(Victim::Run(run.name, run.bytes));
            }
        }
        victims
    }

    fn value(&self, candidate: &Candidate) -> f64 {
        if !candidate.usable {
            return 0.0;
        }
        let Candidate { frontier, runs, below, continued, chance, .. } = candidate;
        let known = below.as_ref().map_or(0, |below| below.head.tokens);
        let tokens = frontier.head.tokens.saturating_sub(known).max(1) as f64;
        let only = |run: &&Arc<Run>| self.needed.get(&run.name) == Some(&1);
        let pages: u64 = runs.iter().filter(only).map(|run| run.bytes).sum();
        let chance = if *continued { chance / CONTINUED } else { *chance };
        tokens * chance / (frontier.bytes + pages) as f64
    }
}
