//! What all requests share, and what is decided about each before its handler sees it.

use std::collections::BTreeSet;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{header, Extensions, HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::{from_fn_with_state, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, MethodRouter};
use axum::Router;
use futures_util::FutureExt;
use tokio::sync::{watch, Semaphore};

use super::access::{Access, Keys};
use super::body::UNIT;
use super::metrics::Metrics;
use super::readers::Readers;
use super::trace::Tracer;
use super::{chat, completions, health, messages, models, page, reference, responses, tokenize};
use super::{ApiError, Dialect, Kind, Replay};
use crate::engine::{Namespace, Service};
use crate::guide::Guides;
use crate::prompt::Thinking;

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the model is called.
    pub model: String,
    /// Other names that it answers to; any name will do unless `strict_model`.
    pub aliases: Vec<String>,
    /// A request for another model is refused.
    pub strict_model: bool,
    /// Tokens of an answer at most, if a request does not say.
    pub max_tokens: usize,
    /// Answers to one request at most.
    pub most_answers: usize,
    /// Keys, one of which a request must have if there are any.
    pub keys: Keys,
    /// Trusted names and pages.
    pub access: Access,
    /// Whether `/metrics` needs no key.
    pub public_metrics: bool,
    /// Bytes of a body at most.
    pub body_limit: usize,
    /// Bytes of all bodies together that are being dealt with at most.
    pub body_memory: usize,
    /// Connections at most.
    pub connections: usize,
    /// From the first byte of a request to the last of its header.
    pub header_timeout: Duration,
    /// From there to the last of its body.
    pub body_timeout: Duration,
    /// A connection without a request.
    pub idle_timeout: Duration,
    /// A reader that does not read.
    pub write_timeout: Duration,
    /// From the request to stop until what still runs is cut off.
    pub grace: Duration,
    /// Where to trace requests.
    pub trace: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: "deepseek-v4-flash".to_owned(),
            aliases: Vec::new(),
            strict_model: false,
            // As long as the longest reasoning may get; the context ends most answers before.
            max_tokens: Thinking::MAX_CONTEXT,
            most_answers: 8,
            keys: Keys::default(),
            access: Access::default(),
            public_metrics: false,
            body_limit: 64 << 20,
            body_memory: 256 << 20,
            connections: 16_384,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            trace: None,
        }
    }
}

/// The server without its connections; clones share it.
#[derive(Clone)]
pub struct App(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub service: Service,
    pub settings: Settings,
    pub guides: Guides,
    pub metrics: Metrics,
    pub tracer: Option<Tracer>,
    pub replay: Option<Arc<Replay>>,
    /// Items that clients may refer to.
    pub kept: Arc<responses::Kept>,
    /// When the server started, in seconds since 1970.
    pub created: u64,
    /// Changes with everything that changes answers.
    pub fingerprint: String,
    /// Bytes of the longest token.
    pub longest_token: usize,
    /// Threads that read what clients send.
    pub readers: Readers,
    /// Memory for bodies.
    pub bodies: Arc<Semaphore>,
    /// Whether the server is being stopped.
    pub draining: watch::Receiver<bool>,
    /// Whether what still runs is to be cut off.
    pub cut: watch::Receiver<bool>,
}

/// Stops a server.
#[derive(Debug)]
pub struct Stopper {
    pub(super) draining: watch::Sender<bool>,
    pub(super) cut: watch::Sender<bool>,
}

/// Whose request it is.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The request's id.
    pub request_id: String,
    /// Whose cache may be used.
    pub namespace: Namespace,
    /// Whose shapes errors have.
    pub dialect: Dialect,
}

impl Caller {
    /// As the guard has found out.
    pub(super) fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// The response that says why there is no answer.
    pub fn refuse(&self, error: &ApiError) -> Response {
        error.response(self.dialect, &self.request_id)
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self::of(&parts.extensions))
    }
}

