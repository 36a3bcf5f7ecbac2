//! `ds4-server`: the command line of the HTTP server.

mod args;
mod log;
mod options;
mod signals;
mod supervisor;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::failure::Failure;
use super::terminal::{self, tell};
use super::{help_or_mistake, session};
use crate::engine::{open_store, Engine, Limits, Service};
use crate::server::{serve, App, Replay, Secret, REPLAY_BYTES};
pub(in crate::cli) use args::ServeArgs;
use options::{Kept, Options};

/// Threads that speak HTTP; the others compute.
const HTTP_THREADS: usize = 2;
/// For tasks that still run when the last connection is gone.
const LAST_TASKS: Duration = Duration::from_secs(2);

/// Runs a command line, the program's name first, and returns the program's exit code.
pub fn main(line: impl IntoIterator<Item = OsString>) -> ExitCode {
    terminal::set_program("ds4-server");
    match run(line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(line: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let args = match ServeArgs::read(line) {
        Ok(args) => args,
        Err(told) => return help_or_mistake(&told),
    };
    let options = Options::resolve(&args)?;
    log::start(options.log.0, options.log.1)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(|error| Failure::Run(format!("threads cannot be had: {error}")))?;
    // First the port: who has given a wrong one need not wait for a model.
    let listener = runtime.block_on(bind(&options))?;
    let service = service(&options)?;
    let replay = replay(&options, &service)?;
    let (app, stopper) = App::new(service.clone(), options.settings.clone(), replay)
        .map_err(|error| Failure::Input(error.to_string()))?;
    announce(&options, &listener, &service)?;
    let served = runtime.block_on(async {
        let stop = signals::listen()?;
        supervisor::notify(supervisor::READY);
        let stop = async {
            stop.await;
            supervisor::notify(supervisor::STOPPING);
        };
        serve(listener, app, stopper, stop).await
    });
    runtime.shutdown_timeout(LAST_TASKS);
    service.join();
    served.map_err(|error| Failure::Run(format!("the server cannot go on: {error}")))?;
    tell("stopped");
    Ok(())
}

/// Loads the model, and finds what is kept of earlier prompts.
fn service(options: &Options) -> Result<Service, Failure> {
    let name = options.model.name();
    let gguf = session::open(&options.model)?;
    let mut engine = Engine::from_gguf(&gguf, &name, &options.device)
        .map_err(|error| Failure::load(&name, &error))?;
    engine.set_context(options.context);
    let mut limits = Limits::of(&options.device);
    options.limit(&mut limits);
    let started = match &options.store {
        None => Service::start_with(engine, limits),
        Some(Kept { folder, budget, asked_for }) => {
            match open_store(&gguf, &engine, folder, *budget) {
                Ok(store) => Service::start_with_store(engine, limits, store),
                Err(error) if *asked_for => {
                    let (folder, error) = (folder.display().to_string(), error.to_string());
                    let named = error.starts_with(&folder);
                    return Err(Failure::Input(match named {
                        true => format!("--kv-disk-dir: {error}"),
                        false => format!("--kv-disk-dir {folder}: {error}"),
                    }));
                }
                Err(error) => {
                    tell(&format!("prompts are forgotten when the server stops: {error}"));
                    Service::start_with(engine, limits)
                }
            }
        }
    };
    started.map_err(|error| {
        Failure::Run(format!("the engine cannot be started: {error}; try a smaller --ctx"))
    })
}

/// What remembers answers. With a folder for states its key stays the same, since what it has
/// sealed comes back with them.
fn replay(options: &Options, service: &Service) -> Result<Option<Arc<Replay>>, Failure> {
    if !options.replay {
        return Ok(None);
    }
    let asked_for = options.store.as_ref().is_some_and(|kept| kept.asked_for);
    let secret = match service.store().map(|store| store.path().join("replay.key")) {
        None => Secret::random(),
        Some(file) => match Secret::from_file(&file) {
            Ok(secret) => secret,
            Err(error) if asked_for => return Err(Failure::Input(error.to_string())),
            Err(error) => {
                tell(&format!("answers are forgotten when the server stops: {error}"));
                Secret::random()
            }
        },
    };
    let replay = Arc::new(Replay::new(Arc::clone(service.tokenizer()), secret, REPLAY_BYTES));
    service.attach(replay.clone());
    Ok(Some(replay))
}

async fn bind(options: &Options) -> Result<TcpListener, Failure> {
    let address = options.address;
    TcpListener::bind(address).await.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program listens there; stop it, or choose another port with --port"
            }
            io::ErrorKind::AddrNotAvailable => {
                "--host is no address of this machine; use 127.0.0.1 for this machine alone, 0.0.0.0 for \
                 all its networks"
            }
            io::ErrorKind::PermissionDenied => "choose a port above 1023 with --port",
            _ => "check --host and --port",
        };
        Failure::Input(format!("{address}: cannot be listened on: {error}; {advice}"))
    })
}

/// Says where to go.
fn announce(options: &Options, listener: &TcpListener, service: &Service) -> Result<(), Failure> {
    let address = listener
        .local_addr()
        .map_err(|error| Failure::Run(format!("the address cannot be told: {error}")))?;
    let settings = &options.settings;
    tell(&format!(
        "{} from {}, context {} tokens, {}",
        settings.model,
        options.model.name(),
        service.context(),
        match settings.keys.len() {
            0 => "no key needed".to_owned(),
            1 => "a key needed".to_owned(),
            keys => format!("one of {keys} keys needed"),
        }
    ));
    if settings.keys.is_empty() && !address.ip().is_loopback() {
        tell("anybody who reaches this address can use the server (--insecure)");
    }
    let host = match address.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        std::net::IpAddr::V4(ip) => ip.to_string(),
    };
    let url = format!("http://{host}:{}", address.port());
    tell(&format!(
        "listening on {url} (chat in a browser; OpenAI base URL {url}/v1, Anthropic {url})"
    ));
    Ok(())
}
