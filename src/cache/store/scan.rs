//! From files to index: what is new in the folder, what has gone, what is damaged.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::time::Duration;

use super::counters::Counters;
use super::folder::{frontier_name, pages_name, Kind};
use super::format::{Damage, FrontierHead, PagesHead, Parsed, MAX_HEAD_BYTES};
use super::index::{Frontier, Index, Run};
use super::io::read_exact_at;
use super::key::Name;
use super::{ReadError, Store};

/// A folder that has changed within this time may change again without its time changing.
const SETTLED: Duration = Duration::from_millis(100);
/// How long a file that cannot be read, for reasons of the system, is left alone.
const SHUNNED: Duration = Duration::from_secs(60);

impl Store {
    /// Brings the index up to date, and returns the names of files that were not finished, if it
    /// had to look; `force` makes it look.
    pub(super) fn scan(&self, index: &mut Index, force: bool) -> io::Result<Vec<String>> {
        let folder = &self.inner.folder;
        let now = folder.io.now();
        let changed = folder.io.changed(&folder.dir)?;
        let retry = index.shunned.values().any(|until| *until <= now);
        if index.seen == Some(changed) && !force && !retry {
            return Ok(Vec::new());
        }
        index.shunned.retain(|_, until| *until > now);
        let mut unfinished = Vec::new();
        let (mut runs, mut frontiers) = (HashSet::new(), HashSet::new());
        let mut foreign = HashSet::new();
        for name in folder.io.list(&folder.dir)? {
            match Kind::of(&name) {
                _ if index.shunned.contains_key(&name) => {}
                _ if index.foreign.contains_key(&name) => {
                    foreign.insert(name);
                }
                Some(Kind::Pages(stem)) => {
                    if index.run(stem).is_some() || self.add_run(index, stem, &name) {
                        runs.insert(stem);
                    } else {
                        foreign.insert(name);
                    }
                }
                Some(Kind::Frontier(stem)) => {
                    if index.frontier(stem).is_some() || self.add_frontier(index, stem, &name) {
                        frontiers.insert(stem);
                    } else {
                        foreign.insert(name);
                    }
                }
                Some(Kind::Temporary) => unfinished.push(name),
                Some(Kind::Uses | Kind::Quarantine | Kind::Neighbour) | None => {}
            }
        }
        let gone: Vec<Name> =
            index.runs().map(|run| run.name).filter(|name| !runs.contains(name)).collect();
        gone.into_iter().for_each(|name| index.remove_run(name));
        let gone: Vec<Name> = index
            .frontiers()
            .map(|frontier| frontier.name)
            .filter(|name| !frontiers.contains(name))
            .collect();
        gone.into_iter().for_each(|name| index.remove_frontier(name));
        index.foreign.retain(|name, _| foreign.contains(name));
        index.seen = Some(changed).filter(|changed| now.saturating_sub(*changed) > SETTLED);
        Ok(unfinished)
    }

    fn add_run(&self, index: &mut Index, stem: Name, name: &str) -> bool {
        let parsed = self.read_head(index, name, |start, len| {
            Ok(match PagesHead::parse(start, len)? {
                Parsed::Known(head) => Parsed::Known(Run::new(head)),
                Parsed::Foreign => Parsed::Foreign,
            })
        });
        match parsed {
            Some(run) if run.name == stem => index.add_run(run),
            Some(_) => self.condemn(index, name, &Damage::Name),
            None => return false,
        }
        true
    }

    fn add_frontier(&self, index: &mut Index, stem: Name, name: &str) -> bool {
        let parsed = self.read_head(index, name, |start, len| {
            Ok(match FrontierHead::parse(start, len)? {
                Parsed::Known(head) => Parsed::Known(Frontier::new(head)),
                Parsed::Foreign => Parsed::Foreign,
            })
        });
        match parsed {
            Some(frontier) if frontier.name == stem => index.add_frontier(frontier),
            Some(_) => self.condemn(index, name, &Damage::Name),
            None => return false,
        }
        true
    }

