//! The one thread that owns the device, and the handle by which others ask it for answers.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::choose::guarded;
use super::disk::{Disk, Saves};
use super::footprint::Footprint;
use super::generate::Finish;
use super::job::{Attach, Job, Namespace, Update};
use super::reply::Reply;
use super::scheduler::{check_memory, Scheduler, Step};
use super::{Engine, EngineError, Limits, Stats};
use crate::cache::store::Store;
use crate::config::Config;
use crate::size::Size;
use crate::tokenizer::Tokenizer;

/// A time that is as good as none: a year.
const ENDLESS: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often readers that are all behind are looked after.
const CATCH_UP: Duration = Duration::from_millis(2);

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
    /// It can never run: the memory for sequences cannot hold it, even alone.
    #[error(
        "a sequence of {tokens} tokens (prompt and answer) takes {} of memory, and sequences may \
         take {}: shorten the prompt, or ask for fewer tokens",
        Size(*needed as u64),
        Size(*budget as u64)
    )]
    Memory {
        /// Tokens of prompt and answer.
        tokens: usize,
        /// Bytes that they take.
        needed: usize,
        /// Bytes that there are (`--kv-memory-mb`).
        budget: usize,
    },
    /// The service is being stopped.
    #[error("the server is shutting down")]
    Stopping,
}

/// What a [`Job`] tells, until it has ended.
pub type Updates = mpsc::Receiver<Update>;

/// A handle on a running engine; clones share it.
///
/// When the last one is dropped, the engine finishes what it was asked for and ends.
#[derive(Clone)]
pub struct Service {
    desk: Arc<Desk>,
    tokenizer: Arc<Tokenizer>,
    config: Arc<Config>,
    context: usize,
    footprint: Footprint,
    limits: Limits,
    store: Option<Store>,
    saves: Arc<Saves>,
    attach: Arc<OnceLock<Arc<dyn Attach>>>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    _open: Arc<Open>,
}

/// Where jobs are handed in.
#[derive(Default)]
struct Desk {
    inbox: Mutex<Inbox>,
    news: Condvar,
}

#[derive(Default)]
struct Inbox {
    jobs: VecDeque<(Job, Reply)>,
    /// Jobs that were taken out and have not begun.
    waiting: usize,
    stats: Stats,
    /// When to be done, if the service is being stopped.
    stop: Option<Instant>,
    /// No handle is left, or no thread.
    closed: bool,
}

