//! Servers that answer wrongly, late, or not at all.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_ds4::hub::{Error, Event, Settings, Transfer};

use crate::kills::present;
use crate::server::{noise, Fault, Place, Server, Stored};
use crate::wait::until;
use crate::{assert_nothing_visible, blobs, one_file, pull, settings, transfer, SIZE};

/// Pulls with `fault` on the first `count` requests for data, and wants the right bytes at the end.
fn survives(fault: &Fault, count: usize) -> Vec<Event> {
    survives_with(fault, count, transfer())
}

fn survives_with(fault: &Fault, count: usize, transfer: Transfer) -> Vec<Event> {
    let (bytes, server) = one_file();
    let planned = fault.clone();
    server.on_request(move |request, _| {
        (request.place == Place::Cdn && request.number < count).then(|| planned.clone())
    });
    let cache = tempfile::tempdir().unwrap();
    let mut events = Vec::new();
    let settings = Settings { transfer, ..settings(&server.endpoint(), cache.path()) };
    let fetched = pull(&settings, "org/repo", &mut events)
        .unwrap_or_else(|error| panic!("{fault:?}: {error}"));
    assert!(std::fs::read(fetched.path).unwrap() == bytes, "{fault:?}: other bytes");
    events
}

fn retries(events: &[Event]) -> Vec<&str> {
    let mut reasons = Vec::new();
    for event in events {
        if let Event::Retrying { reason, .. } = event {
            reasons.push(reason.as_str());
        }
    }
    reasons
}

#[test]
fn short_bodies_are_completed() {
    let events = survives(&Fault::Short(10_000), 5);
    assert!(retries(&events).len() >= 5, "{events:?}");
}

#[test]
fn a_stalled_connection_is_given_up_and_opened_again() {
    let short = Transfer { stall: Duration::from_millis(500), ..transfer() };
    let events = survives_with(&Fault::Stall(70_000), 2, short);
    assert!(retries(&events).iter().any(|r| r.contains("no byte for 500ms")), "{events:?}");
}

#[test]
fn server_errors_are_waited_out() {
    for status in [500, 502, 503, 429, 408] {
        let events = survives(&Fault::Status(status, vec![]), 3);
        assert_eq!(retries(&events).len(), 3, "{status}: {events:?}");
    }
}

#[test]
fn retry_after_is_obeyed() {
    let start = Instant::now();
    survives(&Fault::Status(429, vec![("retry-after", "1".into())]), 1);
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_retry_after_of_an_hour_is_told_not_slept_through() {
    let (_, server) = one_file();
    server.on_request(|_, _| Some(Fault::Status(429, vec![("retry-after", "3600".into())])));
    let cache = tempfile::tempdir().unwrap();
    let error = pull(&settings(&server.endpoint(), cache.path()), "org/repo", &mut Vec::new());
    let error = error.unwrap_err();
    assert!(matches!(error, Error::RateLimited { wait, .. } if wait.as_secs() == 3600), "{error}");
    assert_eq!(server.log().len(), 1);
}

#[test]
fn a_server_without_ranges_is_read_from_end_to_end() {
    survives(&Fault::NoRanges, usize::MAX);
    // And again from the first byte when it breaks off.
    let (bytes, server) = one_file();
    server.on_request(|request, files| {
        files.get_mut("model.gguf").unwrap().cdn_etag = None;
        let data = request.place == Place::Cdn;
        match request.number {
            0 if data => Some(Fault::Status(503, vec![])),
            _ => data.then_some(Fault::NoRanges),
        }
    });
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let fetched = pull(&settings, "org/repo", &mut Vec::new()).unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == bytes);
    assert!(server.data_requests() <= 3);
}

#[test]
fn an_expired_address_is_asked_for_again() {
    let (bytes, server) = one_file();
    server.on_request(|request, _| {
        (request.place == Place::Cdn && (3..7).contains(&request.number))
            .then(|| Fault::Status(403, vec![]))
    });
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let fetched = pull(&settings, "org/repo", &mut Vec::new()).unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == bytes);
    let resolved = server.log().iter().filter(|r| r.path.contains("/resolve/")).count();
    assert!(resolved >= 3, "HEAD, first GET, and at least one more: {resolved}");
    // Each of the four refusals may send all four connections back to the hub, once.
    assert!(resolved <= 2 + 4 * 4, "each chunk asks the hub: {resolved}");
    assert!(server.data_requests() > 2 + 4 * 4, "too few chunks to tell");
}

#[test]
fn a_wrong_range_is_refused() {
    let (_, server) = one_file();
    server.on_request(|r, _| (r.place == Place::Cdn).then_some(Fault::WrongRange));
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let error = pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    assert_nothing_visible(cache.path());
}

