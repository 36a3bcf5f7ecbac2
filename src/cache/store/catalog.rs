//! What is in the folder, for people: list, look, check, remove.

use std::collections::HashSet;
use std::io;

use super::evict::Protected;
use super::folder::{frontier_name, pages_name, Writer};
use super::format::{PagesHead, Parsed};
use super::index::{Frontier, Index};
use super::key::{Namespace, Part};
use super::uses::{Used, Uses};
use super::{CatalogError, Fingerprint, ReadError, Store};

/// A frontier in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// 32 hexadecimal digits; the beginning will do where it is clear.
    pub id: String,
    /// What it was saved with.
    pub label: String,
    /// Tokens of its sequence.
    pub tokens: usize,
    /// Bytes of its own file.
    pub bytes: u64,
    /// Bytes of its pages, which others may share.
    pub page_bytes: u64,
    /// Whether all of its pages are there.
    pub usable: bool,
    /// How often it was used.
    pub hits: u64,
    /// When it was saved, seconds since 1970.
    pub created: u64,
    /// When it was saved or last used, seconds since 1970.
    pub last_used: u64,
    /// Which model.
    pub fingerprint: Fingerprint,
    /// Whose.
    pub namespace: Namespace,
}

/// All about one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// What the list says.
    pub entry: Entry,
    /// Files that hold its pages, the first page's first, and how many of its pages each holds.
    pub files: Vec<(String, usize)>,
    /// Its ids, from the first that is known without a gap before it.
    pub ids: Vec<u32>,
    /// Bytes of the state, number of logits, bytes of the attachment.
    pub parts: [u64; 3],
    /// The longest shorter frontier that shares its pages.
    pub continues: Option<String>,
}

/// The result of [`Store::verify`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files that were read, quarantined ones not among them.
    pub files: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// Files that were damaged and are in quarantine now, and what was wrong.
    pub damaged: Vec<(String, String)>,
    /// Entries that cannot be used because pages are missing.
    pub incomplete: Vec<String>,
}

/// What was given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Frontiers.
    pub frontiers: usize,
    /// Bytes of all files.
    pub bytes: u64,
}

