//! The program: how it starts, what it says, how it ends.

#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{mpsc, Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::client::{bytes, connect, parse, request, PATIENCE};
use crate::wait::until;

const CHAT: &str = "/v1/chat/completions";

/// A server in a process of its own.
struct Server {
    child: Child,
    address: SocketAddr,
    /// What it has said on standard error.
    said: Arc<Mutex<String>>,
    listener: Option<JoinHandle<()>>,
    /// From the start to the line that says where it listens.
    ready: Duration,
}

impl Server {
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let start = Instant::now();
        let mut child = command(arguments).envs(environment.iter().copied()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, receiver) = mpsc::channel();
        let said = Arc::new(Mutex::new(String::new()));
        let heard = said.clone();
        let listener = std::thread::spawn(move || {
            while let Some(Ok(line)) = lines.next() {
                if let Some((_, rest)) = line.split_once("listening on http://") {
                    let _ = sender.send(rest.split(' ').next().unwrap_or_default().to_owned());
                }
                *heard.lock().unwrap() += &(line + "\n");
            }
        });
        let address = receiver.recv_timeout(PATIENCE).unwrap().parse().unwrap();
        Self { child, address, said, listener: Some(listener), ready: start.elapsed() }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for the end; the exit code, and what was said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut status = None;
        until("the server ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        self.listener.take().unwrap().join().unwrap();
        (status.unwrap().code(), self.said())
    }

    fn stop(self) -> String {
        self.signal("TERM");
        let (code, said) = self.end();
        assert_eq!(code, Some(0), "{said}");
        said
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ds4-server"));
    // A folder without models.
    command.args(arguments).current_dir(env!("CARGO_TARGET_TMPDIR"));
    command.env_remove("DS4_MODEL").env_remove("DS4_API_KEY");
    // Nothing is kept from one test to the next.
    command.env_remove("HOME").env_remove("XDG_CACHE_HOME").env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn refused(arguments: &[&str]) -> String {
    let output = command(arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.starts_with("ds4-server: ") && !said.contains("panicked"), "{said}");
    said
}

fn ask(content: &str, stream: bool) -> Vec<u8> {
    let messages = json!([{ "role": "user", "content": content }]);
    let body = json!({ "messages": messages, "stream": stream, "temperature": 0 });
    body.to_string().into_bytes()
}

#[test]
fn it_starts_says_where_and_ends_when_told() {
    let server = Server::start(&["--port", "0"], &[]);
    let response = request(server.address, "POST", CHAT, &[], &ask("What is 12 + 30?", false));
    assert!(response.ok()["choices"][0]["message"]["content"].as_str().unwrap().contains("42"));
    println!("ready after {:?}", server.ready);
    let said = server.stop();
    for needle in ["bundled demo model", "ds4-server -m q2-imatrix", "/v1", "stopped"] {
        assert!(said.contains(needle), "{needle:?} is not in: {said}");
    }
}

#[test]
fn what_is_not_safe_does_not_start() {
    let said = refused(&["--host", "0.0.0.0", "--port", "0"]);
    assert!(said.contains("--api-key-file") && said.contains("--insecure"), "{said}");
    assert!(refused(&["--host", "no.such.host.invalid"]).contains("127.0.0.1"));
    assert!(refused(&["--ctx", "1"]).contains("--ctx"));
    for (flag, value) in [("--kv-disk-space-mb", "-1"), ("--ctx", "NaN"), ("--port", "70000")] {
        let said = refused(&[flag, value]);
        let head =
            format!("ds4-server: {flag} is \"{value}\": it must be a whole number from 0 to ");
        assert!(said.starts_with(&head) && said.contains(&format!("({flag}: ")), "{said}");
    }
    for flag in ["--threads", "--grace", "--parallel", "--max-connections", "--kv-memory-mb"] {
        let said = refused(&[flag, "18446744073709551615"]);
        assert!(
            said.contains(&format!("{flag} is 18446744073709551615: it must be from")),
            "{said}"
        );
    }
    assert!(refused(&["--host", "192.0.2.1", "--insecure"]).contains("127.0.0.1"));
    assert!(refused(&["--cors", "not-an-origin"]).contains("--cors"));
    assert!(refused(&["--api-key-file", "nowhere.txt"]).contains("nowhere.txt"));
    assert!(refused(&["-m", "nowhere.gguf", "--port", "0"]).contains("nowhere.gguf"));
    let said = refused(&["--kv-disk-dir", "/dev/null/kv", "--port", "0"]);
    assert!(
        said.contains("--kv-disk-dir: /dev/null/kv: ") && said.contains("another folder"),
        "{said}"
    );
    assert!(refused(&["--port", "0", "--trace", "/no/such/folder"]).contains("--trace /no/such"));
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("keys");
    std::fs::write(&empty, "# none yet\n").unwrap();
    assert!(refused(&["--api-key-file", empty.to_str().unwrap()]).contains("no key"));

    let open = Server::start(&["--host", "0.0.0.0", "--port", "0", "--insecure"], &[]);
    let port = open.address.port();
    let taken = refused(&["--port", &port.to_string(), "--host", "0.0.0.0", "--insecure"]);
    assert!(taken.contains("--port"), "{taken}");
    assert!(open.stop().contains("--insecure"));
}

#[test]
fn the_log_has_neither_keys_nor_prompts_and_the_trace_has_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.txt");
    let arguments = ["--port", "0", "--log-format", "json", "--trace", trace.to_str().unwrap()];
    let server = Server::start(&arguments, &[("DS4_API_KEY", "s3cret-key")]);
    let post = |key: &str, content: &str| {
        let headers = [("x-api-key", key)];
        request(server.address, "POST", CHAT, &headers, &ask(content, false))
    };
    assert_eq!(post("s3cret-key", "What is the capital of France?").status, 200);
    assert_eq!(post("s3cret-key", "What is the capital of Italy?").status, 200);
    assert_eq!(post("wrong-key", "What is the capital of Spain?").status, 401);
    let odd = "/v1/\u{1b}[31mx%0aINFO";
    let _ = request(server.address, "GET", &odd.replace('\u{1b}', "%1b"), &[], b"");
    let said = server.stop();
    for secret in ["s3cret", "wrong-key", "capital", "Paris", "[31m"] {
        assert!(!said.contains(secret), "{secret:?} is in: {said}");
    }
    let events: Vec<Value> =
        said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let answers = events.iter().filter(|event| event["message"] == "answer");
    assert_eq!(answers.count(), 2, "{said}");
    let asked = events.iter().filter(|event| event["message"] == "request");
    let ids: Vec<&str> = asked.filter_map(|event| event["request"].as_str()).collect();
    assert!(ids.len() >= 3 && ids.iter().all(|id| id.starts_with("req_")), "{said}");
    let traced = std::fs::read_to_string(&trace).unwrap();
    for needle in ["capital of France?", "Paris", "cache: ", "then differs", " Italy", "-- answer"]
    {
        assert!(traced.contains(needle), "{needle:?} is not in: {traced}");
    }
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&trace).unwrap().permissions().mode() & 0o777, 0o600);
}

