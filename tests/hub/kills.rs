//! Downloads in processes of their own: killed, limited, raced, without rights.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use candle_ds4::hub::{Cancel, Event, Settings, Transfer};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::server::{noise, Place, Server, Stored};
use crate::wait::until;
use crate::{assert_nothing_visible, blobs, one_file, pull_with, repo_folder, transfer, SIZE};

pub const CHILD: &str = "DS4_TEST_PULL";

/// This program, told to run nothing but [`pulls_in_a_process_of_its_own`].
pub fn child(endpoint: &str, cache: &Path, name: &str) -> Command {
    let mut command = Command::new(program());
    command
        .args(["--ignored", "--exact", "kills::pulls_in_a_process_of_its_own", "--nocapture"])
        .env_clear()
        .env("HF_HOME", cache)
        .env("HF_HUB_CACHE", cache)
        .env("HF_ENDPOINT", endpoint)
        .env(CHILD, name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn program() -> PathBuf {
    std::env::current_exe().unwrap()
}

#[test]
#[ignore = "started by the other tests, which tell it what to pull"]
fn pulls_in_a_process_of_its_own() {
    let Ok(name) = std::env::var(CHILD) else { return };
    let mut settings = Settings::from_env().unwrap();
    settings.transfer = transfer();
    // At once: others wait for it.
    let result = pull_with(&settings, &name, &Cancel::default(), &mut |event| {
        if !matches!(event, Event::Progress { .. }) {
            println!("event {event:?}");
        }
    });
    match result {
        Ok(fetched) => println!("path {}", fetched.path.display()),
        Err(error) => {
            println!("error {error}");
            std::process::exit(1);
        }
    }
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn kill_and_resume(kills: u32, seed: u64) {
    /// Bytes that a process is sent before it is killed: less than the file by far, and enough for each
    /// connection to fill a piece.
    const EACH: u64 = 400_000;
    let bytes = noise(SIZE + kills as usize * EACH as usize, 5);
    let server = Server::start([("model.gguf", Stored::large(bytes.clone()))]);
    server.pause(20_000);
    let cache = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut lost = Vec::new();
    let (mut kept, mut unkept) = (0, 0);
    for kill in 0..kills {
        server.allow(EACH);
        let mut process = child(&server.endpoint(), cache.path(), "org/repo").spawn().unwrap();
        // Every other one is killed wherever it is: it may not have asked for anything yet.
        if kill % 2 == 0 {
            until("a piece more is kept", || present(cache.path()) > kept);
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..250)));
        assert!(process.try_wait().unwrap().is_none(), "it ended before the kill");
        process.kill().unwrap();
        process.wait().unwrap();
        assert_nothing_visible(cache.path());
        kept = present(cache.path());
        // What was written and is in no piece of the journal will be asked for again.
        let before = unkept;
        unkept = written(cache.path(), &bytes) - kept;
        lost.push(unkept.saturating_sub(before));
        server.allow(u64::MAX);
        server.settle();
    }
    server.pause(0);
    let before = server.data_requests();
    let output = child(&server.endpoint(), cache.path(), "org/repo").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let path = repo_folder(cache.path()).join("snapshots").join(crate::COMMIT).join("model.gguf");
    assert!(std::fs::read(path).unwrap() == bytes, "other bytes after {kills} kills");
    let most = lost.iter().max().unwrap();
    println!(
        "{kills} kills, {} of them within a piece: {most} bytes lost at most, {kept} bytes kept",
        lost.iter().filter(|lost| **lost > 0).count(),
    );
    let Transfer { connections, piece, .. } = transfer();
    assert!(*most <= connections as u64 * piece, "one kill cost {most} bytes, a piece is {piece}");
    assert_eq!(server.asked_for(before), bytes.len() as u64 - kept, "fetched what was there");
}

/// Bytes of the unfinished file that are right already, in a run from the start of each piece.
fn written(cache: &Path, bytes: &[u8]) -> u64 {
    let name = blobs(cache).into_iter().find(|name| name.ends_with("incomplete"));
    let Some(name) = name else { return 0 };
    let there = std::fs::read(repo_folder(cache).join("blobs").join(name)).unwrap();
    let piece = transfer().piece as usize;
    let pieces = there.chunks(piece).zip(bytes.chunks(piece));
    pieces
        .map(|(there, right)| there.iter().zip(right).take_while(|(a, b)| a == b).count() as u64)
        .sum()
}

/// Bytes that the journal says are there.
pub fn present(cache: &Path) -> u64 {
    let entries = candle_ds4::hub::Cache::at(cache).entries().unwrap();
    entries.iter().map(|entry| entry.present).sum()
}

#[test]
fn kills_at_random_moments_leave_a_download_that_goes_on() {
    kill_and_resume(15, 3);
}

#[test]
#[ignore = "a minute; the short form runs always"]
fn two_hundred_kills_leave_a_download_that_goes_on() {
    kill_and_resume(200, 4);
}

#[test]
fn two_processes_fetch_the_same_file_once() {
    let (bytes, server) = one_file();
    // No data before the two that come too late have met the lock.
    server.allow(0);
    let cache = tempfile::tempdir().unwrap();
    let waiting = Arc::new(AtomicUsize::new(0));
    let listeners = [(); 3].map(|()| {
        let mut process = child(&server.endpoint(), cache.path(), "org/repo").spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let waiting = waiting.clone();
        std::thread::spawn(move || {
            let mut said = String::new();
            for line in lines.map_while(Result::ok) {
                waiting.fetch_add(usize::from(line.contains("event Waiting")), Ordering::SeqCst);
                said += &(line + "\n");
            }
            (process.wait_with_output().unwrap(), said)
        })
    });
    until("two processes wait for the third", || waiting.load(Ordering::SeqCst) == 2);
    server.allow(u64::MAX);
    for listener in listeners {
        let (output, heard) = listener.join().unwrap();
        assert!(output.status.success(), "{heard}{}", said(&output));
    }
    assert_eq!(waiting.load(Ordering::SeqCst), 2);
    assert_eq!(server.sent(), SIZE as u64, "fetched more than once");
    let path = repo_folder(cache.path()).join("snapshots").join(crate::COMMIT).join("model.gguf");
    assert!(std::fs::read(path).unwrap() == bytes);
}

#[test]
fn a_killed_process_leaves_no_lock() {
    let (_, server) = one_file();
    server.allow(SIZE as u64 / 2);
    let cache = tempfile::tempdir().unwrap();
    let mut process = child(&server.endpoint(), cache.path(), "org/repo").spawn().unwrap();
    until("a piece is kept", || present(cache.path()) > 0);
    process.kill().unwrap();
    assert_eq!(process.wait().unwrap().code(), None, "it ended before the kill");
    server.allow(u64::MAX);
    let output = child(&server.endpoint(), cache.path(), "org/repo").output().unwrap();
    assert!(output.status.success() && !said(&output).contains("Waiting"), "{}", said(&output));
}

#[test]
fn a_full_disk_is_told_and_the_download_goes_on_after() {
    let (bytes, server) = one_file();
    let cache = tempfile::tempdir().unwrap();
    // Nobody writes beyond the limit before something is kept.
    let folder = cache.path().to_path_buf();
    server.on_request(move |request, _| {
        if request.place == Place::Cdn && request.number > 0 {
            until("a piece is kept", || present(&folder) > 0);
        }
        None
    });
    // A limit on file length, in blocks of 512 or 1024 bytes by shell: both are less than the
    // file. The signal that comes with it would end the process before it can speak.
    let inner = child(&server.endpoint(), cache.path(), "org/repo");
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 1000; exec \"$@\"", "sh"]);
    limited.arg(inner.get_program()).args(inner.get_args()).env_clear();
    limited.envs(inner.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let output = limited.output().unwrap();
    assert!(!output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("error cannot write"), "{}", said(&output));
    assert!(said(&output).contains("HF_HUB_CACHE"), "{}", said(&output));
    assert_nothing_visible(cache.path());
    assert!(present(cache.path()) > 0);
    let output = child(&server.endpoint(), cache.path(), "org/repo").output().unwrap();
    assert!(said(&output).contains("event Resuming"), "{}", said(&output));
    let path = repo_folder(cache.path()).join("snapshots").join(crate::COMMIT).join("model.gguf");
    assert!(std::fs::read(path).unwrap() == bytes);
}

