//! The bytes of one file, over several connections, into its unfinished blob.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Response, StatusCode, Url};
use tokio::task::JoinSet;

use super::error::Error;
use super::http::{chain, header, shown, Ask, Attempts, Failure, Http};
use super::journal::{Contents, Header, Journal};
use super::name::RepoId;
use super::plan::Plan;
use super::repository::{identify, Digest, Identity};
use super::verify::{hash_in_order, Shared};
use super::{Cancel, Event, Events};

/// Time between two looks at cancellation and progress.
const TICK: Duration = Duration::from_millis(100);

/// Times that a server may change a file's validator while the file stays the same.
const MAX_NEW_VALIDATORS: u32 = 3;

/// What to download and where to.
#[derive(Debug)]
pub(super) struct Job {
    pub http: Arc<Http>,
    pub repo: RepoId,
    /// Path in the repository.
    pub file: String,
    /// The address at the commit.
    pub url: Url,
    pub identity: Identity,
    pub partial: PathBuf,
    pub journal: PathBuf,
}

/// One download at work.
#[derive(Debug)]
struct Transfer {
    job: Job,
    file: File,
    journal: Mutex<Journal>,
    shared: Shared,
    route: Mutex<Route>,
    events: Sender<Event>,
}

/// What the connections learn from each other.
#[derive(Debug, Default)]
struct Route {
    /// Where the redirects lead.
    direct: Option<Url>,
    /// The strong validator of the bytes behind it.
    validator: Option<String>,
    /// Validators given up so far.
    renewed: u32,
    /// Whether the server answers ranges; unknown before the first answer.
    ranges: Option<bool>,
}

/// The bytes being written: where they go, up to where, and the CRC of the piece so far.
struct Writer {
    offset: u64,
    end: u64,
    piece: usize,
    crc: crc32fast::Hasher,
    /// What the last request was bound to.
    validator: Option<String>,
}

impl Writer {
    fn new(plan: &Plan, pieces: Range<usize>) -> Self {
        Self {
            offset: plan.bytes(pieces.start).start,
            end: plan.bytes(pieces.end.saturating_sub(1)).end,
            piece: pieces.start,
            crc: crc32fast::Hasher::new(),
            validator: None,
        }
    }
}

/// What an earlier download left, if it can go on. The caller holds the blob's lock.
pub(super) fn find_partial(job: &Job) -> Option<Contents> {
    Journal::peek(&job.journal)
        .filter(|contents| contents.header.size == job.identity.size && job.partial.is_file())
}

/// Brings the file's bytes to `job.partial` and checks them. On success they are all there and
/// have the announced digest; on failure what has arrived is kept for another try.
pub(super) async fn download(
    job: Job,
    found: Option<Contents>,
    cancel: &Cancel,
    events: &Events,
    observe: &mut dyn FnMut(&Event),
) -> Result<(), Error> {
    let total = job.identity.size;
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(found.is_none())
        .open(&job.partial)
        .map_err(Error::io("open", &job.partial))?;
    let (journal, plan) = match found {
        Some(Contents { header, pieces }) => {
            let mut plan = Plan::new(total, header.piece);
            pieces.into_iter().for_each(|(index, crc)| plan.complete(index, crc, false));
            observe(&Event::Resuming { done: plan.present(), total });
            (Journal::append_to(&job.journal)?, plan)
        }
        None => {
            let piece = job.http.settings.transfer.piece;
            let header = Header { version: 1, file: job.file.clone(), size: total, piece };
            (Journal::create(&job.journal, &header)?, Plan::new(total, piece))
        }
    };
    let digest = job.identity.digest();
    let transfer = Arc::new(Transfer {
        file: open,
        journal: Mutex::new(journal),
        shared: Shared::new(plan),
        route: Mutex::default(),
        events: events.0.clone(),
        job,
    });
    let hasher = {
        let transfer = transfer.clone();
        std::thread::spawn(move || {
            hash_in_order(&transfer.shared, &transfer.file, &transfer.job.partial, digest)
        })
    };
    let result = transfer.clone().run(cancel, &events.1, observe).await;
    transfer.shared.stop();
    let hash = hasher.join().unwrap_or(Ok(None));
    result?;
    let done = transfer.shared.lock().plan.present();
    let Some(hash) = hash? else { return Err(Error::Cancelled { done, total }) };
    transfer.check(digest, hash)?;
    observe(&Event::Progress { done: total, verified: total, total });
    Ok(())
}

