//! What the command line of the server means, checked before a model is loaded.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::Device;

use super::args::{LogFormat, ServeArgs};
use crate::cache::store::default_folder;
use crate::cli::failure::Failure;
use crate::cli::model_path::ModelPath;
use crate::cli::options::{model_path, read_text, use_threads};
use crate::cli::place::Place;
use crate::cli::terminal::tell;
use crate::engine::Limits;
use crate::server::{Access, Keys, Settings};

/// The environment variable that holds a key.
const KEY_VARIABLE: &str = "DS4_API_KEY";

/// Where states are kept.
pub struct Kept {
    /// The folder.
    pub folder: PathBuf,
    /// Bytes that it may take.
    pub budget: u64,
    /// Whether somebody named the folder, and wants to know if it cannot be used.
    pub asked_for: bool,
}

/// How to serve.
pub struct Options {
    /// Which model.
    pub model: ModelPath,
    /// Where it runs.
    pub device: Device,
    /// Tokens of context wanted; the model's limit holds too.
    pub context: usize,
    /// Where to listen.
    pub address: SocketAddr,
    /// Answers that are worked on at a time, and of one key at a time.
    parallel: (Option<usize>, Option<usize>),
    /// Answers that may wait.
    waiting: usize,
    /// Bytes for running answers and known prompts.
    kv_bytes: Option<usize>,
    /// How the log is written.
    pub log: (LogFormat, tracing::level_filters::LevelFilter),
    /// Where states are kept, if they are.
    pub store: Option<Kept>,
    /// Whether answers are repeated to the token when they come back.
    pub replay: bool,
    /// Everything else.
    pub settings: Settings,
}

impl Options {
    /// Reads keys and takes the first steps that can fail.
    ///
    /// # Errors
    /// What was typed makes no sense, or would not be safe.
    pub fn resolve(args: &ServeArgs) -> Result<Self, Failure> {
        check(args)?;
        for (flag, why) in ignored(args) {
            tell(&format!("{flag} has no effect: {why}"));
        }
        if let Some(threads) = args.threads {
            use_threads(threads)?;
        }
        let address = address(&args.host, args.port)?;
        let keys = keys(args.api_key_file.as_deref())?;
        if !address.ip().is_loopback() && keys.is_empty() && !args.insecure {
            return Err(Failure::Input(format!(
                "--host {}: other machines could use this server, and there is no key: give one \
                 with --api-key-file FILE or in {KEY_VARIABLE}; or listen to this machine alone \
                 (leave out --host); or say --insecure",
                args.host
            )));
        }
        let access = Access {
            hosts: args.allowed_host.clone(),
            origins: args.cors.clone(),
            any_host: !keys.is_empty(),
        };
        let settings = Settings {
            model: args.model_name.clone(),
            strict_model: args.strict_model,
            max_tokens: args.tokens,
            most_answers: args.max_n,
            keys,
            access,
            public_metrics: args.public_metrics,
            body_limit: args.body_limit_mb << 20,
            connections: args.max_connections,
            grace: Duration::from_secs(args.grace),
            trace: args.trace.clone(),
            ..Settings::default()
        };
        Ok(Self {
            model: model_path(args.model.as_deref()),
            device: Place::of(&args.place).open()?,
            context: args.ctx,
            address,
            parallel: (args.parallel, args.parallel_per_key),
            waiting: args.max_waiting,
            kv_bytes: args.kv_memory_mb.map(|megabytes| megabytes << 20),
            log: (args.log_format, args.log_level),
            store: Kept::resolve(args),
            replay: !args.disable_exact_dsml_tool_replay,
            settings,
        })
    }
}

impl Kept {
    fn resolve(args: &ServeArgs) -> Option<Self> {
        let budget = args.kv_disk_space_mb.saturating_mul(1 << 20);
        let asked_for = args.kv_disk_dir.is_some();
        let folder = args.kv_disk_dir.clone().or_else(default_folder)?;
        (budget > 0).then_some(Self { folder, budget, asked_for })
    }
}

impl Options {
    /// Changes the engine's limits where something was said about them.
    pub fn limit(&self, limits: &mut Limits) {
        let (parallel, per_key) = self.parallel;
        limits.parallel = parallel.unwrap_or(limits.parallel);
        limits.per_namespace = per_key.unwrap_or(limits.parallel);
        limits.waiting = self.waiting;
        limits.kv_bytes = self.kv_bytes.unwrap_or(limits.kv_bytes);
    }
}

