//! The way back to whoever asked, which may be slower than the engine, or gone.

use tokio::sync::mpsc::{self, error::TrySendError};

use super::job::Update;
use super::service::Updates;

/// Updates that a reader may fall behind before its sequence pauses.
const UPDATES: usize = 256;
/// Room kept for what must get through however slow the reader is: an update that found no room,
/// and the last word.
const SPARE: usize = 2;

/// One job's end of its channel. Never waits.
pub(super) struct Reply {
    updates: mpsc::Sender<Update>,
    spare: Vec<mpsc::OwnedPermit<Update>>,
    pending: Option<Update>,
}

impl Reply {
    pub fn channel() -> (Self, Updates) {
        let (updates, receiver) = mpsc::channel(UPDATES + SPARE);
        let spare = (0..SPARE).filter_map(|_| updates.clone().try_reserve_owned().ok()).collect();
        (Self { updates, spare, pending: None }, receiver)
    }

    /// Nobody waits for this answer any more.
    pub fn is_gone(&self) -> bool {
        self.updates.is_closed()
    }

    /// The reader has to catch up before it can be told more.
    pub fn is_behind(&mut self) -> bool {
        if let Some(update) = self.pending.take() {
            self.tell(update);
        }
        self.pending.is_some()
    }

    /// Tells it, or keeps it until the reader has caught up; not to be called while it
    /// [is behind](Self::is_behind).
    pub fn tell(&mut self, update: Update) {
        if let Err(TrySendError::Full(update)) = self.updates.try_send(update) {
            self.pending = Some(update);
        }
    }

    /// The last word.
    pub fn end(mut self, update: Update) {
        let last = self.pending.take().into_iter().chain([update]);
        for (permit, update) in self.spare.into_iter().zip(last) {
            permit.send(update);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Chosen;

    fn token(token: u32) -> Update {
        Update::Token(Chosen { token, logprobs: None })
    }

    #[test]
    fn a_slow_reader_loses_nothing_and_the_end_gets_through() {
        let (mut reply, mut updates) = Reply::channel();
        let mut told = 0;
        while !reply.is_behind() {
            reply.tell(token(told));
            told += 1;
        }
        assert_eq!(told as usize, UPDATES + 1);
        assert!(reply.is_behind());
        let prefill = Update::Prefill { cached: 0, done: 0, total: 0 };
        reply.end(prefill);
        let mut heard = 0;
        loop {
            match updates.try_recv() {
                Ok(Update::Token(chosen)) => assert_eq!(chosen.token, heard),
                Ok(Update::Prefill { .. }) => break,
                other => panic!("{other:?}"),
            }
            heard += 1;
        }
        assert_eq!(heard, told);
        assert!(updates.try_recv().is_err());
    }

    #[test]
    fn a_reader_that_catches_up_lets_the_sequence_go_on() {
        let (mut reply, mut updates) = Reply::channel();
        (0..=UPDATES as u32).for_each(|id| reply.tell(token(id)));
        assert!(reply.is_behind() && !reply.is_gone());
        assert!(updates.try_recv().is_ok());
        assert!(!reply.is_behind());
        drop(updates);
        assert!(reply.is_gone());
    }
}
