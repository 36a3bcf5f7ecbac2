//! The server's log, on standard error.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt;

use super::args::LogFormat;
use crate::cli::failure::Failure;

/// Writes events from now on.
///
/// # Errors
/// Somebody else does already.
pub fn start(format: LogFormat, level: LevelFilter) -> Result<(), Failure> {
    // What comes from outside is never part of the log but as a checked id; the formats escape
    // control characters besides.
    let builder = fmt()
        .with_writer(std::io::stderr)
        // Whoever reads it may go away; to complain about that there would be a panic.
        .log_internal_errors(false)
        .with_max_level(level)
        .with_target(false);
    let started = match format {
        LogFormat::Text => {
            let styles = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(styles).compact().try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::Run(format!("the log cannot be written: {error}")))
}