#[cfg(target_os = "linux")]
#[test]
fn a_supervisor_is_told_when_it_is_ready_and_when_it_stops() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let server = Server::start(&["--port", "0"], &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    assert_eq!(heard(), "READY=1");
    server.stop();
    assert_eq!(heard(), "STOPPING=1");
}

/// What a client saw of an answer when the server was stopped.
fn whole(received: &[u8]) -> bool {
    if received.is_empty() {
        // Not accepted any more.
        return true;
    }
    let Some(response) = parse(received) else { return false };
    if response.status != 200 {
        return response.status == 503;
    }
    if response.header("content-type") == Some("application/json") {
        return response.json()["choices"].is_array();
    }
    let frames = response.frames();
    let Some(last) = frames.last() else { return false };
    last.data == "[DONE]" || serde_json::from_str::<Value>(&last.data).unwrap()["error"].is_object()
}

/// Stops a server while it answers, `rounds` times.
fn stop_under_load(rounds: u64) {
    for round in 0..rounds {
        let server = Server::start(&["--port", "0", "--grace", "1", "--log-level", "off"], &[]);
        let address = server.address;
        let clients: Vec<_> = (0..6)
            .map(|client| {
                std::thread::spawn(move || {
                    // One of them wants more than the grace allows.
                    let body = match client {
                        0 => json!({ "prompt": "The river", "max_tokens": 12_000, "stream": true,
                            "logit_bias": { "1": -100 } }),
                        _ => json!({ "prompt": "The river", "max_tokens": 100 * client,
                            "stream": client % 2 == 0 }),
                    };
                    let body = body.to_string();
                    let mut received = Vec::new();
                    // On a busy machine the server may be gone before this client comes.
                    let Ok(mut stream) = TcpStream::connect(address) else { return received };
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let sent = bytes("POST", "/v1/completions", &[], body.as_bytes());
                    if stream.write_all(&sent).is_ok() {
                        let _ = stream.read_to_end(&mut received);
                    }
                    received
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(30 + 83 * (round % 7)));
        server.signal("TERM");
        for client in clients {
            let received = client.join().unwrap();
            assert!(whole(&received), "round {round}: {}", String::from_utf8_lossy(&received));
        }
        let (code, said) = server.end();
        assert_eq!(code, Some(0), "{said}");
    }
}

#[test]
fn a_stop_under_load_leaves_no_answer_without_an_end() {
    stop_under_load(3);
}

/// Run with `cargo test --release --test server -- --ignored fifty_stops`.
#[test]
#[ignore = "takes minutes"]
fn fifty_stops_under_load_leave_no_answer_without_an_end() {
    stop_under_load(50);
}

/// How long a stream takes to its first text: the middle of several.
fn first_text(address: SocketAddr) -> Duration {
    let text = ask("What is 12 + 30?", true);
    let mut times: Vec<Duration> = (0..15)
        .map(|_| {
            let start = Instant::now();
            let mut stream = connect(address);
            stream.write_all(&bytes("POST", CHAT, &[], &text)).unwrap();
            let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
            let spoken = |received: &[u8]| {
                let text = String::from_utf8_lossy(received);
                // Of reasoning or of the answer; the first frame has an empty one.
                text.split("content\":\"").skip(1).any(|rest| rest.starts_with(|c| c != '"'))
            };
            while !spoken(&received) {
                let count = stream.read(&mut buffer).unwrap();
                assert!(count > 0, "{}", String::from_utf8_lossy(&received));
                received.extend_from_slice(&buffer[..count]);
            }
            let time = start.elapsed();
            stream.read_to_end(&mut received).unwrap();
            assert!(String::from_utf8_lossy(&received).contains("[DONE]"));
            time
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// Run with `ulimit -n 12000; cargo test --release --test server -- --ignored --nocapture
/// ten_thousand_idle`.
#[test]
#[ignore = "needs 12,000 open files, and a machine with nothing else to do to mean something"]
fn a_stream_beside_ten_thousand_idle_connections() {
    const COUNT: usize = 10_000;
    let server = Server::start(&["--port", "0", "--log-level", "error"], &[]);
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).map(str::trim);
        line.and_then(|line| line.split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) / 1000
    };
    // Once, so that all that is made when it is first needed is there.
    first_text(server.address);
    let (mut alone, mut beside, before) = (Vec::new(), Vec::new(), resident());
    let mut full = 0;
    // In turns: other work on the machine comes and goes.
    for _ in 0..3 {
        alone.push(first_text(server.address));
        let held: Vec<_> = (0..COUNT).map(|_| connect(server.address)).collect();
        beside.push(first_text(server.address));
        full = full.max(resident());
        let metrics = request(server.address, "GET", "/metrics", &[], b"");
        let line = metrics.text().lines().find(|line| line.starts_with("ds4_http_connections{"));
        let open: f64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        assert!(open >= COUNT as f64, "{open} connections are left");
        drop(held);
        std::thread::sleep(Duration::from_secs(2));
    }
    println!("first text: alone {alone:.2?}, beside {COUNT} connections {beside:.2?}");
    println!("resident: {before} MB, with them {full} MB, after {} MB", resident());
    alone.sort_unstable();
    beside.sort_unstable();
    // A tenth is wanted; twice as long is no noise of a busy machine any more.
    assert!(beside[1] < 2 * alone[1], "{beside:?} beside, {alone:?} alone");
    assert!(full < before + 300, "{full} MB");
    server.stop();
}

#[test]
fn a_second_signal_does_not_wait() {
    let server = Server::start(&["--port", "0", "--grace", "600"], &[]);
    let body = json!({ "prompt": "The river", "max_tokens": 12_000, "stream": true,
        "logit_bias": { "1": -100 } });
    let mut stream = connect(server.address);
    let sent = bytes("POST", "/v1/completions", &[], body.to_string().as_bytes());
    stream.write_all(&sent).unwrap();
    let mut first = [0; 256];
    // 12,000 tokens: seconds of work, which a server that does not obey would end with code 0.
    assert!(stream.read(&mut first).unwrap() > 0);
    server.signal("INT");
    until("it knows of the first", || server.said().contains("a second signal does not wait"));
    server.signal("TERM");
    let (code, said) = server.end();
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("stopped at once"), "{said}");
}
