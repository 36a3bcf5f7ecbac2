//! A hub and its content network on two loopback ports, with faults on demand.
//!
//! It speaks as much of the protocol as a downloader sees: listing, upload times, `resolve` with
//! its redirect and `x-linked-*` headers, ranges and `If-Range`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::wait::until;

pub const REPO: &str = "org/repo";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Connections served at a time; a client that opens more is a defect.
const MAX_CONNECTIONS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Hub,
    Cdn,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub place: Place,
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: BTreeMap<String, String>,
    /// How many requests this place had before.
    pub number: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

#[derive(Clone, Debug)]
pub enum Fault {
    Status(u16, Vec<(&'static str, String)>),
    /// Promises everything, sends so many bytes, hangs up.
    Short(usize),
    /// Sends so many bytes and then none.
    Stall(usize),
    /// The whole file, whatever range was asked for.
    NoRanges,
    /// A 206 for other bytes than those asked for.
    WrongRange,
}

#[derive(Clone)]
pub struct Stored {
    pub bytes: Arc<Vec<u8>>,
    /// What the hub announces, and names the blob.
    pub etag: String,
    pub announced_size: u64,
    /// The same bytes in a file, to be sent without passing through this program.
    pub on_disk: Option<Arc<std::fs::File>>,
    /// What the content network calls it.
    pub cdn_etag: Option<String>,
    pub large: bool,
    pub uploaded: Option<String>,
}

impl Stored {
    pub fn large(bytes: Vec<u8>) -> Self {
        let etag = sha256(&bytes);
        Self {
            cdn_etag: Some(format!("\"cdn-{}\"", &etag[..8])),
            announced_size: bytes.len() as u64,
            etag,
            bytes: Arc::new(bytes),
            large: true,
            uploaded: None,
            on_disk: None,
        }
    }

    pub fn small(bytes: Vec<u8>) -> Self {
        let mut blob = format!("blob {}\0", bytes.len()).into_bytes();
        blob.extend_from_slice(&bytes);
        let etag = hex(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &blob));
        Self { large: false, etag, ..Self::large(bytes) }
    }
}

type Hook = Box<dyn FnMut(&Request, &mut BTreeMap<String, Stored>) -> Option<Fault> + Send>;

pub struct State {
    pub files: Mutex<BTreeMap<String, Stored>>,
    hook: Mutex<Hook>,
    pub log: Mutex<Vec<Request>>,
    /// Bytes of files handed to the system.
    pub sent: AtomicU64,
    /// Pause after each 16 KiB; none at 0.
    pub pause_us: AtomicU64,
    /// How many bytes of files may be handed to the system in all.
    allowed: AtomicU64,
    counts: [AtomicUsize; 2],
    open: AtomicUsize,
    /// Most connections open at a time.
    pub most_open: AtomicUsize,
    over: AtomicBool,
    cdn: SocketAddr,
}

pub struct Server {
    pub state: Arc<State>,
    hub: SocketAddr,
}

impl Server {
    pub fn start(files: impl IntoIterator<Item = (&'static str, Stored)>) -> Self {
        let [hub, cdn] = [0, 0].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
        let state = Arc::new(State {
            files: Mutex::new(files.into_iter().map(|(k, v)| (k.to_string(), v)).collect()),
            hook: Mutex::new(Box::new(|_, _| None)),
            log: Mutex::default(),
            sent: AtomicU64::new(0),
            pause_us: AtomicU64::new(0),
            allowed: AtomicU64::new(u64::MAX),
            counts: Default::default(),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            cdn: cdn.local_addr().unwrap(),
        });
        let address = hub.local_addr().unwrap();
        for (listener, place) in [(hub, Place::Hub), (cdn, Place::Cdn)] {
            let state = state.clone();
            std::thread::spawn(move || state.listen(&listener, place));
        }
        Self { state, hub: address }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.hub)
    }

    /// Called for every request, before it is answered; other requests wait for it, answers that have
    /// begun do not.
    pub fn on_request(
        &self,
        hook: impl FnMut(&Request, &mut BTreeMap<String, Stored>) -> Option<Fault> + Send + 'static,
    ) {
        *self.state.hook.lock().unwrap() = Box::new(hook);
    }

    pub fn log(&self) -> Vec<Request> {
        self.state.log.lock().unwrap().clone()
    }

    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }

    /// Waits until no connection is left: what a client gave up has then been counted.
    pub fn settle(&self) {
        until("a client that is gone gives its connections back", || {
            self.state.open.load(Ordering::SeqCst) == 0
        });
    }

    /// Requests for data.
    pub fn data_requests(&self) -> usize {
        self.log().iter().filter(|r| r.place == Place::Cdn).count()
    }