#[test]
fn a_cache_that_cannot_be_written_is_told_and_still_read() {
    let server = Server::start([
        ("here.gguf", Stored::large(noise(1000, 1))),
        ("new.gguf", Stored::large(noise(1000, 2))),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let output = child(&server.endpoint(), &cache, "org/repo:here.gguf").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    // Rights do not bind the administrator: as one, become nobody, who must reach the program.
    let copy = folder.path().join("program");
    std::fs::copy(program(), &copy).unwrap();
    for path in walk(&cache).iter().chain([&folder.path().to_path_buf(), &copy]) {
        let link = std::fs::symlink_metadata(path).unwrap().is_symlink();
        if !link {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o555)).unwrap();
        }
    }
    let without_rights = |name: &str| {
        let inner = child(&server.endpoint(), &cache, name);
        let mut command = Command::new(&copy);
        command.args(inner.get_args()).env_clear();
        command.envs(inner.get_envs().filter_map(|(k, v)| Some((k, v?))));
        if std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0) {
            command.uid(65534).gid(65534);
        }
        loop {
            match command.output() {
                // Another test forked while the copy was open for writing.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                output => return output.unwrap(),
            }
        }
    };
    let here = without_rights("org/repo:here.gguf");
    assert!(said(&here).contains("\npath "), "{}", said(&here));
    let new = without_rights("org/repo:new.gguf");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for path in walk(&cache).iter().filter(|path| path.is_dir()) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    assert!(!new.status.success());
    assert!(said(&new).contains("Permission denied"), "{}", said(&new));
    assert!(said(&new).contains("set HF_HUB_CACHE"), "{}", said(&new));
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut paths = vec![folder.to_path_buf()];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if std::fs::symlink_metadata(&path).unwrap().is_dir() {
            paths.extend(walk(&path));
        } else {
            paths.push(path);
        }
    }
    paths
}

#[test]
fn the_environment_chooses_proxy_token_and_offline() {
    let server = Server::start([("config.json", Stored::small(b"{}".to_vec()))]);
    let cache = tempfile::tempdir().unwrap();
    let run = |vars: &[(&str, &str)]| {
        let mut command = child("http://hub.invalid", cache.path(), "org/repo:config.json");
        command.envs(vars.iter().copied());
        command.output().unwrap()
    };
    let offline = run(&[("HF_HUB_OFFLINE", "1")]);
    assert!(said(&offline).contains("HF_HUB_OFFLINE is set"), "{}", said(&offline));
    assert!(server.log().is_empty());
    let proxy = server.endpoint();
    let output =
        run(&[("HTTP_PROXY", proxy.as_str()), ("http_proxy", &proxy), ("HF_TOKEN", "tok")]);
    assert!(said(&output).contains("\npath "), "{}", said(&output));
    let log = server.log();
    assert!(log.iter().all(|r| r.header("host") == Some("hub.invalid")), "{log:?}");
    assert!(log.iter().all(|r| r.header("authorization") == Some("Bearer tok")), "{log:?}");
}
