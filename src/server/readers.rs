//! Threads for what takes time to read: so many at a time, whether or not a client still waits.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{ApiError, Kind};

/// The memory that a body may take up, given back with its last clone.
#[derive(Clone, Debug)]
pub struct Memory {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Memory {
    /// What a permit stands for.
    pub fn new(permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: Arc::new(permit) }
    }
}

/// Threads that read.
pub struct Readers {
    turns: Arc<Semaphore>,
    /// How many are at it.
    busy: Gauge,
}

impl Readers {
    /// At most `count` at a time.
    pub fn new(count: usize, busy: Gauge) -> Self {
        Self { turns: Arc::new(Semaphore::new(count)), busy }
    }

    /// What `work` makes of a body that takes up `memory`, once a thread is free for it.
    ///
    /// A client that goes away drops the future, but a thread that has begun goes on. So the thread holds the
    /// turn and the memory itself: else whoever sends and goes, again and again, would have any number at work.
    ///
    /// # Errors
    /// The server stops; the work panicked.
    pub async fn read<T: Send + 'static>(
        &self,
        memory: &Memory,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| stopping())?;
        let (memory, busy) = (memory.clone(), Busy::new(&self.busy));
        let reading = tokio::task::spawn_blocking(move || {
            let _held = (turn, memory, busy);
            work()
        });
        reading.await.map_err(|_| ApiError::new(Kind::Server, "the request cannot be read"))
    }
}

pub(super) fn stopping() -> ApiError {
    ApiError::new(Kind::Overloaded, "the server is shutting down")
}

/// Counts a thread for as long as it is at work.
struct Busy(Gauge);

impl Busy {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_client_that_goes_away_gives_nothing_back_that_is_still_in_use() {
        let (readers, bodies) = (Readers::new(1, Gauge::default()), Arc::new(Semaphore::new(1)));
        let memory = Memory::new(bodies.clone().acquire_owned().await.unwrap());
        let (begin, begun) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let reading = readers.read(&memory, move || {
            begin.send(()).unwrap();
            ended.recv()
        });
        assert!(timeout(Duration::from_millis(20), reading).await.is_err());
        begun.recv().unwrap();
        drop(memory);
        assert_eq!((readers.turns.available_permits(), bodies.available_permits()), (0, 0));
        assert_eq!(readers.busy.get(), 1);

        let patience = Duration::from_secs(60);
        end.send(()).unwrap();
        let _turn = timeout(patience, readers.turns.acquire()).await.unwrap();
        let _memory = timeout(patience, bodies.acquire()).await.unwrap();
    }

    #[tokio::test]
    async fn work_that_panics_gives_its_turn_back() {
        let (readers, bodies) = (Readers::new(1, Gauge::default()), Arc::new(Semaphore::new(1)));
        let memory = Memory::new(bodies.clone().acquire_owned().await.unwrap());
        assert!(readers.read::<()>(&memory, || panic!("as planned")).await.is_err());
        assert_eq!(readers.read(&memory, || 7).await.unwrap(), 7);
        assert_eq!(readers.busy.get(), 0);
    }
}