    /// Reads a header; what cannot be used is put where it does no harm.
    fn read_head<T>(
        &self,
        index: &mut Index,
        name: &str,
        parse: impl FnOnce(&[u8], u64) -> Result<Parsed<T>, Damage>,
    ) -> Option<T> {
        let (start, len) = match self.read_start(name) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                self.shun(index, name, &error);
                return None;
            }
        };
        match parse(&start, len) {
            Ok(Parsed::Known(head)) => Some(head),
            Ok(Parsed::Foreign) => {
                index.foreign.insert(name.to_owned(), len);
                None
            }
            Err(damage) => {
                self.condemn(index, name, &damage);
                None
            }
        }
    }

    /// As much of a file's beginning as a header can have, and the file's size.
    pub(super) fn read_start(&self, name: &str) -> io::Result<(Vec<u8>, u64)> {
        let folder = &self.inner.folder;
        let (file, len) = folder.read(name)?;
        let taken = usize::try_from(len).unwrap_or(usize::MAX).min(MAX_HEAD_BYTES);
        let mut start = vec![0; taken];
        read_exact_at(&*folder.io, &file, &mut start, 0)?;
        Ok((start, len))
    }

    /// Takes a damaged file out of use.
    pub(super) fn condemn(&self, index: &mut Index, name: &str, damage: &Damage) {
        Counters::add(&self.inner.counters.quarantined, 1);
        self.forget(index, name);
        let moved = self.inner.folder.quarantine(name);
        match moved {
            Ok(()) => self.warn(&format_args!(
                "{name} is damaged and was put into quarantine; its tokens will be computed \
                 again: {damage}"
            )),
            Err(error) => {
                index.shunned.insert(name.to_owned(), Duration::MAX);
                self.warn(&format_args!(
                    "{name} is damaged and will not be used; it could not be moved to quarantine \
                     ({error}): {damage}"
                ));
            }
        }
    }

    /// Leaves a file alone that the system does not let us read.
    pub(super) fn shun(&self, index: &mut Index, name: &str, error: &io::Error) {
        Counters::add(&self.inner.counters.read_errors, 1);
        self.forget(index, name);
        index.shunned.insert(name.to_owned(), self.inner.folder.io.now() + SHUNNED);
        self.warn(&format_args!("{name} cannot be read: {error}; its tokens are computed again"));
    }

    /// Removes a file from the index, so that the next look at the folder reads it anew.
    pub(super) fn forget(&self, index: &mut Index, name: &str) {
        match Kind::of(name) {
            Some(Kind::Pages(stem)) => index.remove_run(stem),
            Some(Kind::Frontier(stem)) => index.remove_frontier(stem),
            _ => {}
        }
        index.seen = None;
    }

    /// What it means for a reader that a file could not be read.
    pub(super) fn refused(&self, name: &str, error: io::Error) -> ReadError {
        let mut index = self.index();
        let file = name.to_owned();
        match error.kind() {
            ErrorKind::NotFound => {
                self.forget(&mut index, name);
                ReadError::Gone { file }
            }
            // Shorter than its header said when it was indexed.
            ErrorKind::UnexpectedEof => {
                let damage = Damage::Length { wanted: 0, found: 0 };
                self.condemn(&mut index, name, &damage);
                ReadError::Damaged { file, damage }
            }
            _ => {
                self.shun(&mut index, name, &error);
                ReadError::Io { file, source: error }
            }
        }
    }

    /// What it means for a reader that a page has another checksum than in the index.
    pub(super) fn mismatch(&self, run: &Run, page: usize) -> ReadError {
        let file = pages_name(run.name);
        let now = self.read_start(&file).ok().and_then(|(start, len)| {
            match PagesHead::parse(&start, len).ok()? {
                Parsed::Known(head) => Some(head),
                Parsed::Foreign => None,
            }
        });
        let mut index = self.index();
        if now.is_some_and(|head| head.sums.get(page) != run.sums.get(page)) {
            // Another process has replaced the file: a file that is whole, but not the indexed one.
            self.forget(&mut index, &file);
            return ReadError::Gone { file };
        }
        let damage = Damage::Checksum { part: format!("page {page}") };
        self.condemn(&mut index, &file, &damage);
        ReadError::Damaged { file, damage }
    }

    /// Takes a frontier out of use.
    pub(super) fn damaged_frontier(&self, stem: Name, damage: Damage) -> ReadError {
        let file = frontier_name(stem);
        self.condemn(&mut self.index(), &file, &damage);
        ReadError::Damaged { file, damage }
    }
}
