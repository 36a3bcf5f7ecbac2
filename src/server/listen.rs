//! The listener: connections in bounded number, and an orderly end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

use super::app::{App, Settings, Stopper};
use super::connection::{Activity, Answered, Doing, Timed};

/// Bytes of a request's header at most.
const HEADER_LIMIT: usize = 64 * 1024;
/// After what still ran was cut off, time for it to say so.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// After the system had no connection left to give.
const BREATH: Duration = Duration::from_millis(50);

/// What a connection beyond the limit is told.
const TURNED_AWAY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/json\r\ncontent-length: 102\r\nretry-after: 2\r\n\
    connection: close\r\n\r\n\
    {\"error\":{\"message\":\"too many connections\",\"type\":\"overloaded_error\",\"param\":null,\
    \"code\":\"overloaded\"}}";

/// Serves until `stop` is ready; then lets what runs come to its end, for as long as the settings'
/// grace, and cuts off what is left. Returns when nothing is left.
///
/// # Errors
/// The listener's address cannot be told.
pub async fn serve(
    listener: TcpListener,
    app: App,
    stopper: Stopper,
    stop: impl std::future::Future<Output = ()>,
) -> io::Result<SocketAddr> {
    let address = listener.local_addr()?;
    let router = app.router();
    let settings = Arc::new(app.0.settings.clone());
    let slots = Arc::new(Semaphore::new(settings.connections));
    // Each connection holds a sender; when all are gone, so are the connections.
    let (alive, mut all_gone) = mpsc::channel::<()>(1);
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(BREATH).await;
                continue;
            }
        };
        match slots.clone().try_acquire_owned() {
            Ok(slot) => {
                let connection = Connection {
                    router: router.clone(),
                    settings: settings.clone(),
                    app: app.clone(),
                    draining: app.0.draining.clone(),
                    _slot: slot,
                    _alive: alive.clone(),
                };
                tokio::spawn(connection.run(stream));
            }
            Err(_) => {
                app.0.metrics.turned_away.inc();
                turn_away(stream);
            }
        }
    }
    drop(listener);
    drop(alive);
    let _ = stopper.draining.send(true);
    let (service, grace) = (app.0.service.clone(), settings.grace);
    // The engine turns away what waits, and keeps what it knows of the rest.
    let engine = tokio::task::spawn_blocking(move || service.stop(grace));
    tracing::info!(grace_seconds = settings.grace.as_secs(), "stopping");
    if timeout(settings.grace, all_gone.recv()).await.is_err() {
        tracing::warn!("cutting off what still runs");
        let _ = stopper.cut.send(true);
        let _ = timeout(LAST_WORDS, all_gone.recv()).await;
    }
    let _ = engine.await;
    Ok(address)
}

/// Says that there are too many, if that can be said at once.
fn turn_away(mut stream: TcpStream) {
    tokio::spawn(async move {
        let _ = timeout(BREATH, stream.write_all(TURNED_AWAY)).await;
    });
}

struct Connection {
    router: Router,
    settings: Arc<Settings>,
    app: App,
    draining: watch::Receiver<bool>,
    _slot: OwnedSemaphorePermit,
    _alive: mpsc::Sender<()>,
}

impl Connection {
    async fn run(mut self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let metrics = &self.app.0.metrics;
        metrics.connections.inc();
        let activity = Activity::new();
        let stream = Timed::new(stream, activity.clone(), self.settings.write_timeout);
        let router = &self.router;
        let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
            activity.set(Doing::Busy);
            let answer = router.clone().oneshot(request.map(Body::new));
            let activity = activity.clone();
            async move { answer.await.map(|answer| answer.map(|b| Answered::new(b, activity))) }
        });
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEADER_LIMIT).pipeline_flush(false);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let mut told = false;
        loop {
            tokio::select! {
                _ = connection.as_mut() => break,
                _ = self.draining.wait_for(|draining| *draining), if !told => {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = activity.expired(self.settings.idle_timeout, self.settings.header_timeout) => {
                    break;
                }
            }
        }
        metrics.connections.dec();
    }
}
