//! `ds4`: DeepSeek V4 on the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    candle_ds4::cli::main(std::env::args_os())
}
