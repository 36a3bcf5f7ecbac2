//! The command line: what was typed (`args`), what it means (`options`), and the doing.
//!
//! Exit codes: 0 done, 1 failed while running, 2 bad usage or input, 130 interrupted. Every
//! failing exit says on standard error what, where, why, and what to do.

mod args;
pub mod bench;
mod block;
mod cache;
mod chat;
mod command;
pub mod connect;
pub mod doctor;
mod failure;
pub mod imatrix;
mod inline;
pub mod inspect;
mod interrupt;
pub mod list;
pub mod logits;
mod markdown;
mod meter;
mod model_path;
mod numbers;
mod options;
pub mod perplexity;
mod place;
mod progress;
pub mod pull;
pub mod quantize;
mod repl;
pub mod rm;
pub mod serve;
mod session;
mod stats;
pub mod synth;
mod terminal;
mod transcript;
mod transfer;
mod view;
mod wrap;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use candle_core::Device;

use args::Args;
use failure::Failure;
use options::Work;

/// Runs a command line, the program's name first, and returns the program's exit code.
pub fn main(line: impl IntoIterator<Item = OsString>) -> ExitCode {
    match run(line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(line: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let args = match Args::read(line) {
        Ok(args) => args,
        Err(told) => return help_or_mistake(&told),
    };
    let work = Work::resolve(args)?;
    // Inside the pool: ops that share their work would else wait each time for a core to wake up.
    rayon::scope(|_| perform(work))
}

fn perform(work: Work) -> Result<(), Failure> {
    match work {
        Work::Pull { name, options } => {
            match pull::run(&name, options, &mut io::stdout().lock()).map_err(input)? {
                0 => Ok(()),
                _ => Err(Failure::Interrupted),
            }
        }
        Work::PullList { name, json } => {
            pull::list(name.as_deref(), json, &mut io::stdout().lock()).map_err(input)
        }
        Work::List { json } => list::run(json, &mut io::stdout().lock()).map_err(input),
        Work::Remove(name) => rm::run(&name, &mut io::stdout().lock()).map_err(input),
        Work::Doctor { json } => match doctor::run(json, &mut io::stdout().lock()) {
            Ok(0) => Ok(()),
            Ok(_) => Err(Failure::Run("no published model fits this machine".to_owned())),
            Err(error) => Err(input(error)),
        },
        Work::Connect(connect) => connect::run(&connect, &mut io::stdout().lock()).map_err(input),
        Work::Inspect { file, json } => inspect(&file, json),
        Work::Logits { model, tokens, chunks, output } => {
            let model = session::open_model(&model, &Device::Cpu)?;
            logits::run(&model, &tokens, &chunks, &output).map_err(input)
        }
        Work::Perplexity { model, file, ctx, json } => {
            let engine = session::open_engine(&model, &Device::Cpu)?;
            let mut out = io::stdout().lock();
            perplexity::run(&engine, &file, ctx, json, &mut |_, _| {}, &mut out).map_err(input)
        }
        Work::Quantize(what) => {
            let quantize = quantize::Quantize {
                input: &what.input,
                output: what.output.as_deref(),
                recipe: &what.recipe,
                layer_types: &what.layer_type,
                imatrix: what.imatrix.as_deref(),
                dry_run: what.dry_run,
                terminal: io::stderr().is_terminal(),
            };
            quantize::run(&quantize, &mut io::stdout().lock()).map_err(input)
        }
        Work::Imatrix { model, file, output, ctx } => {
            let terminal = io::stderr().is_terminal();
            let window = ctx.unwrap_or(imatrix::WINDOW_TOKENS);
            imatrix::run(&model, &file, &output, window, terminal, &mut io::stdout().lock())
                .map_err(input)
        }
        Work::Cache(what) => match cache::run(&what, &mut io::stdout().lock()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::Run("the KV store is damaged".to_owned())),
            Err(error) => Err(input(error)),
        },
        Work::Synth(what) => synth::run(
            &what.recipe,
            what.output.as_deref(),
            what.distinct_layers,
            what.dry_run,
            io::stderr().is_terminal(),
            &mut io::stdout().lock(),
        )
        .map_err(input),
        Work::Bench { model, device, bench } => {
            let began = std::time::Instant::now();
            let engine = session::open_engine(&model, &device)?;
            terminal::note(&format!("loaded in {:.2} s", began.elapsed().as_secs_f64()));
            bench.run(&engine, &mut io::stdout().lock(), &mut terminal::note).map_err(input)
        }
        Work::DumpTokens(prompt, options) => chat::dump_tokens(prompt, &options),
        Work::Answer(prompt, options) => {
            interrupt::listen(options.terminal.stderr && options.terminal.styles)?;
            chat::answer(prompt, &options)
        }
        Work::Chat(options) => {
            interrupt::listen(options.terminal.stderr && options.terminal.styles)?;
            repl::run(&options)
        }
    }
}

/// Clap has only messages: help and version are answers, the rest is a mistake.
fn help_or_mistake(told: &clap::Error) -> Result<(), Failure> {
    let text = told.render().to_string();
    if told.use_stderr() {
        let text = text.trim_end();
        return Err(Failure::Input(text.strip_prefix("error: ").unwrap_or(text).to_owned()));
    }
    write!(io::stdout(), "{text}").map_err(Failure::output)
}

fn inspect(file: &std::path::Path, json: bool) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    inspect::run(file, json, &mut out).map_err(input)
}

/// What a command says about its input; an I/O error without context is standard output's.
fn input(error: anyhow::Error) -> Failure {
    match error.downcast::<io::Error>() {
        Ok(error) => Failure::output(error),
        Err(error) => Failure::Input(format!("{error:#}")),
    }
}
