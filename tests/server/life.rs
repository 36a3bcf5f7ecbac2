//! Clients that go away, say nothing, or come in crowds.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use candle_ds4::candle::Device;
use candle_ds4::engine::Limits;
use candle_ds4::server::Settings;
use serde_json::{json, Value};

use crate::client::{bytes, connect, new_service, request, start, start_on};
use crate::wait;

/// A request whose answer does not end by itself for a long time.
fn endless(stream: bool) -> Vec<u8> {
    let eos = crate::client::service().tokenizer().control().eos;
    let body = json!({ "prompt": "The river", "max_tokens": 12_000, "stream": stream,
        "logit_bias": { (eos.to_string()): -100 } });
    bytes("POST", "/v1/completions", &[], body.to_string().as_bytes())
}

const RUNNING: &str = "vllm:num_requests_running";

/// A number of the server, by the start of its line and a label that the line must have.
fn number(address: SocketAddr, what: &str, label: &str) -> Option<f64> {
    let metrics = request(address, "GET", "/metrics", &[], b"");
    let mut lines = metrics.text().lines();
    // Labels come in the order that the registry has.
    lines
        .find(|line| line.starts_with(what) && line.contains(label))?
        .rsplit(' ')
        .next()?
        .parse()
        .ok()
}

/// Waits until a number of the server is what it should become.
fn until(address: SocketAddr, what: &str, wanted: impl Fn(f64) -> bool) {
    wait::until(what, || number(address, what, "").is_some_and(&wanted));
}

/// Waits until so many answers were broken off on a server of its own.
fn until_aborted(address: SocketAddr, count: f64) {
    wait::until("answers are broken off", || {
        number(address, "vllm:request_success_total", "\"abort\"").is_some_and(|n| n >= count)
    });
}

#[test]
fn an_answer_stops_when_its_reader_goes_away() {
    // A service of its own: nobody else's answers are among its numbers.
    let address = start_on(&new_service(Limits::of(&Device::Cpu)), Settings::default());
    for (round, stream) in [true, false].into_iter().enumerate() {
        until(address, RUNNING, |running| running == 0.0);
        let mut connection = connect(address);
        connection.write_all(&endless(stream)).unwrap();
        if stream {
            let mut first = [0; 512];
            assert!(connection.read(&mut first).unwrap() > 0);
        } else {
            // Nothing comes before the end: the answer is known to run by its numbers alone.
            until(address, RUNNING, |running| running == 1.0);
        }
        drop(connection);
        until_aborted(address, (round + 1) as f64);
    }
}

#[test]
fn a_client_that_does_not_say_what_it_wants_is_let_go() {
    let address = start(Settings {
        header_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(600),
        ..Settings::default()
    });
    for sent in ["", "GET /health HT", "GET /health HTTP/1.1\r\nhost: localhost\r\nx-a: "] {
        let mut stream = connect(address);
        // On a busy machine the server may lose its patience before.
        let _ = stream.write_all(sent.as_bytes());
        let mut rest = Vec::new();
        // It ends, with an error or without.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 4"), "{rest:?}");
    }
    // This one must say all of its header in time, so it has time for that.
    let body_timeout = Duration::from_millis(300);
    let mut stream = connect(start(Settings { body_timeout, ..Settings::default() }));
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
        content-type: application/json\r\ncontent-length: 1000\r\n\r\n{\"messages\": ";
    stream.write_all(head.as_bytes()).unwrap();
    let response = crate::client::read(&mut stream);
    assert_eq!(response.status, 408, "{response:?}");
}

#[test]
fn headers_without_end_are_cut_short() {
    let address = crate::client::server();
    let mut stream = connect(address);
    let line = format!("x-{}: y\r\n", "z".repeat(1000));
    let _ = stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n");
    for _ in 0..1000 {
        if stream.write_all(line.as_bytes()).is_err() {
            break;
        }
    }
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(
        rest.is_empty() || rest.starts_with(b"HTTP/1.1 4"),
        "{}",
        String::from_utf8_lossy(&rest)
    );
    assert_eq!(crate::client::get("/health").status, 200);
}

#[test]
fn connections_beyond_the_limit_are_turned_away() {
    let address = start(Settings { connections: 2, ..Settings::default() });
    // Who comes first is let in first.
    let held: Vec<TcpStream> = (0..2).map(|_| connect(address)).collect();
    let response = request(address, "GET", "/health", &[], b"");
    assert_eq!((response.status, response.header("retry-after")), (503, Some("2")));
    crate::shapes::check(&crate::shapes::error(), &response.json());
    drop(held);
    until(address, "ds4_http_turned_away_total", |count| count >= 1.0);
}

#[test]
fn a_connection_is_used_for_many_requests() {
    let mut stream = connect(crate::client::server());
    for _ in 0..3 {
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut received = Vec::new();
        while !received.ends_with(b"}") {
            let mut buffer = [0; 1024];
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "closed after {}", String::from_utf8_lossy(&received));
            received.extend_from_slice(&buffer[..count]);
        }
    }
}