impl Transfer {
    /// Runs the connections until every byte is there and hashed.
    async fn run(
        self: Arc<Self>,
        cancel: &Cancel,
        notes: &Receiver<Event>,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<(), Error> {
        let mut connections = JoinSet::new();
        for number in 0..self.job.http.settings.transfer.connections.max(1) {
            connections.spawn(self.clone().connection(number == 0));
        }
        let result = self.watch(&mut connections, cancel, notes, observe).await;
        // The lock on the blob is given back after this: no connection may still be writing.
        connections.shutdown().await;
        result
    }

    /// Reports what the connections do, until they end or one fails.
    async fn watch(
        &self,
        connections: &mut JoinSet<Result<(), Error>>,
        cancel: &Cancel,
        notes: &Receiver<Event>,
        observe: &mut dyn FnMut(&Event),
    ) -> Result<(), Error> {
        let total = self.job.identity.size;
        let mut rejected = 0;
        loop {
            let joined = tokio::time::timeout(TICK, connections.join_next()).await;
            notes.try_iter().for_each(|event| observe(&event));
            let (done, verified) = {
                let state = self.shared.lock();
                if state.rejected > rejected {
                    rejected = state.rejected;
                    observe(&Event::Rejected { pieces: rejected });
                }
                (state.plan.present(), state.verified)
            };
            match joined {
                Ok(Some(Ok(result))) => result?,
                Ok(Some(Err(panic))) => {
                    let source = std::io::Error::other(panic);
                    return Err(Error::io("go on with", &self.job.partial)(source));
                }
                Ok(None) => return Ok(()),
                Err(_) => observe(&Event::Progress { done, verified, total }),
            }
            if cancel.is_set() {
                return Err(Error::Cancelled { done, total });
            }
        }
    }

    /// One connection: fetches runs of pieces until the hasher has seen the whole file.
    async fn connection(self: Arc<Self>, first: bool) -> Result<(), Error> {
        let settings = &self.job.http.settings.transfer;
        loop {
            let may_start = first || self.route().ranges == Some(true);
            let claimed = {
                let mut state = self.shared.lock();
                if state.over {
                    return Ok(());
                }
                if may_start {
                    state.plan.claim(settings.chunk, settings.connections)
                } else {
                    None
                }
            };
            match claimed {
                Some(pieces) => self.fetch(pieces).await?,
                // The hasher may yet put a piece back.
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    fn route(&self) -> std::sync::MutexGuard<'_, Route> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches a run of pieces, with as many requests as it takes.
    async fn fetch(&self, pieces: Range<usize>) -> Result<(), Error> {
        let mut attempts = Attempts::new(&self.job.url);
        let mut writer = Writer::new(&self.shared.lock().plan, pieces);
        while writer.offset < writer.end {
            let (offset, present) = (writer.offset, self.shared.lock().plan.present());
            let Err(failure) = self.request(&mut writer).await else { continue };
            // Without ranges the next request begins at the file's first byte: only pieces count.
            let further = self.route().ranges == Some(true) && writer.offset > offset;
            if further || self.shared.lock().plan.present() > present {
                attempts.progressed();
            }
            match failure {
                Failure::Stale { .. } => self.route().direct = None,
                Failure::Changed => self.look_again(&writer.validator).await?,
                _ => {}
            }
            attempts.failed(&self.job.http, failure, &self.events).await?;
        }
        Ok(())
    }

    /// Asks for the writer's bytes and writes what comes. A server that does not answer ranges sends
    /// the whole file: then the writer begins anew, at the first byte.
    async fn request(&self, writer: &mut Writer) -> Result<(), Failure> {
        let http = &self.job.http;
        let (url, validator) = {
            let route = self.route();
            let url = route.direct.clone().unwrap_or_else(|| self.job.url.clone());
            (url, route.validator.clone())
        };
        writer.validator.clone_from(&validator);
        let size = self.job.identity.size;
        let ask = Ask {
            range: Some((writer.offset, writer.end - 1)),
            if_range: validator.clone(),
            ..Ask::default()
        };
        let (response, at) = http.send(&url, &ask).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let headers = response.headers();
                let range = header(headers, "content-range").and_then(content_range);
                let (first, last, total) = range.ok_or_else(|| {
                    let problem = "status 206 without a usable Content-Range".to_string();
                    Failure::Final(Error::Protocol { url: shown(&at), problem })
                })?;
                if total.is_some_and(|total| total != size) {
                    return Err(Failure::Changed);
                }
                if first != writer.offset || last >= writer.end {
                    let problem = format!(
                        "asked for bytes {}-{}, was answered with {first}-{last}",
                        writer.offset,
                        writer.end - 1
                    );
                    return Err(Failure::Final(Error::Protocol { url: shown(&at), problem }));
                }
                let strong = strong_etag(&response);
                if strong.is_some() && validator.is_some() && strong != validator {
                    return Err(Failure::Changed);
                }
                {
                    let mut route = self.route();
                    route.direct = (at != self.job.url).then(|| at.clone());
                    // An answer to a request that was bound is no news, or no longer true.
                    if validator.is_none() && route.validator.is_none() {
                        route.validator = strong;
                    }
                    route.ranges = Some(true);
                }
                self.write_body(response, writer, last + 1).await
            }
            StatusCode::OK if validator.is_some() => Err(Failure::Changed),
            StatusCode::OK => {
                let len = header(response.headers(), "content-length");
                if len.and_then(|len| len.trim().parse().ok()).is_some_and(|len: u64| len != size) {
                    return Err(Failure::Changed);
                }
                {
                    let plan = &mut self.shared.lock().plan;
                    // Nothing is left for others to begin; what is present will be skipped.
                    while plan.claim(u64::MAX, 1).is_some() {}
                    *writer = Writer::new(plan, 0..plan.len());
                }
                self.route().ranges.get_or_insert(false);
                self.write_body(response, writer, size).await
            }
            StatusCode::RANGE_NOT_SATISFIABLE => Err(Failure::Changed),
            status => {
                let refusal = http.refusal(response, &at, &self.job.repo, &self.job.file).await;
                let for_good = matches!(refusal, Failure::Final(ref e) if !e.is_rate_limit());
                if for_good && at != self.job.url {
                    // What a redirect led to expires; the address that redirects does not.
                    let reason = format!("HTTP status {status} from {}", shown(&at));
                    return Err(Failure::Stale { reason });
                }
                Err(refusal)
            }
        }
    }

    /// Writes a body up to byte `end`, and records each piece that it fills.
    async fn write_body(
        &self,
        mut response: Response,
        writer: &mut Writer,
        end: u64,
    ) -> Result<(), Failure> {
        let stall = self.job.http.settings.transfer.stall;
        let retry = |reason: String| Failure::Retry { reason, wait: None };
        while writer.offset < end {
            let bytes = match tokio::time::timeout(stall, response.chunk()).await {
                Ok(Ok(Some(bytes))) => bytes,
                Ok(Ok(None)) => {
                    let reason = format!("the body ended {} bytes early", end - writer.offset);
                    return Err(retry(reason));
                }
                Ok(Err(error)) => return Err(retry(chain(&error))),
                Err(_) => return Err(retry(format!("no byte for {stall:?}"))),
            };
            let mut rest: &[u8] = &bytes;
            while !rest.is_empty() && writer.offset < end {
                rest = self.write(writer, rest, end)?;
            }
        }
        Ok(())
    }

    /// Writes as much of `bytes` as belongs to the writer's piece; returns the rest.
    fn write<'b>(&self, writer: &mut Writer, bytes: &'b [u8], end: u64) -> Result<&'b [u8], Error> {
        let (piece, known) = {
            let plan = &self.shared.lock().plan;
            (plan.bytes(writer.piece), plan.crc(writer.piece).is_some())
        };
        let room = usize::try_from(piece.end.min(end) - writer.offset).unwrap_or(usize::MAX);
        let (mine, rest) = bytes.split_at(bytes.len().min(room));
        if !known {
            self.file
                .write_all_at(mine, writer.offset)
                .map_err(Error::io("write", &self.job.partial))?;
            writer.crc.update(mine);
        }
        writer.offset += mine.len() as u64;
        if writer.offset == piece.end {
            let crc = std::mem::take(&mut writer.crc).finalize();
            if !known {
                self.journal
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .record(writer.piece, crc)?;
                self.shared.lock().plan.complete(writer.piece, crc, true);
                self.shared.notify();
            }
            writer.piece += 1;
        }
        Ok(rest)
    }

