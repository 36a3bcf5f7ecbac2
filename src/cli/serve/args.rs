//! What was typed after `ds4-server`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::cli::args::DeviceArgs;
use crate::cli::numbers;
use crate::prompt::Thinking;

const AFTER_HELP: &str = "All flags: ds4-server --help";

const AFTER_LONG_HELP: &str = "\
Speaks OpenAI's chat completions, completions and responses and Anthropic's messages, with and
without /v1 before the path; GET /health, /metrics and /version say how it is.

The key is read from --api-key-file or from the environment variable DS4_API_KEY, never from the
command line, which other users of the machine can see. Without a key only this machine may ask.

SIGTERM and Ctrl-C let running answers finish, at most for --grace seconds; a second one does not
wait. Exit codes: 0 stopped, 1 failed while running, 2 bad usage or input.

Examples:
  ds4-server                            the demo model on http://127.0.0.1:8000
  ds4-server -m q2-imatrix --ctx 131072
  ds4-server --host 0.0.0.0 --api-key-file /etc/ds4/keys
  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"What is 12 + 30?\"}]}'";

/// DeepSeek V4 Flash over HTTP.
#[derive(Debug, Parser)]
#[command(
    name = "ds4-server",
    version,
    max_term_width = 100,
    after_help = AFTER_HELP,
    after_long_help = AFTER_LONG_HELP
)]
pub struct ServeArgs {
    /// GGUF file or a name as `ds4 pull` takes it, or else $DS4_MODEL, ds4flash.gguf, a demo
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,

    /// Tokens of context at most
    ///
    /// The model's own limit holds too.
    #[arg(short, long, value_name = "N", default_value_t = 32_768)]
    pub ctx: usize,

    /// Most tokens of an answer, if a request does not say
    #[arg(short = 'n', long, value_name = "N", default_value_t = Thinking::MAX_CONTEXT)]
    pub tokens: usize,

    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,

    /// Port to listen on; 0 for any
    #[arg(long, value_name = "N", default_value_t = 8000)]
    pub port: u16,

    /// File with the keys that may ask, one a line, or else $DS4_API_KEY
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Listen to other machines without a key
    #[arg(long)]
    pub insecure: bool,

    /// Web pages that may ask: their origin; all of them without one
    #[arg(long, value_name = "ORIGIN", num_args = 0..=1, default_missing_value = "*")]
    #[arg(require_equals = false, value_delimiter = ',')]
    pub cors: Vec<String>,

    /// Names of this machine that clients may use, besides numbers and localhost
    #[arg(long, value_name = "NAME", value_delimiter = ',', hide_short_help = true)]
    pub allowed_host: Vec<String>,

    /// Name of the model in answers
    #[arg(long, value_name = "NAME", default_value = "deepseek-v4-flash", hide_short_help = true)]
    pub model_name: String,

    /// Refuse requests for a model of another name
    #[arg(long, hide_short_help = true)]
    pub strict_model: bool,

    /// Answers that are worked on at a time [default: what suits the device]
    #[arg(long, value_name = "N")]
    pub parallel: Option<usize>,

    /// Of these, answers for one key [default: all of them]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub parallel_per_key: Option<usize>,

    /// Answers that may wait for their turn
    #[arg(long, value_name = "N", default_value_t = 256, hide_short_help = true)]
    pub max_waiting: usize,

    /// Megabytes of memory for running answers and known prompts [default: a quarter of all, or what an
    /// NVIDIA GPU has left]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub kv_memory_mb: Option<usize>,

    /// Folder for prompts that outlive the server [default: as `ds4 cache`]
    #[arg(long, value_name = "DIR")]
    pub kv_disk_dir: Option<PathBuf>,

    /// Megabytes that the folder may take; 0 for no folder
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub kv_disk_space_mb: u64,

    /// Accepted for scripts written for ds4: prompts are stored page by page here
    #[arg(long, value_name = "N", hide = true)]
    pub kv_cache_min_tokens: Option<usize>,

    /// As above
    #[arg(long, value_name = "N", hide = true)]
    pub kv_cache_cold_max_tokens: Option<usize>,

    /// As above
    #[arg(long, value_name = "N", hide = true)]
    pub kv_cache_continued_interval_tokens: Option<usize>,

    /// As above
    #[arg(long, value_name = "N", hide = true)]
    pub kv_cache_boundary_trim_tokens: Option<usize>,

    /// As above
    #[arg(long, value_name = "N", hide = true)]
    pub kv_cache_boundary_align_tokens: Option<usize>,