impl App {
    /// A server for this engine.
    ///
    /// # Errors
    /// The trace cannot be opened, or the vocabulary not be indexed.
    pub fn new(
        service: Service,
        settings: Settings,
        replay: Option<Arc<Replay>>,
    ) -> io::Result<(Self, Stopper)> {
        let (draining, is_draining) = watch::channel(false);
        let (cut, is_cut) = watch::channel(false);
        let tokenizer = service.tokenizer();
        let tracer = match &settings.trace {
            Some(file) => Some(Tracer::open(file, Arc::clone(tokenizer))?),
            None => None,
        };
        let ids = 0..tokenizer.vocab_size() as u32;
        let longest_token =
            ids.filter_map(|id| Some(tokenizer.token_bytes(id)?.len())).max().unwrap_or(1);
        let what =
            format!("{} {} {:?}", env!("CARGO_PKG_VERSION"), settings.model, service.config());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let guides = Guides::new(Arc::clone(tokenizer)).map_err(io::Error::other)?;
        let metrics = Metrics::new(&settings.model, &service);
        let inner = Inner {
            guides,
            tracer,
            replay,
            kept: Arc::default(),
            created: now(),
            fingerprint: format!("fp_{}", &blake3::hash(what.as_bytes()).to_hex()[..12]),
            longest_token,
            readers: Readers::new(threads, metrics.readers.clone()),
            metrics,
            bodies: Arc::new(Semaphore::new(
                settings.body_memory.max(settings.body_limit) / UNIT + 1,
            )),
            draining: is_draining,
            cut: is_cut,
            service,
            settings,
        };
        Ok((Self(Arc::new(inner)), Stopper { draining, cut }))
    }

    /// The engine.
    pub fn service(&self) -> &Service {
        &self.0.service
    }

    /// All paths that there are after `/v1`, too.
    pub(super) fn routes(route: &mut Route<'_>) {
        chat::routes(route);
        completions::routes(route);
        messages::routes(route);
        responses::routes(route);
        models::routes(route);
        tokenize::routes(route);
        health::routes(route);
        reference::routes(route);
    }

    /// All paths, with the guard before them.
    pub fn router(&self) -> Router {
        let mut router = Router::new();
        let mut paths = BTreeSet::new();
        let mut route = |path: &str, handler: MethodRouter<Self>| {
            paths.insert(path.to_owned());
            let bare = std::mem::take(&mut router);
            router = bare.route(path, handler.clone()).route(&format!("/v1{path}"), handler);
        };
        Self::routes(&mut route);
        let known: Arc<str> = known(&paths).into();
        paths.insert("/".to_owned());
        router
            .route("/", get(chat_page))
            .fallback(|caller: Caller, request: Request| async move {
                no_such_path(&known, caller, request)
            })
            .method_not_allowed_fallback(no_such_method)
            .layer(from_fn_with_state((self.clone(), Arc::new(paths)), guard))
            .with_state(self.clone())
    }
}

/// Adds a handler under a path, and under the same path after `/v1`.
pub(super) type Route<'r> = dyn FnMut(&str, MethodRouter<App>) + 'r;

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A new id that nobody can guess.
pub(super) fn new_id(prefix: &str) -> String {
    format!("{prefix}{:032x}", rand::random::<u128>())
}

/// The page for people.
async fn chat_page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, page::policy()),
        (header::CACHE_CONTROL, "no-cache"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, page::html()).into_response()
}

/// Says which paths there are; those with a name in them are below others.
fn known(paths: &BTreeSet<String>) -> String {
    let fixed: Vec<&str> = paths.iter().map(String::as_str).filter(|p| !p.contains('{')).collect();
    format!(
        "no such path; the server has / and, with or without /v1 before it, {}",
        fixed.join(", ")
    )
}

