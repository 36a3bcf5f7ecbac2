//! The commands as a user meets them: output, status, interruption.

use std::path::Path;
use std::process::{Command, Stdio};

use candle_ds4::cli;
use candle_ds4::hub::Transfer;
use serde_json::Value;

use crate::kills::{child, present, said, CHILD};
use crate::server::{noise, Server, Stored, REPO};
use crate::wait::until;

const DEFAULT_Q2: &str = "DeepSeek-V4-Flash-IQ2XXS-w2Q2K-chat-v2-imatrix-0731.gguf";

/// What stands between the harness's own lines and a command's output.
const MARK: &str = "----";

/// Runs one of the commands; the words are its name and arguments.
fn command(endpoint: &str, cache: &Path, words: &str) -> Command {
    let mut command = child(endpoint, cache, words);
    let here = command.get_program().to_owned();
    let vars: Vec<_> =
        command.get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect();
    command = Command::new(here);
    command
        .args(["--ignored", "--exact", "commands::runs_in_a_process_of_its_own", "--nocapture"])
        .env_clear()
        .envs(vars)
        .current_dir(cache)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[test]
#[ignore = "started by the other tests, which tell it what to run"]
fn runs_in_a_process_of_its_own() {
    let Ok(words) = std::env::var(CHILD) else { return };
    let words: Vec<&str> = words.split(' ').collect();
    let options =
        cli::pull::Options { link: words.contains(&"--link"), json: words.contains(&"--json") };
    let out = &mut std::io::stdout();
    println!("\n{MARK}");
    let result = match words[..] {
        ["pull", "--list", name] => cli::pull::list(Some(name), options.json, out).map(|()| 0),
        ["pull", name, ..] => cli::pull::run(name, options, out),
        ["list", ..] => cli::list::run(options.json, out).map(|()| 0),
        ["rm", name] => cli::rm::run(name, out).map(|()| 0),
        ["doctor", ..] => cli::doctor::run(options.json, out),
        _ => panic!("{words:?}"),
    };
    let status = result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        1
    });
    std::process::exit(status.into());
}

/// Output, standard error and status.
fn run(endpoint: &str, cache: &Path, words: &str) -> (String, String, i32) {
    let output = command(endpoint, cache, words).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, text) = text.split_once(&format!("{MARK}\n")).unwrap();
    (text.to_string(), String::from_utf8(output.stderr).unwrap(), output.status.code().unwrap())
}

#[test]
fn pull_list_and_rm_tell_what_they_did() {
    let bytes = noise(2_000_000, 4);
    let server = Server::start([(DEFAULT_Q2, Stored::large(bytes.clone()))]);
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().canonicalize().unwrap();
    let run = |words: &str| run(&server.endpoint(), &cache, words);

    let (out, _, status) = run(&format!("pull --list {REPO}"));
    assert_eq!(status, 0);
    assert!(
        out.contains("q2-imatrix") && out.contains("1.9 MiB") && !out.contains("here"),
        "{out}"
    );

    let (out, err, status) = run(&format!("pull {REPO}:q2-imatrix --link"));
    assert_eq!(status, 0, "{err}");
    let path = out.lines().next().unwrap();
    assert!(std::fs::read(path).unwrap() == bytes);
    assert!(err.contains(DEFAULT_Q2), "{err}");
    assert_eq!(std::fs::read_link(cache.join("ds4flash.gguf")).unwrap(), Path::new(path));

    let (out, _, _) = run(&format!("pull --list {REPO}"));
    assert!(out.contains("here"), "{out}");
    let (out, _, _) = run("list");
    assert!(out.contains(&format!("{REPO}:{DEFAULT_Q2}")), "{out}");
    let (out, _, _) = run("list --json");
    let listing: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(listing["files"][0]["present"], 2_000_000);

    let (out, _, status) = run(&format!("rm {REPO}:q2-imatrix"));
    assert!(status == 0 && out.contains("1.9 MiB free now"), "{out}");
    let (_, err, status) = run(&format!("rm {REPO}:q2-imatrix"));
    assert!(status == 1 && err.contains("ds4 list"), "{err}");
    let (out, _, _) = run("list");
    assert!(out.contains("nothing"), "{out}");
}

#[test]
fn json_is_one_event_a_line_and_ends_with_the_path_or_the_error() {
    let server = Server::start([("m.gguf", Stored::large(noise(2_000_000, 4)))]);
    let folder = tempfile::tempdir().unwrap();
    let events = |words: &str| -> Vec<Value> {
        let (out, _, _) = run(&server.endpoint(), folder.path(), words);
        out.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    };
    let pulled = events("pull org/repo --json");
    assert_eq!(pulled[0]["event"], "selected");
    assert_eq!(pulled[0]["size"], 2_000_000);
    let last = pulled.last().unwrap();
    assert_eq!(last["event"], "done");
    assert!(Path::new(last["path"].as_str().unwrap()).exists());
    assert!(pulled.iter().any(|e| e["event"] == "progress" && e["verified"] == 2_000_000));
    let failed = events("pull org/repo:no.gguf --json");
    assert_eq!(failed.last().unwrap()["event"], "error");
}

#[test]
fn an_interrupt_says_how_to_go_on_and_exits_with_130() {
    // Enough for some connection to fill a piece, not enough to end.
    let Transfer { connections, piece, .. } = Transfer::default();
    let enough = connections as u64 * piece;
    let server =
        Server::start([("m.gguf", Stored::large(noise((enough + 2 * piece) as usize, 4)))]);
    server.allow(enough);
    let cache = tempfile::tempdir().unwrap();
    let process = command(&server.endpoint(), cache.path(), "pull org/repo").spawn().unwrap();
    until("a piece is kept", || present(cache.path()) > 0);
    let pid = process.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(said(&output).contains("run the same command again to go on"), "{}", said(&output));
    server.allow(u64::MAX);
    let (out, _, _) = run(&server.endpoint(), cache.path(), "list");
    assert!(out.contains("go on with: ds4 pull org/repo:m.gguf"), "{out}");
    let (out, _, status) = run(&server.endpoint(), cache.path(), "rm org/repo:m.gguf");
    assert!(status == 0 && out.contains("(unfinished)"), "{out}");
    assert_eq!(present(cache.path()), 0);
}

#[test]
fn the_doctor_names_what_fits_and_fails_when_nothing_does() {
    let cache = tempfile::tempdir().unwrap();
    let (out, err, status) = run("http://hub.invalid", cache.path(), "doctor --json");
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out} {err}"));
    assert_eq!(status, i32::from(report["recommended"].is_null()));
    for model in report["models"].as_array().unwrap() {
        assert!(!model["reason"].as_str().unwrap().is_empty());
    }
    let (out, _, again) = run("http://hub.invalid", cache.path(), "doctor");
    assert_eq!(again, status);
    assert!(out.contains("q2-imatrix") && out.contains("q4-imatrix"), "{out}");
    assert_eq!(out.contains("nothing fits"), status == 1, "{out}");
}
