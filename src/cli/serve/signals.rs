//! Signals that stop the server: the first in good order, the second at once.

use std::future::Future;
use std::io;

use crate::cli::failure::Failure;
use crate::cli::terminal::tell;

/// Ready at the first SIGTERM or Ctrl-C; a second one ends the program.
///
/// # Errors
/// The system refuses to tell of signals.
#[cfg(unix)]
pub fn listen() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{signal, SignalKind};

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tell("stopping: running answers may finish (a second signal does not wait)");
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tell("stopped at once");
            std::process::exit(i32::from(Failure::Interrupted.code()));
        });
    })
}

/// Ready at the first Ctrl-C; a second one ends the program.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn listen() -> io::Result<impl Future<Output = ()>> {
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        tell("stopping: running answers may finish (a second Ctrl-C does not wait)");
        tokio::spawn(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(i32::from(Failure::Interrupted.code()));
            }
        });
    })
}
