//! What a repository holds: the hub's own listing, and what it says of one file.

use std::collections::HashMap;
use std::sync::mpsc::Sender;

use reqwest::Url;
use serde::Deserialize;

use super::cache::{is_commit, is_safe_etag};
use super::error::Error;
use super::http::{header, shown, Ask, Failure, Http};
use super::name::{choose, is_safe_path, Candidate, Name, RepoId, Variant, Which};
use super::Event;

/// A repository at one commit.
#[derive(Clone, Debug)]
pub struct Repository {
    /// Its name.
    pub id: RepoId,
    /// The branch, tag or commit asked for.
    pub revision: String,
    /// The commit that it means now.
    pub commit: String,
    /// Its files, in the listing's order.
    pub files: Vec<RemoteFile>,
}

/// A file as the listing has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path in the repository.
    pub path: String,
    /// Bytes, if listed.
    pub size: Option<u64>,
    /// SHA-256 in lower-case hexadecimal, for large files.
    pub sha256: Option<String>,
    /// When it was last changed, ISO 8601; asked for only where two files compete.
    pub uploaded: Option<String>,
}

/// The file that a name means.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The repository.
    pub repo: RepoId,
    /// The branch, tag or commit asked for.
    pub revision: String,
    /// The commit that it means now.
    pub commit: String,
    /// The file.
    pub file: RemoteFile,
    /// Older files of the same kind, newest first.
    pub older: Vec<String>,
}

/// What a HEAD request says of a file: its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// Not every mirror says.
    pub commit: Option<String>,
    /// The blob's name.
    pub etag: String,
    pub size: u64,
}

impl Identity {
    /// The digest that the etag is, if it is one.
    pub fn digest(&self) -> Option<Digest> {
        let hex = self.etag.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match self.etag.len() {
            64 if hex => Some(Digest::Sha256),
            40 if hex => Some(Digest::GitSha1),
            _ => None,
        }
    }
}

/// A digest that the hub names a blob by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Digest {
    /// Large files.
    Sha256,
    /// Files kept in git itself: SHA-1 of `blob LENGTH\0` and the bytes.
    GitSha1,
}

#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

#[derive(Deserialize)]
struct PathInfo {
    path: String,
    #[serde(rename = "lastCommit")]
    last_commit: Option<LastCommit>,
}

#[derive(Deserialize)]
struct LastCommit {
    date: Option<String>,
}

/// Asks for the listing of `id` at `revision`.
pub(super) async fn list(
    http: &Http,
    id: &RepoId,
    revision: &str,
    events: &Sender<Event>,
) -> Result<Repository, Error> {
    let mut url =
        http.url(["api", "models"].into_iter().chain(id.as_str().split('/')).chain(["revision"]));
    if let Ok(mut path) = url.path_segments_mut() {
        path.push(revision);
    }
    url.set_query(Some("blobs=true"));
    let info: ModelInfo =
        json(http, id, &format!("{id} at {revision}"), &url, None, events).await?;
    if !is_commit(&info.sha) {
        return Err(broken(&url, "the listing names no commit"));
    }
    let files = info
        .siblings
        .into_iter()
        // A path that leaves its folder is not worth a message: it cannot be asked for.
        .filter(|s| is_safe_path(&s.rfilename))
        .map(|s| RemoteFile {
            size: s.lfs.as_ref().and_then(|lfs| lfs.size).or(s.size),
            sha256: s.lfs.and_then(|lfs| lfs.sha256),
            path: s.rfilename,
            uploaded: None,
        })
        .collect();
    Ok(Repository { id: id.clone(), revision: revision.to_string(), commit: info.sha, files })
}