/// The flags of ds4 that were given and mean nothing here, and why: nobody should rely on them.
fn ignored(args: &ServeArgs) -> Vec<(&'static str, &'static str)> {
    let page_by_page = "prompts are stored page by page as they are read";
    let flags = [
        ("--kv-cache-min-tokens", args.kv_cache_min_tokens.is_some(), page_by_page),
        ("--kv-cache-cold-max-tokens", args.kv_cache_cold_max_tokens.is_some(), page_by_page),
        (
            "--kv-cache-continued-interval-tokens",
            args.kv_cache_continued_interval_tokens.is_some(),
            page_by_page,
        ),
        (
            "--kv-cache-boundary-trim-tokens",
            args.kv_cache_boundary_trim_tokens.is_some(),
            page_by_page,
        ),
        (
            "--kv-cache-boundary-align-tokens",
            args.kv_cache_boundary_align_tokens.is_some(),
            page_by_page,
        ),
        (
            "--kv-cache-reject-different-quant",
            args.kv_cache_reject_different_quant,
            "stored prompts are those of one model file in any case",
        ),
        (
            "--tool-memory-max-ids",
            args.tool_memory_max_ids.is_some(),
            "what calls are remembered by has a bound in bytes",
        ),
        ("--quality", args.quality, "there are no faster, less exact kernels to do without"),
        (
            "--chdir",
            args.chdir.is_some(),
            "kernels are part of the program; paths are those of the folder it was started in",
        ),
    ];
    flags.into_iter().filter(|(_, given, _)| *given).map(|(flag, _, why)| (flag, why)).collect()
}

fn check(args: &ServeArgs) -> Result<(), Failure> {
    let grace = usize::try_from(args.grace).unwrap_or(usize::MAX);
    let least: [(&str, usize, usize, usize); 10] = [
        ("--ctx", args.ctx, 2, usize::MAX),
        ("--tokens", args.tokens, 1, usize::MAX),
        ("--max-n", args.max_n, 1, 128),
        ("--body-limit-mb", args.body_limit_mb, 1, 1024),
        ("--max-connections", args.max_connections, 1, 1 << 20),
        ("--parallel", args.parallel.unwrap_or(1), 1, 4096),
        ("--parallel-per-key", args.parallel_per_key.unwrap_or(1), 1, 4096),
        ("--max-waiting", args.max_waiting, 1, 1 << 20),
        ("--kv-memory-mb", args.kv_memory_mb.unwrap_or(1), 1, 1 << 30),
        ("--grace", grace, 0, 1_000_000),
    ];
    for (flag, value, low, high) in least {
        if !(low..=high).contains(&value) {
            let range = match high {
                usize::MAX => format!("at least {low}"),
                high => format!("from {low} to {high}"),
            };
            return Err(Failure::Input(format!("{flag} is {value}: it must be {range}")));
        }
    }
    let name = &args.model_name;
    if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
        return Err(Failure::Input(
            "--model-name: a name has 1 to 128 characters, none of them a control character"
                .to_owned(),
        ));
    }
    for origin in args.cors.iter().filter(|origin| *origin != "*") {
        let rest = origin.split_once("://").map(|(_, rest)| rest.trim_end_matches('/'));
        if rest.is_none_or(|rest| rest.is_empty() || rest.contains('/')) {
            return Err(Failure::Input(format!(
                "--cors {origin}: an origin has a scheme and a host, such as https://app.example"
            )));
        }
    }
    Ok(())
}

fn address(host: &str, port: u16) -> Result<SocketAddr, Failure> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found = (bare, port).to_socket_addrs().map(|mut addresses| addresses.next());
    match found {
        Ok(Some(address)) => Ok(address),
        _ => Err(Failure::Input(format!(
            "--host {host}: no address of this machine; use 127.0.0.1 for this machine alone, \
             0.0.0.0 for all its networks"
        ))),
    }
}

fn keys(file: Option<&Path>) -> Result<Keys, Failure> {
    let (text, source) = match file {
        Some(file) => (read_text(file)?, file.display().to_string()),
        None => match std::env::var(KEY_VARIABLE) {
            Ok(text) if !text.is_empty() => (text, KEY_VARIABLE.to_owned()),
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(Failure::Input(format!("{KEY_VARIABLE}: not UTF-8 text")));
            }
            _ => return Ok(Keys::default()),
        },
    };
    let keys = Keys::read(&text)
        .map_err(|problem| Failure::Input(format!("{source}: {problem}; write one key a line")))?;
    // Whoever names a file of keys means to be protected.
    if keys.is_empty() {
        return Err(Failure::Input(format!("{source}: no key in it; write one key a line")));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn each_flag_that_is_accepted_and_means_nothing_is_told() {
        let command = ServeArgs::command();
        let hidden: Vec<_> = command.get_arguments().filter(|flag| flag.is_hide_set()).collect();
        let flags: Vec<String> =
            hidden.iter().map(|flag| format!("--{}", flag.get_long().unwrap())).collect();
        let mut line = vec!["ds4-server"];
        for (flag, name) in hidden.iter().zip(&flags) {
            line.push(name);
            line.extend(flag.get_action().takes_values().then_some("1"));
        }
        let args = ServeArgs::read(line.into_iter().map(Into::into)).unwrap();
        let told: Vec<&str> = ignored(&args).into_iter().map(|(flag, _)| flag).collect();
        assert_eq!(told.len(), flags.len());
        assert!(flags.iter().all(|flag| told.contains(&flag.as_str())), "{flags:?}, {told:?}");
        assert!(ignored(&ServeArgs::read(["ds4-server".into()]).unwrap()).is_empty());
    }
}
