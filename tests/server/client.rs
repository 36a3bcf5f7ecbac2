//! A plain HTTP client that sees every byte, and servers to talk to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;

use candle_ds4::candle::Device;
use candle_ds4::demo::demo_model;
use candle_ds4::engine::{Engine, Limits, Service};
use candle_ds4::gguf::Gguf;
use candle_ds4::server::{serve, App, Replay, Secret, Settings};
use serde_json::Value;
use tokio::runtime::Runtime;

pub use crate::wait::PATIENCE;

pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap())
}

pub fn service() -> &'static Service {
    static SERVICE: OnceLock<Service> = OnceLock::new();
    SERVICE.get_or_init(|| new_service(Limits::of(&Device::Cpu)))
}

pub fn new_service(limits: Limits) -> Service {
    let gguf = Gguf::from_bytes(demo_model()).unwrap();
    let engine = Engine::from_gguf(&gguf, "demo", &Device::Cpu).unwrap();
    Service::start_with(engine, limits).unwrap()
}

/// A server with these settings, for as long as the tests run.
pub fn start(settings: Settings) -> SocketAddr {
    start_on(service(), settings)
}

pub fn start_on(service: &Service, settings: Settings) -> SocketAddr {
    let replay = Replay::new(service.tokenizer().clone(), Secret::random(), 1 << 20);
    let (app, stopper) = App::new(service.clone(), settings, Some(replay.into())).unwrap();
    runtime().block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, app, stopper, std::future::pending()));
        address
    })
}

/// The server with the settings that it has by default.
pub fn server() -> SocketAddr {
    static SERVER: OnceLock<SocketAddr> = OnceLock::new();
    *SERVER.get_or_init(|| start(Settings::default()))
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// The answer to a request that went well.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The frames of a stream.
    pub fn frames(&self) -> Vec<Frame> {
        frames(self.text())
    }
}

/// One frame of a stream of server-sent events.
#[derive(Debug, PartialEq)]
pub struct Frame {
    pub event: Option<String>,
    pub data: String,
}

/// The frames of a stream; comments are dropped, all else must be a frame.
pub fn frames(text: &str) -> Vec<Frame> {
    assert!(text.is_empty() || text.ends_with("\n\n"), "a frame is cut: {text:?}");
    let mut frames = Vec::new();
    for block in text.split("\n\n").filter(|block| !block.is_empty()) {
        let mut frame = Frame { event: None, data: String::new() };
        for line in block.lines() {
            if let Some(data) = line.strip_prefix("data: ") {
                frame.data.push_str(data);
            } else if let Some(event) = line.strip_prefix("event: ") {
                frame.event = Some(event.to_owned());
            } else {
                assert!(line.starts_with(':'), "no frame: {line:?}");
            }
        }
        if !frame.data.is_empty() {
            frames.push(frame);
        }
    }
    frames
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The bytes of a request. Headers that are given replace the usual ones.
pub fn bytes(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    let usual = [("host", "localhost"), ("content-type", "application/json")];
    for (name, value) in usual {
        if !headers.iter().any(|(given, _)| *given == name) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()));
    [head.as_bytes(), body].concat()
}

/// Sends a request and reads the whole response.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let mut stream = connect(address);
    // The server may refuse before it has read all of it.
    let _ = stream.write_all(&bytes(method, path, headers, body));
    read(&mut stream)
}

/// Reads to the end of the connection.
pub fn read(stream: &mut TcpStream) -> Response {
    let mut received = Vec::new();
    let ended = stream.read_to_end(&mut received);
    parse(&received).unwrap_or_else(|| panic!("no response ({ended:?}): {received:?}"))
}

/// A whole response; `None` if it is cut short.
pub fn parse(received: &[u8]) -> Option<Response> {
    let end = received.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&received[..end]).ok()?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let body = &received[end + 4..];
    let chunked =
        headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = if chunked { unchunk(body)? } else { body.to_vec() };
    Some(Response { status, headers, body })
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let length = std::str::from_utf8(&rest[..end]).ok()?;
        let length = usize::from_str_radix(length, 16).ok()?;
        rest = &rest[end + 2..];
        if length == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..length)?);
        rest = rest.get(length + 2..)?;
    }
}

pub fn get(path: &str) -> Response {
    request(server(), "GET", path, &[("content-type", "")], b"")
}

pub fn post(path: &str, body: &Value) -> Response {
    request(server(), "POST", path, &[], body.to_string().as_bytes())
}