/// Closes the desk when the last handle is dropped.
struct Open(Arc<Desk>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.news.notify_all();
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// Moves the engine to a thread of its own, within the limits that suit its device.
    ///
    /// # Errors
    /// If the system has no thread left, or the device no memory.
    pub fn start(engine: Engine) -> std::io::Result<Self> {
        let limits = Limits::of(engine.model().device());
        Self::start_with(engine, limits)
    }

    /// Moves the engine to a thread of its own.
    ///
    /// # Errors
    /// If the system has no thread left, or the device no memory.
    pub fn start_with(engine: Engine, limits: Limits) -> std::io::Result<Self> {
        Self::launch(engine, limits, None)
    }

    /// The same with a store, from [`open_store`](super::open_store), that remembers what memory
    /// cannot and what is to outlive the process.
    ///
    /// # Errors
    /// If the system has no thread left, or the device no memory.
    pub fn start_with_store(engine: Engine, limits: Limits, store: Store) -> std::io::Result<Self> {
        Self::launch(engine, limits, Some(store))
    }

    fn launch(engine: Engine, limits: Limits, store: Option<Store>) -> std::io::Result<Self> {
        let tokenizer = Arc::new(engine.tokenizer().clone());
        let config = Arc::new(engine.model().config().clone());
        let context = engine.context();
        let footprint = Footprint::new(&engine.model().new_cache().map_err(std::io::Error::other)?);
        let desk = Arc::new(Desk::default());
        let attach = Arc::new(OnceLock::new());
        let disk = store.clone().map(|store| Disk::new(&engine, store, attach.clone()));
        let disk = disk.transpose()?;
        let saves = disk.as_ref().map(Disk::saves).cloned().unwrap_or_default();
        let at_work = Work { engine, limits: limits.clone(), desk: desk.clone() };
        let thread =
            thread::Builder::new().name("engine".to_owned()).spawn(move || at_work.run(disk))?;
        let thread = Arc::new(Mutex::new(Some(thread)));
        let _open = Arc::new(Open(desk.clone()));
        Ok(Self {
            desk,
            tokenizer,
            config,
            context,
            footprint,
            limits,
            store,
            saves,
            attach,
            thread,
            _open,
        })
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

    /// How much may run and wait at a time.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Bytes of memory that another token of a long sequence takes.
    pub fn bytes_per_token(&self) -> usize {
        self.footprint.token()
    }

    /// The store, if there is one.
    pub fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Keeps what `attach` has to say beside states that are written to the store, and gives it
    /// back what is there from earlier. Only the first call counts, and it reads files.
    pub fn attach(&self, attach: Arc<dyn Attach>) {
        let Some(store) = &self.store else { return };
        if self.attach.set(attach.clone()).is_ok() {
            store.attachments(|namespace, bytes| attach.restore(Namespace(*namespace), &bytes));
        }
    }

    /// What is going on, and what was done.
    pub fn stats(&self) -> Stats {
        let inbox = self.desk.lock();
        let waiting = inbox.waiting + inbox.jobs.len();
        // They go on while the engine has nothing to do.
        let (saves, saves_skipped) = (self.saves.done(), self.saves.skipped());
        Stats { waiting, saves, saves_skipped, ..inbox.stats.clone() }
    }

    /// Asks for an answer.
    ///
    /// # Errors
    /// If too many wait already, the job can never fit into memory, or the service is being
    /// stopped.
    pub fn submit(&self, job: Job) -> Result<Updates, Refused> {
        // A prompt that is too long for the context is told so as its job's answer.
        let room = job.max_tokens.min(job.room);
        let tokens = job.prompt.len().saturating_add(room).min(self.context + 1);
        let fits_context = job.prompt.len() < self.context;
        if let (true, Err(EngineError::Memory { tokens, needed, budget })) =
            (fits_context, check_memory(&self.footprint, tokens, self.limits.kv_bytes))
        {
            return Err(Refused::Memory { tokens, needed, budget });
        }
        let mut inbox = self.desk.lock();
        if inbox.closed || inbox.stop.is_some() {
            return Err(Refused::Stopping);
        }
        let waiting = inbox.waiting + inbox.jobs.len();
        if waiting >= self.limits.waiting {
            return Err(Refused::Busy { waiting });
        }
        let (reply, updates) = Reply::channel();
        inbox.jobs.push_back((job, reply));
        drop(inbox);
        self.desk.news.notify_all();
        Ok(updates)
    }

    /// Stops the engine: takes no more jobs and turns away those that wait, gives those that run
    /// so much time to finish, and ends the others with [`Finish::Stopping`]. Returns when the
    /// engine has ended.
    pub fn stop(&self, grace: Duration) {
        let now = Instant::now();
        // A grace that no clock can tell the end of has none.
        let deadline = now.checked_add(grace).unwrap_or(now + ENDLESS);
        let mut inbox = self.desk.lock();
        // Who is more impatient decides.
        inbox.stop = Some(inbox.stop.map_or(deadline, |stop| stop.min(deadline)));
        drop(inbox);
        self.desk.news.notify_all();
        self.wait();
    }

    /// Waits for the thread to end, once all other handles are gone.
    pub fn join(self) {
        let Self { thread, _open, .. } = self;
        drop(_open);
        wait(&thread);
    }

    fn wait(&self) {
        wait(&self.thread);
    }
}

/// Waits for the thread to end; whoever comes second waits for the first.
fn wait(thread: &Mutex<Option<JoinHandle<()>>>) {
    let mut thread = thread.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(thread) = thread.take() {
        // Nobody is left to be told that it panicked; its jobs have been.
        let _ = thread.join();
    }
}

/// What the thread owns.
struct Work {
    engine: Engine,
    limits: Limits,
    desk: Arc<Desk>,
}

impl Work {
    fn run(self, disk: Option<Disk>) {
        // With this thread one of the workers, no step begins or ends with a hand-over. Without
        // such a pool it goes on as a guest of the usual one.
        let workers = rayon::ThreadPoolBuilder::new().use_current_thread().build();
        let stats = self.serve(disk).unwrap_or_default();
        drop(workers);
        let mut inbox = self.desk.lock();
        inbox.closed = true;
        inbox.stats = stats;
        inbox.jobs.clear();
    }

    fn serve(&self, disk: Option<Disk>) -> Result<Stats, EngineError> {
        let scheduler = |disk: Option<Disk>| {
            let scheduler = Scheduler::new(&self.engine, self.limits.clone());
            scheduler.map(|scheduler| scheduler.with_disk(disk))
        };
        let mut jobs = scheduler(disk)?;
        let mut last = Step::Idle;
        loop {
            let stop = self.take_jobs(&mut jobs, last);
            if let Some(deadline) = stop {
                jobs.turn_away();
                if Instant::now() >= deadline {
                    jobs.cut_all(Finish::Stopping);
                }
            }
            if jobs.is_empty() && self.is_over() {
                // With the store go the threads that write what is still to be written.
                drop(jobs.take_disk());
                return Ok(jobs.stats());
            }
            let step = guarded(|| Ok(jobs.step(&self.engine)));
            last = match step {
                Ok(step) => step,
                Err(error) => {
                    // What failed has no one job to blame, and what it left cannot be trusted.
                    tracing::error!(%error, "the engine starts anew; all its jobs fail");
                    jobs.abandon(error);
                    jobs = scheduler(jobs.take_disk())?;
                    Step::Worked
                }
            };
        }
    }

    /// Moves new jobs to the scheduler, after a wait if there is nothing else to do; says by when
    /// all must be done, if the service is being stopped.
    fn take_jobs(&self, jobs: &mut Scheduler, last: Step) -> Option<Instant> {
        let mut inbox = self.desk.lock();
        inbox.stats = jobs.stats();
        inbox.waiting = jobs.waiting();
        let quiet =
            |inbox: &mut Inbox| inbox.jobs.is_empty() && inbox.stop.is_none() && !inbox.closed;
        inbox = match last {
            Step::Worked => inbox,
            Step::Idle => {
                let wait = self.desk.news.wait_while(inbox, quiet);
                wait.unwrap_or_else(PoisonError::into_inner)
            }
            Step::Blocked => {
                let wait = self.desk.news.wait_timeout(inbox, CATCH_UP);
                wait.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        let stop = inbox.stop;
        let new = std::mem::take(&mut inbox.jobs);
        inbox.waiting += new.len();
        drop(inbox);
        for (job, reply) in new {
            jobs.enqueue(&self.engine, job, reply);
        }
        stop
    }

    /// Nobody can ask for more.
    fn is_over(&self) -> bool {
        let inbox = self.desk.lock();
        inbox.jobs.is_empty() && (inbox.closed || inbox.stop.is_some())
    }
}