impl Store {
    /// All frontiers in the folder, of any model, the last used first.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn list(&self) -> Result<Vec<Entry>, CatalogError> {
        let mut index = self.index();
        self.scan(&mut index, true).map_err(self.failed("list the folder"))?;
        let uses = Uses::read(&self.inner.folder);
        let entry = |frontier: &_| entry(&index, frontier, uses.of(frontier.name));
        let mut entries: Vec<Entry> = index.frontiers().map(|frontier| entry(frontier)).collect();
        entries.sort_by(|a, b| (b.last_used, b.tokens, &a.id).cmp(&(a.last_used, a.tokens, &b.id)));
        Ok(entries)
    }

    /// Bytes of all files of the store, those in quarantine and of other versions too.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn bytes(&self) -> Result<u64, CatalogError> {
        let mut index = self.index();
        self.scan(&mut index, true).map_err(self.failed("list the folder"))?;
        let folder = &self.inner.folder;
        Ok(self.used(&index, &Uses::read(folder), &folder.quarantined()))
    }

    /// Everything about the entry whose identifier begins with `id`.
    ///
    /// # Errors
    /// None or several do; the folder cannot be listed.
    pub fn show(&self, id: &str) -> Result<Details, CatalogError> {
        let entries = self.list()?;
        let entry = self.one(&entries, id)?;
        let index = self.index();
        let frontier = super::key::Name::parse(&entry.id).and_then(|name| index.frontier(name));
        let Some(frontier) = frontier.cloned() else {
            return Err(CatalogError::Id { id: id.to_owned(), count: 0 });
        };
        let continues = index.below(&frontier).map(|below| below.name.to_string());
        let runs = index.runs_of(&frontier).unwrap_or_default();
        drop(index);

        let (mut files, mut ids) = (Vec::new(), Vec::new());
        let mut left = frontier.head.pages();
        for run in runs.iter().rev() {
            let pages = run.keys.len().min(left);
            left -= pages;
            let name = pages_name(run.name);
            if let Ok((start, len)) = self.read_start(&name) {
                if let Ok(Parsed::Known(head)) = PagesHead::parse(&start, len) {
                    ids.extend_from_slice(&head.ids[..pages * head.origin.page_tokens]);
                }
            }
            files.push((name, pages));
        }
        ids.extend_from_slice(&frontier.head.tail);
        let head = &frontier.head;
        let parts = [head.state_bytes, head.logits, head.attachment_bytes];
        Ok(Details { entry: entry.clone(), files, ids, parts, continues })
    }

    /// What is attached to the frontiers of this model, the newest first; those that cannot be
    /// read are left out.
    pub fn attachments(&self, mut each: impl FnMut(&Namespace, Vec<u8>)) {
        let mut attached: Vec<(u64, super::key::Name, Namespace)> = {
            let mut index = self.index();
            // What is known already may still be readable.
            let _ = self.scan(&mut index, false);
            let ours = |frontier: &&std::sync::Arc<Frontier>| {
                let head = &frontier.head;
                head.attachment_bytes > 0
                    && head.origin.fingerprint == self.inner.settings.fingerprint
            };
            let what = |frontier: &std::sync::Arc<Frontier>| {
                let origin = &frontier.head.origin;
                (origin.created, frontier.name, origin.namespace)
            };
            index.frontiers().filter(ours).map(what).collect()
        };
        attached.sort_by(|a, b| b.cmp(a));
        for (_, name, namespace) in attached {
            if let Ok(attachment) = self.read_attachment(name) {
                each(&namespace, attachment);
            }
        }
    }

    /// Reads every byte of every file and takes damaged ones out of use.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn verify(&self) -> Result<Verified, CatalogError> {
        let mut verified = Verified::default();
        let before = self.inner.folder.quarantined();
        let (runs, frontiers) = {
            let mut index = self.index();
            self.scan(&mut index, true).map_err(self.failed("list the folder"))?;
            let runs: Vec<_> = index.runs().cloned().collect();
            (runs, index.frontiers().cloned().collect::<Vec<_>>())
        };
        // Headers were read just now; what was wrong with them is in quarantine.
        let known: HashSet<String> = before.into_iter().map(|(name, _)| name).collect();
        for (name, stat) in self.inner.folder.quarantined() {
            if !known.contains(&name) {
                verified.files += 1;
                verified.bytes += stat.len;
                verified.damaged.push((name, "the header is damaged".to_owned()));
            }
        }
        for run in runs {
            verified.files += 1;
            verified.bytes += run.bytes;
            let name = pages_name(run.name);
            if let Err(error) = self.check_run(&run, &name) {
                verified.damaged.push((name, error.to_string()));
            }
        }
        for frontier in frontiers {
            verified.files += 1;
            verified.bytes += frontier.bytes;
            if let Err(error) = self.read_frontier(frontier.name) {
                verified.damaged.push((frontier_name(frontier.name), error.to_string()));
            }
        }
        let index = self.index();
        let broken = index.frontiers().filter(|frontier| index.runs_of(frontier).is_none());
        verified.incomplete = broken.map(|frontier| frontier.name.to_string()).collect();
        Ok(verified)
    }

    fn check_run(&self, run: &super::index::Run, name: &str) -> Result<(), ReadError> {
        let folder = &self.inner.folder;
        let (start, len) = self.read_start(name).map_err(|error| self.refused(name, error))?;
        let header = PagesHead::parse(&start, len);
        if let Err(damage) = header {
            self.condemn(&mut self.index(), name, &damage);
            return Err(ReadError::Damaged { file: name.to_owned(), damage });
        }
        let mut rows = vec![0; usize::try_from(run.origin.page_bytes).unwrap_or(0)];
        for (page, key) in run.keys.iter().enumerate() {
            let mut read = || -> io::Result<()> {
                let file = folder.io.open(&folder.dir, name)?;
                super::io::read_exact_at(&*folder.io, &file, &mut rows, run.offset(page))
            };
            read().map_err(|error| self.refused(name, error))?;
            if key.checksum(Part::Page, &rows) != run.sums[page] {
                return Err(self.mismatch(run, page));
            }
        }
        Ok(())
    }

    /// Removes the entry whose identifier begins with `id`, and the pages that only it needs.
    ///
    /// # Errors
    /// None or several do; the folder cannot be written to.
    pub fn remove(&self, id: &str) -> Result<Freed, CatalogError> {
        let writer = self.writer()?;
        let entries = self.list()?;
        let entry = self.one(&entries, id)?;
        let failed = self.failed("remove a file");
        let mut index = self.index();
        let before = index.bytes();
        let name = super::key::Name::parse(&entry.id);
        let Some(frontier) = name.and_then(|name| index.frontier(name)).cloned() else {
            return Ok(Freed::default());
        };
        let runs = index.runs_of(&frontier).unwrap_or_default();
        writer.remove(&frontier_name(frontier.name)).map_err(&failed)?;
        index.remove_frontier(frontier.name);
        let orphans: HashSet<_> = index.orphans().into_iter().map(|run| run.name).collect();
        for run in runs.into_iter().filter(|run| orphans.contains(&run.name)) {
            writer.remove(&pages_name(run.name)).map_err(&failed)?;
            index.remove_run(run.name);
        }
        Ok(Freed { frontiers: 1, bytes: before - index.bytes() })
    }

    /// Removes all files of the store, of every model and version, those in quarantine too.
    ///
    /// # Errors
    /// The folder cannot be listed or written to.
    pub fn clear(&self) -> Result<Freed, CatalogError> {
        let writer = self.writer()?;
        let bytes = self.bytes()?;
        let folder = &self.inner.folder;
        let failed = self.failed("remove a file");
        let mut index = self.index();
        let frontiers = index.frontiers().count();
        for name in folder.io.list(&folder.dir).map_err(&failed)? {
            use super::folder::Kind;
            match Kind::of(&name) {
                Some(Kind::Pages(_) | Kind::Frontier(_) | Kind::Temporary | Kind::Uses) => {
                    writer.remove(&name).map_err(&failed)?;
                }
                Some(Kind::Quarantine | Kind::Neighbour) | None => {}
            }
        }
        for (name, _) in folder.quarantined() {
            writer.remove_quarantined(&name).map_err(&failed)?;
        }
        *index = Index::default();
        Ok(Freed { frontiers, bytes })
    }

    /// Removes what is of no use (unfinished and damaged files, pages that no frontier needs),
    /// and then what is worth least, until the budget is kept; never the newest frontier.
    ///
    /// # Errors
    /// The folder cannot be listed or written to.
    pub fn gc(&self) -> Result<Freed, CatalogError> {
        let writer = self.writer()?;
        let folder = &self.inner.folder;
        let failed = self.failed("remove a file");
        let before = self.bytes()?;
        let mut index = self.index();
        for name in self.scan(&mut index, true).map_err(&failed)? {
            writer.remove(&name).map_err(&failed)?;
        }
        for (name, _) in folder.quarantined() {
            writer.remove_quarantined(&name).map_err(&failed)?;
        }
        for run in index.orphans() {
            writer.remove(&pages_name(run.name)).map_err(&failed)?;
            index.remove_run(run.name);
        }
        let newest = index.frontiers().max_by_key(|f| (f.head.origin.created, f.name));
        let protected =
            Protected { frontier: newest.map(|frontier| frontier.name), ..Protected::default() };
        let uses = Uses::read(folder);
        let frontiers = self.shrink(&writer, &mut index, &uses, &protected).map_err(&failed)?;
        drop(index);
        let after = self.bytes()?;
        Ok(Freed { frontiers, bytes: before.saturating_sub(after) })
    }

    fn writer(&self) -> Result<Writer<'_>, CatalogError> {
        let writer = self.inner.folder.lock(self.inner.settings.patience);
        let busy = || CatalogError::Busy { path: self.path().to_path_buf() };
        writer.map_err(self.failed("lock the folder"))?.ok_or_else(busy)
    }

    fn one<'a>(&self, entries: &'a [Entry], id: &str) -> Result<&'a Entry, CatalogError> {
        let mut fits = entries.iter().filter(|entry| !id.is_empty() && entry.id.starts_with(id));
        match (fits.next(), fits.count()) {
            (Some(entry), 0) => Ok(entry),
            (None, _) => Err(CatalogError::Id { id: id.to_owned(), count: 0 }),
            (Some(_), more) => Err(CatalogError::Id { id: id.to_owned(), count: more + 1 }),
        }
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> CatalogError {
        let path = self.path().to_path_buf();
        move |source| CatalogError::Io { action, path: path.clone(), source }
    }
}

fn entry(index: &Index, frontier: &Frontier, used: Used) -> Entry {
    let head = &frontier.head;
    let tokens = usize::try_from(head.tokens).unwrap_or(usize::MAX);
    Entry {
        id: frontier.name.to_string(),
        label: head.label.clone(),
        tokens,
        bytes: frontier.bytes,
        page_bytes: head.pages() as u64 * head.origin.page_bytes,
        usable: index.runs_of(frontier).is_some(),
        hits: used.hits,
        created: head.origin.created,
        last_used: used.last.max(head.origin.created),
        fingerprint: head.origin.fingerprint,
        namespace: head.origin.namespace,
    }
}
