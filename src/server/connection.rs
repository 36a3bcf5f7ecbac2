//! One connection: what it is doing, how long it may, and bytes that must move.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{ready, Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep_until, Instant, Sleep};

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Nothing.
    Idle,
    /// Sending the header of a request.
    Header,
    /// Being answered.
    Busy,
}

/// What a connection is doing, and since when; clones share it.
#[derive(Clone, Debug)]
pub struct Activity {
    state: Arc<Mutex<(Doing, Instant)>>,
    changed: Arc<Notify>,
}

impl Activity {
    /// A connection that has done nothing yet.
    pub fn new() -> Self {
        let state = Arc::new(Mutex::new((Doing::Idle, Instant::now())));
        Self { state, changed: Arc::new(Notify::new()) }
    }

    /// The connection does this from now on.
    pub fn set(&self, doing: Doing) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (doing, Instant::now());
        self.changed.notify_one();
    }

    fn get(&self) -> (Doing, Instant) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready once the connection has been doing the same for too long.
    pub async fn expired(&self, idle: Duration, header: Duration) {
        loop {
            let (doing, since) = self.get();
            let deadline = match doing {
                Doing::Idle => since + idle,
                Doing::Header => since + header,
                Doing::Busy => {
                    self.changed.notified().await;
                    continue;
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(deadline) => if self.get() == (doing, since) {
                    return;
                }
            }
        }
    }
}

/// A stream that notes when a request begins, and fails when its reader does not read.
pub struct Timed {
    stream: TcpStream,
    activity: Activity,
    write_timeout: Duration,
    /// When the reader's patience with itself ends, while bytes wait.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    /// A stream of which nothing was read yet.
    pub fn new(stream: TcpStream, activity: Activity, write_timeout: Duration) -> Self {
        Self { stream, activity, write_timeout, stuck: None }
    }

    /// What became of a write.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let deadline = Instant::now() + self.write_timeout;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        ready!(stuck.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Timed {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before && this.activity.get().0 == Doing::Idle {
            this.activity.set(Doing::Header);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Timed {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.watch(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// The body of a response: when it is gone, the connection is idle.
pub struct Answered {
    body: Body,
    activity: Activity,
}

impl Answered {
    /// This body, on a connection that does this.
    pub fn new(body: Body, activity: Activity) -> Self {
        Self { body, activity }
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.activity.set(Doing::Idle);
    }
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