    /// The server has other bytes than before: is it another file, or only another validator?
    async fn look_again(&self, bound: &Option<String>) -> Result<(), Error> {
        let job = &self.job;
        let now = identify(&job.http, &job.repo, &job.url, &job.file, &self.events).await?;
        if (&now.etag, now.size) != (&job.identity.etag, job.identity.size) {
            return Err(Error::Changed { file: job.file.clone() });
        }
        let mut route = self.route();
        if bound.is_some() && route.validator != *bound {
            // Another connection has met the same change.
            return Ok(());
        }
        route.renewed += 1;
        if route.renewed > MAX_NEW_VALIDATORS {
            return Err(Error::Protocol {
                url: shown(route.direct.as_ref().unwrap_or(&job.url)),
                problem: "its size or ETag differs from one request to the next".to_string(),
            });
        }
        (route.direct, route.validator) = (None, None);
        Ok(())
    }

    /// Compares the digest. A file that fails is deleted: nothing tells which piece is wrong.
    fn check(&self, digest: Option<Digest>, found: String) -> Result<(), Error> {
        let identity = &self.job.identity;
        let kind = match digest {
            Some(Digest::Sha256) => "sha256",
            Some(Digest::GitSha1) => "git sha1",
            None => return Ok(()),
        };
        if found == identity.etag {
            return Ok(());
        }
        super::cache::remove_if_there(&self.job.partial)?;
        super::cache::remove_if_there(&self.job.journal)?;
        Err(Error::Hash {
            file: self.job.file.clone(),
            kind,
            size: identity.size,
            expected: identity.etag.clone(),
            found,
        })
    }
}

/// An ETag that `If-Range` may use.
fn strong_etag(response: &Response) -> Option<String> {
    let etag = header(response.headers(), "etag")?.trim();
    (etag.len() >= 2 && etag.starts_with('"') && etag.ends_with('"')).then(|| etag.to_string())
}

/// `bytes FIRST-LAST/TOTAL`, where the total may be `*`.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (first <= last).then_some((first, last, total))
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn a_content_range_is_read_or_refused() {
        assert_eq!(content_range("bytes 0-9/10"), Some((0, 9, Some(10))));
        assert_eq!(content_range("bytes 5-5/*"), Some((5, 5, None)));
        for bad in ["", "bytes */10", "bytes 9-0/10", "items 0-9/10", "bytes 0-9", "bytes 0-x/10"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
