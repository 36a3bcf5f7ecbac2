//! Ctrl-C: the first one stops the answer, the second one the program.

use std::sync::atomic::{AtomicU8, Ordering};

use super::failure::Failure;
use super::terminal::{note, tell, RESET};

/// Nothing runs that could be stopped alone: Ctrl-C ends the program.
const IDLE: u8 = 0;
/// An answer is being written.
const ANSWERING: u8 = 1;
/// The answer is to stop.
const STOPPING: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// Listens to the signal from now on. `styles` says whether the terminal may be left in one.
///
/// # Errors
/// The system refuses.
pub fn listen(styles: bool) -> Result<(), Failure> {
    ctrlc::set_handler(move || {
        let stop = STATE.compare_exchange(ANSWERING, STOPPING, Ordering::SeqCst, Ordering::SeqCst);
        if stop.is_err() {
            note(if styles { RESET } else { "" });
            tell("interrupted");
            std::process::exit(i32::from(Failure::Interrupted.code()));
        }
    })
    .map_err(|error| Failure::Run(format!("cannot listen to Ctrl-C: {error}; try again")))
}

/// While this lives, Ctrl-C asks the answer to stop.
pub struct Answering(());

impl Answering {
    /// An answer begins.
    pub fn begin() -> Self {
        STATE.store(ANSWERING, Ordering::SeqCst);
        Self(())
    }

    /// Whether it is to stop.
    pub fn stopped(&self) -> bool {
        STATE.load(Ordering::SeqCst) == STOPPING
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        STATE.store(IDLE, Ordering::SeqCst);
    }
}
