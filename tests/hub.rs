//! The downloader against a hub on loopback that misbehaves in every way a network can.

#[path = "hub/commands.rs"]
mod commands;
#[path = "hub/faults.rs"]
mod faults;
#[path = "hub/kills.rs"]
mod kills;
#[path = "hub/neighbours.rs"]
mod neighbours;
#[path = "hub/server.rs"]
mod server;
#[path = "support/wait.rs"]
mod wait;

use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_ds4::hub::{
    Cache, Cancel, Error, Event, Fetched, Hub, Name, RepoId, Settings, Token, Transfer,
};
use server::{noise, Place, Server, Stored, COMMIT, REPO};

/// A file that takes several chunks on several connections, with a short piece at its end.
const SIZE: usize = (3 << 20) + 12_345;

/// Chunks and waits small enough for a test; only a stall is none, however late a busy machine sends.
fn transfer() -> Transfer {
    Transfer {
        connections: 4,
        chunk: 256 << 10,
        piece: 32 << 10,
        stall: Duration::from_secs(30),
        attempts: 4,
        backoff: Duration::from_millis(20),
        longest_wait: Duration::from_secs(5),
    }
}

fn settings(endpoint: &str, cache: &Path) -> Settings {
    Settings {
        endpoint: endpoint.to_string(),
        token: None,
        cache: cache.to_path_buf(),
        offline: false,
        transfer: transfer(),
    }
}

fn pull(settings: &Settings, name: &str, events: &mut Vec<Event>) -> Result<Fetched, Error> {
    pull_with(settings, name, &Cancel::default(), &mut |event| events.push(event.clone()))
}

fn pull_with(
    settings: &Settings,
    name: &str,
    cancel: &Cancel,
    observe: &mut dyn FnMut(&Event),
) -> Result<Fetched, Error> {
    let hub = Hub::new(settings.clone())?;
    let selection = hub.select(&name.parse()?, cancel, observe)?;
    hub.fetch(&selection, cancel, observe)
}

fn repo_folder(cache: &Path) -> PathBuf {
    cache.join("models--org--repo")
}

/// Names in the blobs folder.
fn blobs(cache: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(repo_folder(cache).join("blobs")) else { return vec![] };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// No file is visible under its final name, in any of the places that have one.
fn assert_nothing_visible(cache: &Path) {
    let whole: Vec<String> =
        blobs(cache).into_iter().filter(|name| !name.contains(".ds4.")).collect();
    assert!(whole.is_empty(), "blobs under their final names: {whole:?}");
    assert!(!repo_folder(cache).join("snapshots").exists());
}

fn one_file() -> (Vec<u8>, Server) {
    let bytes = noise(SIZE, 1);
    let server = Server::start([("model.gguf", Stored::large(bytes.clone()))]);
    (bytes, server)
}

#[test]
fn a_pulled_file_is_whole_and_lies_in_the_standard_layout() {
    let (bytes, server) = one_file();
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let mut events = Vec::new();
    let fetched = pull(&settings, "org/repo", &mut events).unwrap();
    assert_eq!((fetched.size, fetched.was_cached), (SIZE as u64, false));
    assert!(std::fs::read(&fetched.path).unwrap() == bytes, "other bytes");
    let folder = repo_folder(cache.path());
    let snapshot = folder.join("snapshots").join(COMMIT);
    assert_eq!(fetched.path, snapshot.join("model.gguf"));
    let sha256 = server::sha256(&bytes);
    let link = std::fs::read_link(&fetched.path).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(&sha256));
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(blobs(cache.path()), [sha256]);
    assert!(matches!(events.last(), Some(Event::Progress { done, verified, .. })
        if done == verified && *done == SIZE as u64));
    // Nothing is asked for twice.
    assert_eq!((server.sent(), server.asked_for(0)), (SIZE as u64, SIZE as u64));

    let before = server.data_requests();
    assert!(pull(&settings, "org/repo:model.gguf@main", &mut events).unwrap().was_cached);
    assert_eq!(server.data_requests(), before);
}