/// Picks the file that `name` means. When several of a kind compete, asks for their upload times.
pub(super) async fn select(
    http: &Http,
    mut repository: Repository,
    name: &Name,
    events: &Sender<Event>,
) -> Result<Selection, Error> {
    if let Which::Variant(variant) = name.which {
        let rivals: Vec<String> = repository
            .files
            .iter()
            .filter(|f| Variant::of(&f.path) == Some(variant))
            .map(|f| f.path.clone())
            .collect();
        if rivals.len() > 1 {
            let mut dates = upload_times(http, &repository, &rivals, events).await;
            for file in &mut repository.files {
                file.uploaded = dates.remove(&file.path);
            }
        }
    }
    let candidates: Vec<Candidate<'_>> = repository
        .files
        .iter()
        .map(|f| Candidate { path: &f.path, uploaded: f.uploaded.as_deref() })
        .collect();
    let (index, older) = choose(&name.which, &candidates).map_err(|problem| Error::Choice {
        name: name.to_string(),
        place: format!("{}@{}", repository.id, repository.revision),
        problem,
    })?;
    let older = older.iter().filter_map(|i| repository.files.get(*i)).map(|f| f.path.clone());
    let older = older.collect();
    Ok(Selection {
        file: repository.files.swap_remove(index),
        older,
        repo: repository.id,
        revision: repository.revision,
        commit: repository.commit,
    })
}

/// Upload times by path. Mirrors without this request leave the choice to the names.
async fn upload_times(
    http: &Http,
    repository: &Repository,
    paths: &[String],
    events: &Sender<Event>,
) -> HashMap<String, String> {
    let parts = ["api", "models"].into_iter().chain(repository.id.as_str().split('/'));
    let url = http.url(parts.chain(["paths-info", repository.commit.as_str()]));
    let body = serde_json::json!({ "paths": paths, "expand": true }).to_string();
    let what = format!("upload times in {}", repository.id);
    let infos: Result<Vec<PathInfo>, Error> =
        json(http, &repository.id, &what, &url, Some(body.into_bytes()), events).await;
    let infos = infos.unwrap_or_default().into_iter();
    infos.filter_map(|info| Some((info.path, info.last_commit?.date?))).collect()
}

async fn json<T: serde::de::DeserializeOwned>(
    http: &Http,
    repo: &RepoId,
    what: &str,
    url: &Url,
    body: Option<Vec<u8>>,
    events: &Sender<Event>,
) -> Result<T, Error> {
    let ask = Ask { json: body, ..Ask::default() };
    let bytes = http
        .retrying(url, events, async || {
            let (response, at) = http.send(url, &ask).await?;
            if response.status().is_success() {
                http.body(response, &at).await
            } else {
                Err(http.refusal(response, &at, repo, what).await)
            }
        })
        .await?;
    serde_json::from_slice(&bytes).map_err(|e| broken(url, &format!("the answer is not read: {e}")))
}

/// The address of a file's bytes.
pub(super) fn resolve_url(http: &Http, repo: &RepoId, revision: &str, file: &str) -> Url {
    let parts = repo.as_str().split('/').chain(["resolve", revision]);
    http.url(parts.chain(file.split('/')))
}

/// Asks what a file is now.
pub(super) async fn identify(
    http: &Http,
    repo: &RepoId,
    url: &Url,
    what: &str,
    events: &Sender<Event>,
) -> Result<Identity, Error> {
    let ask = Ask { head: true, ..Ask::default() };
    http.retrying(url, events, async || {
        let (response, at) = http.send(url, &ask).await?;
        let headers = response.headers();
        let linked = headers.contains_key("x-linked-etag");
        if !(response.status().is_success() || linked && response.status().is_redirection()) {
            return Err(http.refusal(response, &at, repo, what).await);
        }
        let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag"));
        let etag = etag.map(bare).filter(|etag| is_safe_etag(etag));
        let size = header(headers, "x-linked-size").or_else(|| header(headers, "content-length"));
        let size = size.and_then(|size| size.trim().parse().ok());
        let commit = header(headers, "x-repo-commit").map(str::to_string);
        match (etag, size) {
            (Some(etag), Some(size)) => Ok(Identity { commit, etag: etag.to_string(), size }),
            (etag, _) => {
                let missing = match etag {
                    None => "x-linked-etag or etag",
                    Some(_) => "x-linked-size or content-length",
                };
                let problem = format!("the answer lacks a usable {missing}");
                Err(Failure::Final(broken(&at, &problem)))
            }
        }
    })
    .await
}

/// An etag without its quotes and weakness mark.
fn bare(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

fn broken(url: &Url, problem: &str) -> Error {
    Error::Protocol { url: shown(url), problem: problem.to_string() }
}
