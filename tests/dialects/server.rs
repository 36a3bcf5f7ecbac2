//! A server without its connections, and what its answers must look like.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::Router;
use candle_ds4::candle::Device;
use candle_ds4::engine::{Engine, Limits, Service};
use candle_ds4::server::{App, Replay, Secret, Settings, REPLAY_BYTES};
use jsonschema::Validator;
use serde_json::{json, Value};
use tower::ServiceExt;

pub fn service() -> &'static Service {
    static SERVICE: OnceLock<Service> = OnceLock::new();
    SERVICE.get_or_init(|| {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny/tiny.gguf");
        let engine = Engine::load(file, &Device::Cpu).unwrap();
        Service::start_with(engine, Limits::of(&Device::Cpu)).unwrap()
    })
}

/// A server without its connections.
pub struct Server {
    router: Router,
    runtime: tokio::runtime::Runtime,
    pub key: &'static str,
}

/// A response that is not a stream.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub body: Value,
}

impl Server {
    pub fn new() -> Self {
        Self::with(Settings::default())
    }

    pub fn with(settings: Settings) -> Self {
        let tokenizer = Arc::clone(service().tokenizer());
        let replay = Arc::new(Replay::new(tokenizer, Secret::random(), REPLAY_BYTES));
        Self::of(service(), replay, settings)
    }

    pub fn of(service: &Service, replay: Arc<Replay>, settings: Settings) -> Self {
        let (app, stopper) = App::new(service.clone(), settings, Some(replay)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Dropping it would stop the server.
        std::mem::forget(stopper);
        Self { router: app.router(), runtime, key: "a-key" }
    }

    fn send(&self, path: &str, body: &Value) -> (StatusCode, String) {
        let key = if path.contains("messages") { "x-api-key" } else { "authorization" };
        let bearer = format!("Bearer {}", self.key);
        let request = Request::post(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .header(key, if key == "x-api-key" { self.key } else { &bearer })
            .body(Body::from(body.to_string()))
            .unwrap();
        self.text(request)
    }

    /// The status and body of a response.
    fn text(&self, request: Request<Body>) -> (StatusCode, String) {
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.unwrap();
            let status = response.status();
            let bytes = axum::body::to_bytes(response.into_body(), 1 << 24).await.unwrap();
            (status, String::from_utf8(bytes.to_vec()).unwrap())
        })
    }

    pub fn metrics(&self) -> String {
        let request = Request::get("/metrics").header("host", "localhost");
        let request = request.header("x-api-key", self.key).body(Body::empty()).unwrap();
        self.text(request).1
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        let (status, text) = self.send(path, body);
        Reply { status, body: serde_json::from_str(&text).unwrap() }
    }

    /// A response, which must be one, and have the shape that is documented.
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
        check_shape(path, "application/json", &reply.body);
        reply.body
    }

    /// The frames of a stream.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let (status, text) = self.send(path, &body);
        assert_eq!(status, StatusCode::OK, "{text}");
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let data = data.filter(|data| *data != "[DONE]");
        let frames: Vec<Value> = data.map(|data| serde_json::from_str(data).unwrap()).collect();
        frames.iter().for_each(|frame| check_shape(path, "text/event-stream", frame));
        frames
    }
}

fn documented() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        serde_json::from_str(include_str!("../../src/server/reference/openapi.json")).unwrap()
    })
}

/// Holds an answer against `/openapi.json`.
fn check_shape(path: &str, kind: &str, answer: &Value) {
    static SHAPES: Mutex<BTreeMap<String, Arc<Validator>>> = Mutex::new(BTreeMap::new());
    let path = path.split('?').next().unwrap();
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let content = &documented()["paths"][path]["post"]["responses"]["200"]["content"][kind];
    let name = content["schema"]["$ref"].as_str().unwrap().to_owned();
    let shape = Arc::clone(SHAPES.lock().unwrap().entry(name.clone()).or_insert_with(|| {
        let components = &documented()["components"];
        let schema = json!({ "$ref": name, "components": components });
        Arc::new(jsonschema::validator_for(&schema).unwrap())
    }));
    let faults: Vec<String> = shape
        .iter_errors(answer)
        .map(|fault| format!("{} {fault}", fault.instance_path()))
        .collect();
    assert!(faults.is_empty(), "{name}: {faults:?} in {answer}");
}

/// A cache of its own for a test.
pub fn salt(name: &str) -> Value {
    format!("{name} {}", std::process::id()).into()
}