#[test]
fn bytes_with_another_hash_are_deleted_and_never_named() {
    let mut stored = Stored::large(noise(SIZE, 1));
    let mut bytes = stored.bytes.to_vec();
    bytes[SIZE / 2] ^= 1;
    stored.bytes = Arc::new(bytes);
    let right = stored.etag.clone();
    let server = Server::start([("model.gguf", stored)]);
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let error = pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
    assert!(matches!(&error, Error::Hash { expected, .. } if *expected == right), "{error}");
    assert_nothing_visible(cache.path());
    assert!(blobs(cache.path()).is_empty(), "the next try would start from wrong bytes");
}

#[test]
fn a_listing_that_contradicts_the_file_is_told() {
    let (_, server) = one_file();
    server.on_request(|request, files| {
        if request.method == "HEAD" {
            files.insert("model.gguf".into(), Stored::large(noise(SIZE, 9)));
        }
        None
    });
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let error = pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    assert_eq!(server.data_requests(), 0);
}

/// Replaces the file at the `at`-th request for data; the hub announces the new one if `told`.
fn replace_at(server: &Server, at: usize, told: bool) -> Vec<u8> {
    let new = noise(SIZE, 77);
    let (stored, mut done) = (Stored::large(new.clone()), false);
    server.on_request(move |request, files| {
        if request.place == Place::Cdn && request.number >= at && !done {
            done = true;
            let file = files.get_mut("model.gguf").unwrap();
            if told {
                *file = stored.clone();
            } else {
                (file.bytes, file.cdn_etag) = (stored.bytes.clone(), stored.cdn_etag.clone());
            }
        }
        None
    });
    new
}

#[test]
fn a_file_replaced_between_ranges_is_never_mixed() {
    for at in [1, 2, 5, 9] {
        let (_, server) = one_file();
        let new = replace_at(&server, at, true);
        let cache = tempfile::tempdir().unwrap();
        let settings = settings(&server.endpoint(), cache.path());
        let error = pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
        assert!(matches!(error, Error::Changed { .. }), "{error}");
        assert_nothing_visible(cache.path());
        assert!(blobs(cache.path()).is_empty(), "bytes of the old file are kept");
        let fetched = pull(&settings, "org/repo", &mut Vec::new()).unwrap();
        assert!(std::fs::read(fetched.path).unwrap() == new, "other bytes");
    }
}

#[test]
fn bytes_replaced_behind_an_unchanged_announcement_are_not_kept() {
    let (_, server) = one_file();
    replace_at(&server, 3, false);
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let error = pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Hash { .. }), "{error}");
    assert_nothing_visible(cache.path());
}

#[test]
fn a_new_validator_for_the_same_bytes_is_no_change() {
    let (bytes, server) = one_file();
    server.on_request(|request, files| {
        if request.place == Place::Cdn && request.number == 3 {
            files.get_mut("model.gguf").unwrap().cdn_etag = Some("\"renamed\"".into());
        }
        None
    });
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let fetched = pull(&settings, "org/repo", &mut Vec::new()).unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == bytes);
}

#[test]
fn endless_redirects_end_with_an_error() {
    let (_, server) = one_file();
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let count = AtomicUsize::new(0);
    server.on_request(move |request, _| {
        let path = request.path.split('?').next().unwrap_or_default();
        let location = format!("{path}?hop={}", count.fetch_add(1, Ordering::SeqCst));
        Some(Fault::Status(302, vec![("location", location)]))
    });
    let error = pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("more than 10 times"), "{error}");
    assert!(server.log().len() <= 11);

    server.on_request(|request, _| {
        Some(Fault::Status(307, vec![("location", request.path.clone())]))
    });
    let error = pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("in a circle"), "{error}");

    server.on_request(|_, _| {
        Some(Fault::Status(302, vec![("location", "file:///etc/passwd".into())]))
    });
    let error = pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }), "{error}");
}

#[test]
fn a_renamed_repository_is_followed() {
    let (bytes, server) = one_file();
    server.on_request(|request, _| {
        let new = request.path.replace("/old/name/", "/org/repo/");
        (new != request.path).then(|| Fault::Status(307, vec![("location", new)]))
    });
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let path = pull(&settings, "old/name", &mut Vec::new()).unwrap().path;
    assert!(std::fs::read(&path).unwrap() == bytes);
    assert!(path.starts_with(cache.path().join("models--old--name")));
}

#[test]
fn a_gated_repository_says_where_to_accept_its_licence() {
    let (_, server) = one_file();
    server.on_request(|request, _| {
        request
            .path
            .contains("resolve")
            .then(|| Fault::Status(403, vec![("x-error-code", "GatedRepo".into())]))
    });
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let error = pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Gated { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("{}/org/repo", server.endpoint())), "{text}");
    assert!(text.contains("HF_TOKEN"), "{text}");
}