#[test]
fn idle_connections_do_no_harm() {
    let count = 200;
    let address = start(Settings { connections: count + 100, ..Settings::default() });
    let held: Vec<TcpStream> = (0..count).map(|_| connect(address)).collect();
    let body = json!({ "messages": [{ "role": "user", "content": "What is 12 + 30?" }] });
    let first = |address| {
        let start = Instant::now();
        let mut stream = connect(address);
        let mut body = body.clone();
        body["stream"] = true.into();
        let sent = bytes("POST", "/v1/chat/completions", &[], body.to_string().as_bytes());
        stream.write_all(&sent).unwrap();
        let mut buffer = [0; 256];
        assert!(stream.read(&mut buffer).unwrap() > 0);
        start.elapsed()
    };
    let beside: Duration = (0..10).map(|_| first(address)).min().unwrap();
    let alone: Duration = (0..10).map(|_| first(crate::client::server())).min().unwrap();
    println!("first bytes: {beside:?} beside {count} idle connections, {alone:?} alone");
    let open = number(address, "ds4_http_connections", "").unwrap();
    assert!(open >= count as f64, "{open} connections of {count} are left");
    drop(held);
}

/// A text that nobody waits for is read to its end all the same, and counts until then.
#[test]
fn clients_that_send_much_and_go_do_not_add_up() {
    let address = start(Settings::default());
    let body = json!({ "content": "The river ran on. ".repeat(200_000) }).to_string();
    let sent = bytes("POST", "/tokenize", &[], body.as_bytes());
    let reading = || number(address, "ds4_http_readers", "").unwrap_or(0.0);
    let mut most: f64 = 0.0;
    for _ in 0..16 {
        let mut stream = connect(address);
        stream.write_all(&sent).unwrap();
        // The first is there before anybody goes.
        wait::until("a text is read", || most > 0.0 || reading() > 0.0);
        drop(stream);
        most = most.max(reading());
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    assert!(most <= threads, "{most} texts were read at a time by {threads} threads");
    until(address, "ds4_http_readers", |reading| reading == 0.0);
}

/// Resident memory of this process in kilobytes; 0 where the system does not tell.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
}

/// Bytes for sequences in [`abort`]: what is kept of broken answers fills them soon.
const KEPT: usize = 64 << 20;
/// Requests that may be broken off until they do.
const MOST_TO_FILL: usize = 20_000;

/// Resident memory after each eighth of so many requests that nobody waits for; if wanted, what is kept
/// of such ones has reached its limit before.
fn abort(fill: bool, cycles: usize) -> Vec<u64> {
    let limits = Limits { kv_bytes: KEPT, ..Limits::of(&Device::Cpu) };
    let service = new_service(limits);
    let address = start_on(&service, Settings::default());
    let mut memory = Vec::new();
    let one = |cycle: usize| {
        let mut stream = connect(address);
        stream.write_all(&endless(cycle.is_multiple_of(2))).unwrap();
        if cycle % 4 < 2 {
            // Some go before they are answered, some in the middle.
            std::thread::sleep(Duration::from_millis((cycle % 7) as u64));
        }
        drop(stream);
        if cycle.is_multiple_of(50) {
            until(address, RUNNING, |running| running < 8.0);
        }
    };
    let full = || service.stats().kept_bytes > KEPT - KEPT / 16;
    (1..=MOST_TO_FILL).take_while(|_| fill && !full()).for_each(one);
    for cycle in 1..=cycles {
        one(cycle);
        if cycle.is_multiple_of((cycles / 8).max(1)) {
            until(address, "ds4_http_connections", |open| open <= 1.0);
            until(address, RUNNING, |running| running == 0.0);
            memory.push(resident());
        }
    }
    wait::until("nothing is left of the last ones", || {
        let stats = service.stats();
        stats.running + stats.waiting == 0 && stats.reserved_bytes == 0
    });
    let health: Value = request(address, "GET", "/health", &[], b"").ok();
    assert_eq!(health["status"], "ok");
    let stats = service.stats();
    assert!(stats.kept_bytes <= KEPT, "{stats:?}");
    memory
}

#[test]
fn clients_that_connect_and_go_leave_nothing_behind() {
    abort(false, 60);
}

/// Run with `cargo test --release --test server -- --ignored --nocapture thousands_of_clients`;
/// `DS4_ABORTS` says how many.
#[test]
#[ignore = "takes minutes; wants to be the only test that runs"]
fn thousands_of_clients_that_connect_and_go_leave_no_memory_behind() {
    let cycles = std::env::var("DS4_ABORTS").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    let memory = abort(true, cycles);
    println!("resident after each eighth of {cycles} cycles, in kB: {memory:?}");
    let (start, end) = (memory[0], memory[7]);
    assert!(end < start + start / 50, "{start} kB grew to {end} kB");
}