fn no_such_path(known: &str, caller: Caller, request: Request) -> Response {
    let message = if request.uri().path().ends_with("/embeddings") {
        "DeepSeek V4 Flash writes text; it makes no embeddings"
    } else {
        known
    };
    caller.refuse(&ApiError::new(Kind::NotFound, message).with_code("unknown_url"))
}

async fn no_such_method(caller: Caller) -> Response {
    let error = ApiError::new(Kind::Method, "this path has other methods");
    caller.refuse(&error.with_code("method_not_allowed"))
}

/// Who asks, whether they may, and what became of it.
async fn guard(
    State((app, paths)): State<(App, Arc<BTreeSet<String>>)>,
    mut request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let inner = &app.0;
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    // What a client makes up as a path is not for logs and metrics.
    let bare = path.strip_prefix("/v1").unwrap_or(&path);
    let route = paths.get(bare).map_or("other", String::as_str);
    let mut caller = Caller {
        request_id: request_id(request.headers()),
        namespace: Namespace::default(),
        dialect: dialect(&path, request.headers()),
    };
    let shared = inner.settings.access.shared_with(request.headers());
    let mut response = match check(inner, &request, &path) {
        Err(error) => caller.refuse(&error),
        Ok(_) if method == Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
        Ok(namespace) => {
            caller.namespace = namespace;
            request.extensions_mut().insert(caller.clone());
            match AssertUnwindSafe(next.run(request)).catch_unwind().await {
                Ok(response) => response,
                Err(_) => {
                    inner.metrics.panics.inc();
                    tracing::error!(request = caller.request_id, "the handler panicked");
                    let message = "the server made a mistake; try again";
                    caller.refuse(&ApiError::new(Kind::Server, message))
                }
            }
        }
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&caller.request_id) {
        headers.insert("request-id", id.clone());
        headers.insert("x-request-id", id);
    }
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    share(headers, shared, method == Method::OPTIONS);
    let status = response.status().as_u16();
    inner.metrics.request(route, method.as_str(), status);
    let error = response.extensions().get::<ApiError>().map(|error| error.code.unwrap_or("error"));
    tracing::info!(
        request = caller.request_id,
        %method,
        path = route,
        status,
        error,
        ms = start.elapsed().as_millis() as u64,
        "request"
    );
    response
}

/// Whose request it is, if it is let in.
fn check(inner: &Inner, request: &Request, path: &str) -> Result<Namespace, ApiError> {
    let (headers, uri) = (request.headers(), request.uri());
    let access = &inner.settings.access;
    access.check_host(headers, uri)?;
    if request.method() == Method::OPTIONS {
        return Ok(Namespace::default());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        access.check_origin(headers, uri)?;
    }
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let public = match path {
        "/" | "/health" | "/docs" | "/openapi.json" | "/favicon.ico" => true,
        "/metrics" => inner.settings.public_metrics,
        _ => false,
    };
    if public {
        return Ok(Namespace::default());
    }
    inner.settings.keys.admit(headers)
}

/// Lets a page of another origin read the response.
fn share(headers: &mut HeaderMap, origin: Option<String>, asked: bool) {
    let Some(origin) = origin.and_then(|origin| HeaderValue::from_str(&origin).ok()) else {
        return;
    };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    let ids = HeaderValue::from_static("x-request-id, request-id");
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, ids);
    if asked {
        let methods = HeaderValue::from_static("GET, POST, OPTIONS");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        let all = HeaderValue::from_static("*, authorization");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, all);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
}

/// The client's own id for the request, if logs can hold it.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match given {
        Some(id) if (1..=64).contains(&id.len()) && id.bytes().all(plain) => id.to_owned(),
        _ => new_id("req_"),
    }
}

fn dialect(path: &str, headers: &HeaderMap) -> Dialect {
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let anthropic = path == "/messages" || path.starts_with("/messages/");
    if anthropic || headers.contains_key("anthropic-version") {
        Dialect::Anthropic
    } else {
        Dialect::OpenAi
    }
}
