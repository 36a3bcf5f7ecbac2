//! Writing down a sequence: the pages that are new, and a frontier.

use std::collections::HashSet;
use std::ops::Range;

use super::counters::Counters;
use super::evict::Protected;
use super::folder::{frontier_name, pages_name, Writer};
use super::format::{
    FrontierHead, Origin, PagesHead, MAX_ATTACHMENT_BYTES, MAX_LABEL_BYTES, MAX_LOGITS,
    MAX_PAGE_BYTES, MAX_STATE_BYTES,
};
use super::index::{Frontier, Run};
use super::io::write_all_at;
use super::key::{Key, Namespace, Part};
use super::uses::Uses;
use super::{SaveError, SourceError, Store};

/// Fills the rows of a page, by its index in the sequence.
pub type PageSource<'a> = dyn FnMut(usize, &mut [u8]) -> Result<(), SourceError> + 'a;

/// A sequence to be saved, but for its pages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Save<'a> {
    /// Whose it is.
    pub namespace: Namespace,
    /// Its tokens.
    pub ids: &'a [u32],
    /// Everything that is needed to go on, besides the pages and the ids.
    pub state: &'a [u8],
    /// Scores of the token after the last.
    pub logits: Option<&'a [f32]>,
    /// Whatever should come back with it.
    pub attachment: &'a [u8],
    /// What a user may know it by, such as its first words; cut after 256 bytes.
    pub label: &'a str,
}

/// What a save did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Bytes of the new files.
    pub bytes_written: u64,
    /// Pages that were written.
    pub pages_new: usize,
    /// Pages that were there already.
    pub pages_shared: usize,
    /// Whether a frontier was written; there may have been one.
    pub frontier_new: bool,
    /// Frontiers that were removed to make room.
    pub evicted: usize,
}

/// What is to be written.
struct Plan {
    origin: Origin,
    /// The root, then the keys of all whole pages.
    chain: Vec<Key>,
    /// Pages that are missing, in pieces of one file each.
    runs: Vec<Range<usize>>,
    /// The frontier, if it is missing.
    frontier: Option<FrontierHead>,
    /// Bytes of all that.
    bytes: u64,
}

impl Store {
    /// Saves a sequence: writes the pages that are not in the store yet, and its frontier.
    ///
    /// `pages` is asked for each page that is missing, in order; what it says of a page must
    /// depend on the ids up to the page's end alone. Least valuable entries are removed first if
    /// room is needed. Nothing is lost if the caller does not look at the result: failures are
    /// counted and told to the operator.
    ///
    /// # Errors
    /// Why nothing, or only some of the pages, was written. What was in the store before still is,
    /// but for what was removed to make room.
    pub fn save(&self, save: &Save<'_>, pages: &mut PageSource<'_>) -> Result<Saved, SaveError> {
        let saved = self.try_save(save, pages);
        let counters = &self.inner.counters;
        match &saved {
            Ok(saved) => {
                Counters::add(&counters.saves, 1);
                Counters::add(&counters.bytes_written, saved.bytes_written);
                Counters::add(&counters.pages_written, saved.pages_new as u64);
                Counters::add(&counters.pages_shared, saved.pages_shared as u64);
            }
            Err(error) => {
                Counters::add(&counters.saves_skipped, 1);
                self.warn(&format_args!("a save was skipped: {error}"));
            }
        }
        saved
    }

    fn try_save(&self, save: &Save<'_>, pages: &mut PageSource<'_>) -> Result<Saved, SaveError> {
        self.check_sizes(save)?;
        let folder = &self.inner.folder;
        let writer = folder.lock(self.inner.settings.patience)?.ok_or(SaveError::Busy)?;
        let mut saved = Saved::default();
        let plan = {
            let mut index = self.index();
            // All others that write hold the lock: what is unfinished now will stay so.
            for name in self.scan(&mut index, true)? {
                writer.remove(&name)?;
            }
            let plan = self.plan(&index, save);
            let missing: usize = plan.runs.iter().map(Range::len).sum();
            saved.pages_shared = plan.chain.len() - 1 - missing;
            if plan.bytes == 0 {
                return Ok(saved);
            }
            let runs: HashSet<_> =
                plan.chain.iter().filter_map(|key| index.page(key)).map(|p| p.run.name).collect();
            let protected = Protected { runs, frontier: None };
            let uses = Uses::read(folder);
            saved.evicted = self.make_room(&writer, &mut index, &uses, plan.bytes, &protected)?;
            uses.compact(&writer, folder, |name| index.frontier(name).is_some())?;
            plan
        };
        for range in &plan.runs {
            let run = self.write_run(&writer, &plan, save.ids, range.clone(), pages)?;
            saved.pages_new += range.len();
            saved.bytes_written += run.bytes;
            let mut index = self.index();
            index.replaced(&pages_name(run.name));
            index.add_run(run);
        }
        if let Some(head) = plan.frontier {
            let frontier = self.write_frontier(&writer, head, save)?;
            saved.frontier_new = true;
            saved.bytes_written += frontier.bytes;
            let mut index = self.index();
            index.replaced(&frontier_name(frontier.name));
            index.add_frontier(frontier);
        }
        writer.sync()?;
        Ok(saved)
    }