#[test]
fn several_connections_are_at_work_at_once() {
    let (_, server) = one_file();
    // Long enough for the others to be asked too, however fast the machine.
    server.on_request(|request, _| {
        if request.place == server::Place::Cdn {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        None
    });
    let cache = tempfile::tempdir().unwrap();
    pull(&settings(&server.endpoint(), cache.path()), "org/repo", &mut Vec::new()).unwrap();
    assert!(server.state.most_open.load(std::sync::atomic::Ordering::SeqCst) > 2);
}

#[test]
fn files_kept_in_git_and_in_folders_are_checked_and_linked_too() {
    let server = Server::start([
        ("a/b/config.json", Stored::small(b"{\"x\": 1}".to_vec())),
        ("empty.txt", Stored::small(Vec::new())),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let fetched = pull(&settings, "org/repo:a/b/config.json", &mut Vec::new()).unwrap();
    assert_eq!(std::fs::read(&fetched.path).unwrap(), b"{\"x\": 1}");
    assert!(std::fs::read_link(&fetched.path).unwrap().starts_with("../../../../blobs"));
    let fetched = pull(&settings, "org/repo:empty.txt", &mut Vec::new()).unwrap();
    assert_eq!(std::fs::metadata(fetched.path).unwrap().len(), 0);

    let mut wrong = Stored::small(b"right".to_vec());
    wrong.bytes = std::sync::Arc::new(b"wrong".to_vec());
    server.state.files.lock().unwrap().insert("w.json".into(), wrong);
    let error = pull(&settings, "org/repo:w.json", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Hash { kind: "git sha1", .. }), "{error}");
}

#[test]
fn a_stopped_download_goes_on_where_it_was() {
    let (bytes, server) = one_file();
    server.allow(SIZE as u64 / 2);
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let cancel = Cancel::default();
    let error = pull_with(&settings, "org/repo", &cancel, &mut |event| {
        if matches!(event, Event::Progress { done, .. } if *done > SIZE as u64 / 3) {
            cancel.set();
        }
    })
    .unwrap_err();
    let Error::Cancelled { done, total } = error else { panic!("{error}") };
    assert!(done > SIZE as u64 / 3 && done < total, "{done} of {total}");
    assert!(error.to_string().contains("run the same command again"), "{error}");
    assert_nothing_visible(cache.path());

    let entry = &Cache::at(cache.path()).entries().unwrap()[0];
    assert!(!entry.is_whole() && entry.present >= done && entry.size == SIZE as u64);

    server.allow(u64::MAX);
    server.settle();
    let (before, mut events) = (server.data_requests(), Vec::new());
    let fetched = pull(&settings, "org/repo", &mut events).unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == bytes, "other bytes");
    let Event::Resuming { done: found, .. } = events[0] else { panic!("{events:?}") };
    assert!(found >= done, "{found} of {done} bytes found again");
    assert_eq!(server.asked_for(before), SIZE as u64 - found, "fetched again what was there");
}

#[test]
fn short_names_find_the_newest_file_of_their_kind() {
    let names = [
        "DeepSeek-V4-Flash-IQ2XXS-w2Q2K-chat-v2-imatrix.gguf",
        "DeepSeek-V4-Flash-IQ2XXS-w2Q2K-chat-v2-imatrix-0731.gguf",
        "DeepSeek-V4-Flash-MTP-Q4K-Q8_0-F32.gguf",
    ];
    let server = Server::start(names.map(|n| (n, Stored::large(n.as_bytes().to_vec()))));
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let pulled = |name: &str| pull(&settings, name, &mut Vec::new());
    let file = |name: &str| pulled(name).unwrap().path.file_name().unwrap().to_owned();
    assert_eq!(file("org/repo:q2-imatrix"), names[1]);
    assert_eq!(file("org/repo:mtp"), names[2]);
    // The hub's upload times beat what the names say.
    for (name, date) in [(names[0], "2027-01-01T00:00:00Z"), (names[1], "2026-07-31T00:00:00Z")] {
        let mut files = server.state.files.lock().unwrap();
        files.get_mut(name).unwrap().uploaded = Some(date.to_string());
    }
    assert_eq!(file("org/repo:q2-imatrix"), names[0]);
    let error = pulled("org/repo:q4").unwrap_err().to_string();
    assert!(error.contains("q2-imatrix, mtp"), "{error}");
    let error = pulled("org/repo").unwrap_err().to_string();
    assert!(names.iter().all(|name| error.contains(name)), "{error}");
}

#[test]
fn a_name_is_found_in_the_cache_without_the_network() {
    let q2 = "DeepSeek-V4-Flash-IQ2XXS-w2Q2K-chat-v2-imatrix.gguf";
    let server = Server::start([(q2, Stored::large(vec![7; 1000]))]);
    let cache = tempfile::tempdir().unwrap();
    let mut settings = settings(&server.endpoint(), cache.path());
    let locate = |settings: &Settings, name| candle_ds4::hub::locate_in(settings, name);
    let error = locate(&settings, "org/repo:q2-imatrix").unwrap_err().to_string();
    assert!(error.contains("ds4 pull org/repo:q2-imatrix"), "{error}");
    let path = pull(&settings, "org/repo:q2-imatrix", &mut Vec::new()).unwrap().path;
    drop(server);
    settings.offline = true;
    let (exact, typed) = (format!("org/repo:{q2}@{COMMIT}"), path.display().to_string());
    for name in ["org/repo:q2-imatrix", "org/repo", &exact, &typed] {
        assert_eq!(locate(&settings, name).unwrap(), path, "{name}");
    }
    let error = pull(&settings, "org/repo:q4", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Offline { .. }), "{error}");
    let error = locate(&settings, "./no.gguf").unwrap_err().to_string();
    assert!(error.contains("./no.gguf") && error.contains("ds4 list"), "{error}");
}

