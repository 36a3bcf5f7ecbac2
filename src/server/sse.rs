//! Answers as a stream of server-sent events.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{header, HeaderValue};
use axum::response::Response;
use futures_util::{stream, FutureExt};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{interval_at, timeout, Instant, MissedTickBehavior};

use super::app::App;
use super::asking::Answers;
use super::error::{ApiError, Kind};
use super::Event;

/// A comment is sent when nothing else was for this long, so that nobody thinks the connection
/// dead.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Frames that a slow reader may fall behind.
const FRAMES: usize = 64;

/// Encodes events in the words of a dialect.
pub trait Encode: Send + 'static {
    /// An event of one of the answers.
    fn event(&mut self, answer: usize, event: Event, frames: &mut Frames);
    /// There will be nothing more, for this reason.
    fn error(&mut self, error: &ApiError, frames: &mut Frames);
    /// All answers have ended.
    fn close(&mut self, frames: &mut Frames);
}

/// Frames that are to be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frames(String);

impl Frames {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A frame without a name.
    pub fn data(&mut self, data: &Value) {
        // JSON has no line ends outside of escapes, and writing to a string cannot fail.
        let _ = write!(self.0, "data: {data}\n\n");
    }

    /// A frame with a name.
    pub fn event(&mut self, name: &str, data: &Value) {
        let _ = write!(self.0, "event: {name}\ndata: {data}\n\n");
    }

    /// The frame that says that no other follows, in OpenAI's dialects.
    pub fn done(&mut self) {
        self.0.push_str("data: [DONE]\n\n");
    }

    /// The frames as text; none are left.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.0)
    }
}

/// A response that streams the answers.
pub fn respond(app: &App, answers: Answers, encoder: impl Encode) -> Response {
    let (sender, receiver) = mpsc::channel(FRAMES);
    let patience = app.0.settings.write_timeout;
    tokio::spawn(run(answers, encoder, sender, patience));
    let frames = stream::unfold(receiver, |mut receiver| async {
        let frame: Bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(frame), receiver))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    let event_stream = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, event_stream);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Feeds the stream until the answers or the reader have gone.
async fn run(
    answers: Answers,
    mut encoder: impl Encode,
    sender: mpsc::Sender<Bytes>,
    patience: Duration,
) {
    let fed = AssertUnwindSafe(feed(answers, &mut encoder, &sender, patience)).catch_unwind().await;
    if fed.is_err() {
        tracing::error!("a stream's encoder panicked");
        let mut frames = Frames::new();
        let error = ApiError::new(Kind::Server, "the server made a mistake; try again");
        encoder.error(&error, &mut frames);
        let _ = timeout(patience, sender.send(frames.take().into())).await;
    }
}

async fn feed(
    mut answers: Answers,
    encoder: &mut impl Encode,
    sender: &mpsc::Sender<Bytes>,
    patience: Duration,
) {
    let mut keep_alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut frames = Frames::new();
    loop {
        let mut last = false;
        tokio::select! {
            biased;
            // Nobody reads: dropping the answers cancels them.
            () = sender.closed() => return,
            next = answers.next() => match next {
                Some((index, Ok(event))) => {
                    encoder.event(index, event, &mut frames);
                    while let Some((index, event)) = answers.ready() {
                        encoder.event(index, event, &mut frames);
                    }
                }
                Some((_, Err(error))) => {
                    encoder.error(&error, &mut frames);
                    last = true;
                }
                None => {
                    encoder.close(&mut frames);
                    last = true;
                }
            },
            _ = keep_alive.tick() => frames.0.push_str(": keepalive\n\n"),
        }
        let bytes = frames.take();
        if !bytes.is_empty() {
            keep_alive.reset();
            match timeout(patience, sender.send(bytes.into())).await {
                Ok(Ok(())) => {}
                _ => return,
            }
        }
        if last {
            return;
        }
    }
}