    /// Accepted for scripts written for ds4: stored prompts are those of one file in any case
    #[arg(long, hide = true)]
    pub kv_cache_reject_different_quant: bool,

    /// Render tool calls anew rather than as the model wrote them
    #[arg(long, hide_short_help = true)]
    pub disable_exact_dsml_tool_replay: bool,

    /// Write what happens to each request to FILE, prompts and answers included
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// How the log is written
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text", hide_short_help = true)]
    pub log_format: LogFormat,

    /// How much is written to the log: off, error, warn, info, debug
    #[arg(long, value_name = "LEVEL", default_value = "info", hide_short_help = true)]
    pub log_level: tracing::level_filters::LevelFilter,

    /// Seconds that running answers may take once the server is asked to stop
    #[arg(long, value_name = "N", default_value_t = 30, hide_short_help = true)]
    pub grace: u64,

    /// Megabytes of a request at most
    #[arg(long, value_name = "N", default_value_t = 64, hide_short_help = true)]
    pub body_limit_mb: usize,

    /// Connections at most
    #[arg(long, value_name = "N", default_value_t = 16_384, hide_short_help = true)]
    pub max_connections: usize,

    /// Answers that one request may ask for
    #[arg(long, value_name = "N", default_value_t = 8, hide_short_help = true)]
    pub max_n: usize,

    /// GET /metrics without a key
    #[arg(long, hide_short_help = true)]
    pub public_metrics: bool,

    /// Threads that compute [default: one per core]
    #[arg(short, long, value_name = "N", hide_short_help = true)]
    pub threads: Option<usize>,

    /// Where to run.
    #[command(flatten)]
    pub place: DeviceArgs,

    /// Accepted for scripts written for ds4: kernels are exact here in any case
    #[arg(long, hide = true)]
    pub quality: bool,

    /// Accepted for scripts written for ds4: kernels are part of the program here
    #[arg(long, value_name = "DIR", hide = true)]
    pub chdir: Option<PathBuf>,

    /// Accepted for scripts written for ds4: what calls are remembered by is bounded in bytes here
    #[arg(long, value_name = "N", hide = true)]
    pub tool_memory_max_ids: Option<usize>,
}

/// How a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl ServeArgs {
    /// Reads a command line, the program's name first.
    ///
    /// # Errors
    /// Clap's: a mistake, or a request for help or the version.
    pub fn read(line: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        numbers::read(line.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn read(line: &[&str]) -> ServeArgs {
        let line = std::iter::once("ds4-server").chain(line.iter().copied()).map(OsString::from);
        ServeArgs::read(line).unwrap()
    }

    #[test]
    fn the_definition_holds_together() {
        ServeArgs::command().debug_assert();
    }

    #[test]
    fn a_script_for_ds4_is_understood() {
        let args = read(&[
            "-m",
            "m.gguf",
            "--ctx",
            "100000",
            "--tokens",
            "5000",
            "--host",
            "127.0.0.1",
            "--port",
            "8001",
            "--cors",
            "--trace",
            "t.txt",
            "--kv-disk-dir",
            "kv",
            "--kv-disk-space-mb",
            "8192",
            "--kv-cache-min-tokens",
            "512",
            "--kv-cache-cold-max-tokens",
            "30000",
            "--kv-cache-continued-interval-tokens",
            "10000",
            "--kv-cache-boundary-trim-tokens",
            "32",
            "--kv-cache-boundary-align-tokens",
            "2048",
            "--kv-cache-reject-different-quant",
            "--disable-exact-dsml-tool-replay",
            "--tool-memory-max-ids",
            "100000",
            "-t",
            "4",
            "--quality",
            "--chdir",
            "/",
            "--cpu",
        ]);
        assert_eq!((args.ctx, args.tokens, args.port), (100_000, 5000, 8001));
        assert_eq!(args.cors, ["*"]);
        assert_eq!(args.kv_disk_dir.as_deref(), Some(std::path::Path::new("kv")));
    }

    #[test]
    fn origins_are_named_or_all() {
        assert!(read(&[]).cors.is_empty());
        assert_eq!(read(&["--cors", "https://a.example"]).cors, ["https://a.example"]);
        assert_eq!(read(&["--cors", "--port", "1"]).cors, ["*"]);
    }

    #[test]
    fn the_short_help_fits_a_small_terminal() {
        let help = ServeArgs::command().term_width(80).render_help().to_string();
        assert!(help.lines().count() <= 34, "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
    }
}