#[test]
fn removing_a_file_gives_back_its_bytes_and_only_those() {
    let server = Server::start([
        ("a.gguf", Stored::large(noise(100_000, 2))),
        ("same.gguf", Stored::large(noise(100_000, 2))),
        ("b.gguf", Stored::large(noise(50_000, 3))),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), folder.path());
    for file in ["a.gguf", "same.gguf", "b.gguf"] {
        pull(&settings, &format!("org/repo:{file}"), &mut Vec::new()).unwrap();
    }
    let cache = Cache::at(folder.path());
    let repo: RepoId = REPO.parse().unwrap();
    let files = || -> Vec<String> {
        cache.entries().unwrap().into_iter().map(|entry| entry.file).collect()
    };
    assert_eq!(files(), ["a.gguf", "b.gguf", "same.gguf"]);
    assert_eq!(cache.remove(&repo, "a.gguf").unwrap().freed, 0, "same.gguf needs the blob");
    assert_eq!(files(), ["b.gguf", "same.gguf"]);
    assert_eq!(cache.remove(&repo, "same.gguf").unwrap().freed, 100_000);
    assert_eq!(cache.remove(&repo, "../../../x").unwrap().files.len(), 0);
    assert_eq!(cache.remove(&repo, "b.gguf").unwrap().files, ["b.gguf"]);
    assert_eq!((blobs(folder.path()).len(), files().len()), (0, 0));
    assert!(cache.commit(&repo, "main").is_none(), "a reference to nothing is left");
    let none: Name = "org/repo:b.gguf".parse().unwrap();
    assert_eq!(cache.find(&none).unwrap(), None);
}

#[test]
fn the_token_is_sent_to_its_host_and_to_no_other() {
    let (_, server) = one_file();
    let cache = tempfile::tempdir().unwrap();
    let mut settings = settings(&server.endpoint(), cache.path());
    settings.token = Some(Token::new("hf_secret", "HF_TOKEN").unwrap());
    pull(&settings, "org/repo", &mut Vec::new()).unwrap();
    for request in server.log() {
        let sent = request.header("authorization");
        match request.place {
            Place::Hub => assert_eq!(sent, Some("Bearer hf_secret"), "{}", request.path),
            Place::Cdn => assert_eq!(sent, None, "{}", request.path),
        }
    }
    assert!(server.data_requests() > 0);
}