#[test]
fn what_does_not_exist_is_named() {
    let (_, server) = one_file();
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let fails = |name: &str| pull(&settings, name, &mut Vec::new()).unwrap_err().to_string();
    assert!(fails("org/other").contains("the repository org/other: not found"));
    assert!(fails("org/repo:no.gguf").contains("model.gguf"));
    assert!(fails("org/repo@v9").contains("org/repo at v9: not found"));
}

#[test]
fn a_server_that_never_recovers_ends_in_an_error_and_a_resumable_state() {
    let (bytes, server) = one_file();
    server.on_request(|request, _| {
        (request.place == Place::Cdn && request.number >= 4).then(|| Fault::Status(503, vec![]))
    });
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let error = pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { attempts: 4, .. }), "{error}");
    assert!(!error.to_string().contains("secret"), "the signature is in the message: {error}");
    assert_nothing_visible(cache.path());
    server.on_request(|_, _| None);
    let mut events = Vec::new();
    let fetched = pull(&settings, "org/repo", &mut events).unwrap();
    assert!(events.iter().any(|e| matches!(e, Event::Resuming { .. })), "{events:?}");
    assert!(std::fs::read(fetched.path).unwrap() == bytes);
}

#[test]
fn nobody_listening_is_told_with_the_address() {
    // Bound, so that no other test gets the port, and not listened on.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoint = format!("http://{}", socket.local_addr().unwrap());
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&endpoint, cache.path());
    let error = pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&endpoint), "{error}");
}

#[test]
fn a_file_larger_than_the_disk_is_refused_before_its_first_byte() {
    let mut stored = Stored::large(vec![0; 1000]);
    stored.announced_size = 1 << 60;
    let server = Server::start([("model.gguf", stored)]);
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let error = pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Space { .. }), "{error}");
    assert!(error.to_string().contains("1.0 EiB"), "{error}");
    assert_eq!(server.data_requests(), 0);
}

#[test]
fn an_etag_that_is_a_path_is_refused() {
    let mut stored = Stored::large(vec![0; 1000]);
    stored.etag = "../../../evil".into();
    let server = Server::start([("model.gguf", stored)]);
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(&server.endpoint(), cache.path());
    let error = pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[test]
fn pieces_that_the_disk_lost_are_fetched_again() {
    use std::os::unix::fs::FileExt;
    let (bytes, server) = one_file();
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().to_path_buf();
    server.on_request(move |request, _| {
        (request.place == Place::Cdn && request.number >= 6).then(|| {
            // Of the six answers before, of eight pieces each, all but one piece at most are there.
            until("pieces of six chunks", || present(&folder) >= 47 * transfer().piece);
            Fault::Status(503, vec![])
        })
    });
    let settings = settings(&server.endpoint(), cache.path());
    pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
    let name = blobs(cache.path()).into_iter().find(|n| n.ends_with("incomplete")).unwrap();
    let path = crate::repo_folder(cache.path()).join("blobs").join(name);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    // What a power failure leaves: a journal that is ahead of the data.
    file.write_all_at(&[0; 5000], 10_000).unwrap();
    file.set_len(file.metadata().unwrap().len() - 20_000).unwrap();
    server.on_request(|_, _| None);
    let mut events = Vec::new();
    let fetched = pull(&settings, "org/repo", &mut events).unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == bytes, "other bytes");
    assert!(events.iter().any(|e| matches!(e, Event::Rejected { .. })), "{events:?}");
}

/// `mount -t tmpfs -o size=80m tmpfs DIR && DS4_SMALL_DISK=DIR cargo test --release --test hub --
/// --ignored small_disk`.
#[test]
#[ignore = "needs DS4_SMALL_DISK, a folder on a disk of about 80 MiB"]
fn a_small_disk_that_others_fill_is_told_and_the_download_goes_on_after() {
    use std::io::Write;
    let disk = std::path::PathBuf::from(std::env::var_os("DS4_SMALL_DISK").unwrap());
    let (bytes, server) = one_file();
    let cache = tempfile::tempdir_in(&disk).unwrap();
    let filler = disk.join("filler");
    let path = filler.clone();
    server.on_request(move |request, _| {
        if request.place == Place::Cdn && request.number == 5 {
            let mut file = std::fs::File::create(&path).unwrap();
            while file.write_all(&[1; 4096]).is_ok() {}
        }
        None
    });
    let settings = settings(&server.endpoint(), cache.path());
    let error = pull(&settings, "org/repo", &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_nothing_visible(cache.path());
    std::fs::remove_file(&filler).unwrap();
    server.on_request(|_, _| None);
    let fetched = pull(&settings, "org/repo", &mut Vec::new()).unwrap();
    assert!(std::fs::read(fetched.path).unwrap() == bytes, "other bytes");
}
