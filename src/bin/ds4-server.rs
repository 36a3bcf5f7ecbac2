//! `ds4-server`: DeepSeek V4 over HTTP.

use std::process::ExitCode;

fn main() -> ExitCode {
    candle_ds4::cli::serve::main(std::env::args_os())
}