    fn check_sizes(&self, save: &Save<'_>) -> Result<(), SaveError> {
        let limits = [
            ("number of tokens", save.ids.len() as u64, u64::from(u32::MAX)),
            ("bytes of a page", self.page_bytes() as u64, MAX_PAGE_BYTES),
            ("bytes of the state", save.state.len() as u64, MAX_STATE_BYTES),
            ("number of logits", save.logits.map_or(0, <[f32]>::len) as u64, MAX_LOGITS),
            ("bytes of the attachment", save.attachment.len() as u64, MAX_ATTACHMENT_BYTES),
        ];
        match limits.into_iter().find(|(_, found, most)| found > most) {
            Some((part, found, most)) => Err(SaveError::TooLarge { part, found, most }),
            None => Ok(()),
        }
    }

    fn plan(&self, index: &super::index::Index, save: &Save<'_>) -> Plan {
        let settings = &self.inner.settings;
        let origin = Origin {
            fingerprint: settings.fingerprint,
            namespace: save.namespace,
            page_tokens: settings.page_tokens,
            page_bytes: settings.page_bytes as u64,
            created: self.inner.folder.io.now().as_secs(),
        };
        let pages = save.ids.chunks_exact(settings.page_tokens);
        let tail = pages.remainder();
        let mut chain = vec![origin.root()];
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut last = origin.root();
        let most = PagesHead::most_pages(settings.page_tokens);
        for (page, ids) in pages.enumerate() {
            last = last.page(ids);
            chain.push(last);
            if index.page(&last).is_some() {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == page && run.len() < most => run.end += 1,
                _ => runs.push(page..page + 1),
            }
        }
        let name = last.frontier(tail).name();
        let frontier = index.frontier(name).is_none().then(|| FrontierHead {
            origin: origin.clone(),
            tokens: save.ids.len() as u64,
            parent: last,
            tail: tail.to_vec(),
            label: label(save.label),
            state_bytes: save.state.len() as u64,
            logits: save.logits.map_or(0, <[f32]>::len) as u64,
            attachment_bytes: save.attachment.len() as u64,
            sums: [[0; 32]; 3],
        });
        let pages = runs
            .iter()
            .map(|run| PagesHead::file_len(run.len(), origin.page_tokens, origin.page_bytes));
        let bytes =
            pages.sum::<u64>() + frontier.as_ref().map_or(0, |frontier| frontier.file_len());
        Plan { origin, chain, runs, frontier, bytes }
    }

    fn write_run(
        &self,
        writer: &Writer<'_>,
        plan: &Plan,
        ids: &[u32],
        pages: Range<usize>,
        source: &mut PageSource<'_>,
    ) -> Result<Run, SaveError> {
        let io = &*self.inner.folder.io;
        let page_tokens = self.inner.settings.page_tokens;
        let mut head = PagesHead {
            origin: plan.origin.clone(),
            first: pages.start as u64,
            parent: plan.chain[pages.start],
            ids: ids[pages.start * page_tokens..pages.end * page_tokens].to_vec(),
            sums: Vec::with_capacity(pages.len()),
        };
        let name = head.parent.run_name(&plan.chain[pages.end]);
        let mut rows = vec![0; self.page_bytes()];
        writer.write(&pages_name(name), name, |file| {
            let mut offset = PagesHead::len(pages.len(), page_tokens) as u64;
            for page in pages {
                source(page, &mut rows).map_err(SaveError::Source)?;
                head.sums.push(plan.chain[page + 1].checksum(Part::Page, &rows));
                write_all_at(io, file, &rows, offset)?;
                offset += rows.len() as u64;
            }
            write_all_at(io, file, &head.encode(), 0)?;
            Ok::<_, SaveError>(())
        })?;
        Ok(Run::new(head))
    }

    fn write_frontier(
        &self,
        writer: &Writer<'_>,
        mut head: FrontierHead,
        save: &Save<'_>,
    ) -> Result<Frontier, SaveError> {
        let io = &*self.inner.folder.io;
        let key = head.key();
        let logits = save.logits.unwrap_or_default();
        let logits: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
        head.sums = [
            key.checksum(Part::State, save.state),
            key.checksum(Part::Logits, &logits),
            key.checksum(Part::Attachment, save.attachment),
        ];
        let name = key.name();
        writer.write(&frontier_name(name), name, |file| {
            let mut offset = 0;
            for part in [&head.encode(), save.state, &logits, save.attachment] {
                write_all_at(io, file, part, offset)?;
                offset += part.len() as u64;
            }
            Ok::<_, SaveError>(())
        })?;
        Ok(Frontier::new(head))
    }
}

/// As much of a text as a label has room for, on one line and without control characters.
fn label(text: &str) -> String {
    let mut label = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        let space = usize::from(!label.is_empty() && !word.is_empty());
        if label.len() + space + word.len() > MAX_LABEL_BYTES {
            let room = MAX_LABEL_BYTES.saturating_sub(label.len() + space);
            let cut = (0..=room).rev().find(|at| word.is_char_boundary(*at)).unwrap_or(0);
            if cut > 0 {
                label.extend(std::iter::repeat_n(' ', space));
                label.push_str(&word[..cut]);
            }
            break;
        }
        label.extend(std::iter::repeat_n(' ', space));
        label.push_str(word);
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_one_short_line() {
        assert_eq!(label(" Fix\tthe \n\n\x1b[31m build\u{0} "), "Fix the [31m build");
        assert_eq!(label(""), "");
        let long = "é".repeat(300);
        assert_eq!(label(&long), "é".repeat(128));
        let words = "word ".repeat(100);
        assert!(label(&words).len() <= MAX_LABEL_BYTES && label(&words).ends_with("word w"));
    }
}
