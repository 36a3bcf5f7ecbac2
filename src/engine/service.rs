//! The one thread that owns the device, and the handle by which others ask it for answers.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;

use super::job::{Chosen, Job, Update};
use super::{Engine, Progress, Request};
use crate::config::Config;
use crate::tokenizer::Tokenizer;

/// Updates that a slow reader may fall behind.
const UPDATES: usize = 256;
/// Jobs that may wait.
const WAITING: usize = 256;

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Too many are waiting.
    #[error("{waiting} requests are waiting already: try again later")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// The service is being stopped.
    #[error("the server is shutting down")]
    Stopping,
}

/// What a [`Job`] tells, until it has ended.
pub type Updates = mpsc::Receiver<Update>;

/// A handle on a running engine; clones share it.
#[derive(Clone)]
pub struct Service {
    jobs: mpsc::Sender<(Job, mpsc::Sender<Update>)>,
    tokenizer: Arc<Tokenizer>,
    config: Arc<Config>,
    context: usize,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Service {
    /// Moves the engine to a thread of its own.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(engine: Engine) -> std::io::Result<Self> {
        let tokenizer = Arc::new(engine.tokenizer().clone());
        let config = Arc::new(engine.model().config().clone());
        let context = engine.context();
        let (jobs, waiting) = mpsc::channel(WAITING);
        let thread = thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || run(&engine, waiting))?;
        let thread = Arc::new(Mutex::new(Some(thread)));
        Ok(Self { jobs, tokenizer, config, context, thread })
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The numbers that shape the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tokens that a sequence may have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Asks for an answer.
    ///
    /// # Errors
    /// If too many wait already, or the service is being stopped.
    pub fn submit(&self, job: Job) -> Result<Updates, Refused> {
        let (updates, receiver) = mpsc::channel(UPDATES);
        match self.jobs.try_send((job, updates)) {
            Ok(()) => Ok(receiver),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Refused::Busy { waiting: WAITING }),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Refused::Stopping),
        }
    }

    /// Waits for the thread to end, once all other handles are gone.
    pub fn join(self) {
        let Self { jobs, thread, .. } = self;
        drop(jobs);
        let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

fn run(engine: &Engine, mut waiting: mpsc::Receiver<(Job, mpsc::Sender<Update>)>) {
    let Ok(mut sequence) = engine.new_sequence() else { return };
    while let Some((job, updates)) = waiting.blocking_recv() {
        let Job { prompt, sampling, max_tokens, .. } = job;
        let request = Request { prompt, sampling, max_tokens };
        let mut cached = None;
        let outcome = engine.generate(&mut sequence, &request, &mut |progress| {
            let update = match progress {
                Progress::Prefill { done, total } => {
                    let cached = *cached.get_or_insert(done);
                    Update::Prefill { cached, done, total }
                }
                Progress::Token(token) => Update::Token(Chosen { token, logprobs: None }),
            };
            match updates.blocking_send(update) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        let last = match outcome {
            Ok(outcome) => Update::End(outcome),
            Err(error) => Update::Failed(Arc::new(error)),
        };
        let _ = updates.blocking_send(last);
    }
}