    /// Bytes that the requests for data asked for, after the first `skip` of them.
    pub fn asked_for(&self, skip: usize) -> u64 {
        let log = self.log();
        let data = log.iter().filter(|r| r.place == Place::Cdn).skip(skip);
        let ranges =
            data.filter_map(|r| r.header("range")?.strip_prefix("bytes=")?.split_once('-'));
        ranges.map(|(a, b)| b.parse::<u64>().unwrap() + 1 - a.parse::<u64>().unwrap()).sum()
    }

    pub fn pause(&self, us: u64) {
        self.state.pause_us.store(us, Ordering::SeqCst);
    }

    /// Sends so many more bytes of files (and at most 16 KiB a connection beyond), and then none until
    /// told again: what must not end yet cannot, however the processes take turns.
    pub fn allow(&self, bytes: u64) {
        self.state.allowed.store(self.sent().saturating_add(bytes), Ordering::SeqCst);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        self.allow(u64::MAX);
        for address in [self.hub, self.state.cdn] {
            let _ = TcpStream::connect(address);
        }
    }
}

impl State {
    fn listen(self: Arc<Self>, listener: &TcpListener, place: Place) {
        for stream in listener.incoming().flatten() {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_open.fetch_max(open, Ordering::SeqCst);
            let state = self.clone();
            std::thread::spawn(move || {
                if open <= MAX_CONNECTIONS {
                    let _ = state.serve(stream, place);
                }
                state.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }

    fn serve(&self, stream: TcpStream, place: Place) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_write_timeout(Some(Duration::from_secs(60)))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(request) = self.read(&mut reader, place)? {
            if !self.answer(&stream, &request)? {
                break;
            }
        }
        Ok(())
    }

    fn read(
        &self,
        reader: &mut BufReader<TcpStream>,
        place: Place,
    ) -> std::io::Result<Option<Request>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        // A client that takes us for its proxy sends the whole address.
        let path = match target.strip_prefix("http://") {
            Some(rest) => &rest[rest.find('/').unwrap_or(rest.len())..],
            None => target,
        };
        let (method, path) = (method.to_string(), path.to_string());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
        }
        let len = headers.get("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
        reader.take(len).read_to_end(&mut Vec::new())?;
        let number = self.counts[place as usize].fetch_add(1, Ordering::SeqCst);
        let request = Request { place, method, path, headers, number };
        self.log.lock().unwrap().push(request.clone());
        Ok(Some(request))
    }

    /// Whether the connection can go on.
    fn answer(&self, stream: &TcpStream, request: &Request) -> std::io::Result<bool> {
        let (fault, files) = {
            let mut files = self.files.lock().unwrap();
            ((self.hook.lock().unwrap())(request, &mut files), files.clone())
        };
        if let Some(Fault::Status(status, headers)) = &fault {
            return self.send(stream, request, *status, headers, b"a page of words", None);
        }
        let path = request.path.split('?').next().unwrap_or_default();
        if request.place == Place::Cdn {
            let Some(file) = path.strip_prefix("/data/").and_then(|name| files.get(name)) else {
                return self.send(stream, request, 404, &[], b"", None);
            };
            return self.send_file(stream, request, file, &[], fault);
        }
        if path == format!("/api/models/{REPO}/revision/main")
            || path == format!("/api/models/{REPO}/revision/{COMMIT}")
        {
            let siblings: Vec<_> = files
                .iter()
                .map(|(name, file)| {
                    let size = file.announced_size;
                    let lfs = file.large.then(|| json!({"sha256": file.etag, "size": size}));
                    json!({"rfilename": name, "size": size, "lfs": lfs})
                })
                .collect();
            let listing = json!({"sha": COMMIT, "siblings": siblings, "gated": false});
            return self.send(stream, request, 200, &[], listing.to_string().as_bytes(), None);
        }
        if path == format!("/api/models/{REPO}/paths-info/{COMMIT}") {
            let infos: Vec<_> = files
                .iter()
                .filter_map(|(name, file)| {
                    let date = file.uploaded.as_ref()?;
                    Some(json!({"path": name, "lastCommit": {"date": date}}))
                })
                .collect();
            return self.send(stream, request, 200, &[], json!(infos).to_string().as_bytes(), None);
        }
        let file = path
            .strip_prefix(&format!("/{REPO}/resolve/"))
            .and_then(|rest| rest.split_once('/'))
            .filter(|(revision, _)| *revision == COMMIT || *revision == "main")
            .and_then(|(_, name)| Some((name, files.get(name)?)));
        let Some((name, file)) = file else {
            let code = if path.contains(REPO) { "EntryNotFound" } else { "RepoNotFound" };
            return self.send(
                stream,
                request,
                404,
                &[("x-error-code", code.to_string())],
                b"",
                None,
            );
        };
        let commit = ("x-repo-commit", COMMIT.to_string());
        if !file.large {
            let etag = ("etag", format!("\"{}\"", file.etag));
            return self.send_file(stream, request, file, &[commit, etag], fault);
        }
        let headers = [
            commit,
            ("x-linked-etag", format!("\"{}\"", file.etag)),
            ("x-linked-size", file.announced_size.to_string()),
            ("location", format!("http://{}/data/{name}?signature=secret", self.cdn)),
        ];
        self.send(stream, request, 302, &headers, b"", None)
    }

    fn send_file(
        &self,
        stream: &TcpStream,
        request: &Request,
        file: &Stored,
        headers: &[(&'static str, String)],
        fault: Option<Fault>,
    ) -> std::io::Result<bool> {
        let mut headers = headers.to_vec();
        if let Some(etag) = file.cdn_etag.as_ref().filter(|_| file.large) {
            headers.push(("etag", etag.clone()));
        }
        let bound = request.header("if-range");
        let same = bound.is_none() || bound == file.cdn_etag.as_deref();
        let range = request
            .header("range")
            .filter(|_| same && !matches!(fault, Some(Fault::NoRanges)))
            .and_then(|range| range.strip_prefix("bytes=")?.split_once('-'))
            .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        let len = file.bytes.len();
        match range {
            Some((first, last)) if first < len => {
                let mut last: usize = Ord::min(last, len - 1);
                if matches!(fault, Some(Fault::WrongRange)) {
                    last = last.saturating_sub(1);
                }
                let first =
                    if matches!(fault, Some(Fault::WrongRange)) { first + 1 } else { first };
                headers.push(("content-range", format!("bytes {first}-{last}/{len}")));
                if let (Some(disk), None) = (&file.on_disk, &fault) {
                    return self.send_disk(stream, 206, &headers, disk, first, last + 1 - first);
                }
                self.send(stream, request, 206, &headers, &file.bytes[first..=last], fault)
            }
            Some(_) => {
                headers.push(("content-range", format!("bytes */{len}")));
                self.send(stream, request, 416, &headers, b"", None)
            }
            None => match (&file.on_disk, &fault) {
                (Some(disk), None) => self.send_disk(stream, 200, &headers, disk, 0, len),
                _ => self.send(stream, request, 200, &headers, &file.bytes, fault),
            },
        }
    }

    /// As a content network does it: from the file to the socket, inside the kernel.
    fn send_disk(
        &self,
        mut stream: &TcpStream,
        status: u16,
        headers: &[(&'static str, String)],
        file: &std::fs::File,
        first: usize,
        len: usize,
    ) -> std::io::Result<bool> {
        let mut head = format!("HTTP/1.1 {status} x\r\ncontent-length: {len}\r\n");
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        stream.write_all((head + "\r\n").as_bytes())?;
        let (mut offset, end) = (first as u64, (first + len) as u64);
        while offset < end {
            let step = (end - offset).min(1 << 20) as usize;
            #[cfg(target_os = "linux")]
            let sent = rustix::fs::sendfile(stream, file, Some(&mut offset), step)?;
            #[cfg(not(target_os = "linux"))]
            let sent = {
                let mut buffer = vec![0; step];
                std::os::unix::fs::FileExt::read_exact_at(file, &mut buffer, offset)?;
                stream.write_all(&buffer)?;
                offset += step as u64;
                step
            };
            self.sent.fetch_add(sent as u64, Ordering::SeqCst);
        }
        Ok(true)
    }

    fn send(
        &self,
        mut stream: &TcpStream,
        request: &Request,
        status: u16,
        headers: &[(&'static str, String)],
        body: &[u8],
        fault: Option<Fault>,
    ) -> std::io::Result<bool> {
        let mut head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        if request.method == "HEAD" {
            return Ok(true);
        }
        let send = match fault {
            Some(Fault::Short(count) | Fault::Stall(count)) => &body[..count.min(body.len())],
            _ => body,
        };
        let pause = self.pause_us.load(Ordering::SeqCst);
        let bounded = self.allowed.load(Ordering::SeqCst) < u64::MAX;
        let step = if pause == 0 && !bounded { 1 << 20 } else { 16 << 10 };
        for part in send.chunks(step) {
            while request.place == Place::Cdn
                && self.sent.load(Ordering::SeqCst) >= self.allowed.load(Ordering::SeqCst)
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            stream.write_all(part)?;
            if request.place == Place::Cdn {
                self.sent.fetch_add(part.len() as u64, Ordering::SeqCst);
            }
            if pause > 0 {
                std::thread::sleep(Duration::from_micros(pause));
            }
        }
        match fault {
            Some(Fault::Stall(_)) => {
                // Until the client gives up, or long enough to tell that it does not.
                let mut byte = [0];
                let _ = stream.read(&mut byte);
                Ok(false)
            }
            Some(Fault::Short(_)) => Ok(false),
            _ => Ok(true),
        }
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes))
}

fn hex(digest: ring::digest::Digest) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that compress and repeat nowhere, the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    use rand::{RngCore, SeedableRng};
    let mut bytes = vec![0; len];
    rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}
