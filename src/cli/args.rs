//! What was typed: flags and subcommands, before any of it means anything.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use super::place::Place;

const AFTER_HELP: &str = "Without a prompt, on a terminal: a chat. All flags: ds4 --help";

const AFTER_LONG_HELP: &str = "\
On a terminal answers are rendered (Markdown, thinking dimmed) and timings follow; in a pipe only
the answer is printed, as the model wrote it. NO_COLOR and TERM=dumb turn rendering off.

Exit codes: 0 done, 1 failed while running, 2 bad usage or input, 130 interrupted.

To work on models: ds4 inspect, logits, perplexity, imatrix, synth; each has a --help.

Examples:
  ds4 pull q2-imatrix --link            fetch a model
  ds4                                   chat
  ds4 -p 'What is the capital of France?'
  ds4 --nothink --prompt-file question.txt > answer.txt
  git diff | ds4 -sys 'Review this change'
  ds4 --json --seed 7 -p 'What is 12 + 30?'
  ds4 inspect model.gguf";

/// DeepSeek V4 Flash on one machine.
#[derive(Debug, Parser)]
#[command(
    name = "ds4",
    version,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = AFTER_HELP,
    after_long_help = AFTER_LONG_HELP
)]
pub struct Args {
    /// Another thing to do than to talk.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to talk.
    #[command(flatten)]
    pub talk: TalkArgs,
}

/// Other things to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch a model, or go on fetching it
    Pull {
        /// q2-imatrix, q4-imatrix, …, or ORG/REPO[:FILE][@REV]
        #[arg(required_unless_present = "list")]
        name: Option<String>,
        /// Show what there is instead
        #[arg(long, conflicts_with = "link")]
        list: bool,
        /// Make ./ds4flash.gguf a link to it
        #[arg(long)]
        link: bool,
        /// Events as JSON, one a line
        #[arg(long)]
        json: bool,
    },
    /// List the models on this machine
    List {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove a model from this machine
    Rm {
        /// As `ds4 pull` takes it
        name: String,
    },
    /// Say which model fits this machine, and why
    Doctor {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Make a coding agent use ds4-server
    Connect {
        /// The program
        #[arg(value_enum)]
        client: super::connect::Client,
        /// The server's address
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
        url: String,
        /// Tokens of context that the server has (its --ctx)
        #[arg(short, long, value_name = "N", default_value_t = 32_768)]
        ctx: usize,
        /// Write the program's settings file instead of printing what belongs there
        #[arg(long)]
        write: bool,
    },
    /// See, check or clear the prompts that are known on disk
    Cache(super::cache::CacheArgs),
    /// List what is in a GGUF file
    #[command(hide = true)]
    Inspect {
        /// The file
        file: PathBuf,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write the model's scores for a file of token ids
    #[command(hide = true)]
    Logits {
        /// GGUF file, or else $DS4_MODEL, ds4flash.gguf, a demo
        #[arg(short, long, value_name = "FILE")]
        model: Option<PathBuf>,
        /// Token ids, whitespace between them
        #[arg(long, value_name = "FILE")]
        tokens: PathBuf,
        /// Lengths of the pieces that are run one after the other; the last one repeats
        #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
        chunks: Vec<usize>,
        /// NumPy file to write: f32 [tokens, vocabulary]
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Measure how well the model predicts a text
    #[command(hide = true)]
    Perplexity {
        /// GGUF file, or else $DS4_MODEL, ds4flash.gguf, a demo
        #[arg(short, long, value_name = "FILE")]
        model: Option<PathBuf>,
        /// UTF-8 text
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Tokens that a prediction may look back on [default: 4096]
        #[arg(short, long, value_name = "N")]
        ctx: Option<usize>,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Make a smaller model file from a checkpoint or a larger one
    Quantize(QuantizeArgs),
    /// Measure which inputs of the routed experts matter, for `quantize`
    #[command(hide = true)]
    Imatrix {
        /// GGUF file
        #[arg(short, long, value_name = "FILE")]
        model: PathBuf,
        /// UTF-8 text to read
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Importance matrix to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Tokens that are read without forgetting [default: 4096]
        #[arg(short, long, value_name = "N")]
        ctx: Option<usize>,
    },
    /// Write a model of the full shape with random weights, for measurements
    #[command(hide = true)]
    Synth(SynthArgs),
    /// Measure speed at growing context
    Bench(BenchArgs),
}

/// Where to run.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct DeviceArgs {
    /// auto, cpu, cuda, cuda:N or metal [default: auto, the best that is there]
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    #[arg(conflicts_with_all = ["backend", "cpu", "cuda", "metal"])]
    pub device: Option<Place>,

    /// The same as --device
    #[arg(long, value_enum, value_name = "NAME", hide_short_help = true)]
    #[arg(conflicts_with_all = ["cpu", "cuda", "metal"])]
    pub backend: Option<BackendName>,

    /// The same as --device cpu
    #[arg(long, hide_short_help = true, conflicts_with_all = ["cuda", "metal"])]
    pub cpu: bool,

    /// The same as --device cuda
    #[arg(long, hide_short_help = true, conflicts_with = "metal")]
    pub cuda: bool,

    /// The same as --device metal
    #[arg(long, hide_short_help = true)]
    pub metal: bool,
}

/// What to measure.
///
/// The prompt is read in steps; after each, tokens are generated from there (the likeliest ones, the end
/// of an answer left out) and taken back. One line of CSV for each step: the context, the tokens read
/// since the step before and how many a second, the tokens generated and how many a second, the bytes of
/// the caches, and what of a memory copy's bandwidth decoding reached.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// GGUF file, or else $DS4_MODEL, ds4flash.gguf, a demo
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Text to read [default: made-up text]
    #[arg(long, value_name = "FILE", conflicts_with = "chat_prompt_file")]
    pub prompt_file: Option<PathBuf>,
    /// Text to read as a question, after the system prompt
    #[arg(long, value_name = "FILE")]
    pub chat_prompt_file: Option<PathBuf>,
    /// System prompt of --chat-prompt-file (also: -sys)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    #[arg(default_value = "You are a helpful assistant")]
    pub system: String,
    /// First context, in tokens
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub ctx_start: usize,
    /// Last context
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    pub ctx_max: usize,
    /// Tokens that there must be room for [default: as many as are used]
    #[arg(long, value_name = "N")]
    pub ctx_alloc: Option<usize>,
    /// From one context to the next: times this, if above 1
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub step_mul: f64,
    /// From one context to the next: plus this
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub step_incr: usize,
    /// Tokens to generate at each context
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub gen_tokens: usize,
    /// Sequences that generate at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub batch: usize,
    /// Tokens read at a time [default: 512, on a GPU 4096]
    #[arg(long, value_name = "N")]
    pub chunk: Option<usize>,
    /// Write the table there instead of on standard output
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// All numbers as one JSON object on standard output
    #[arg(long)]
    pub json: bool,
    /// Draw a chart
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Make contexts up instead of reading them: for decoding at lengths that take long to read
    #[arg(long)]
    pub made_up_cache: bool,
    /// Show where the time of a step goes, at the last context
    #[arg(long)]
    pub profile: bool,
    /// Threads that compute [default: one per core]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,
    /// Where to run.
    #[command(flatten)]
    pub place: DeviceArgs,
}

/// What to quantise, and how.
#[derive(Debug, clap::Args)]
pub struct QuantizeArgs {
    /// Folder of a Hugging Face checkpoint, or a GGUF file
    pub input: PathBuf,
    /// GGUF file to write; not needed with --dry-run
    #[arg(required_unless_present = "dry_run")]
    pub output: Option<PathBuf>,
    /// q2, q4, q8 or f16
    #[arg(long, value_name = "NAME")]
    pub recipe: String,
    /// Importance matrix of the routed experts
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Another type for the routed experts of some layers, such as 37-42=q4_k
    #[arg(long, value_name = "LAYERS=TYPE")]
    pub layer_type: Vec<String>,
    /// Only print what would be written
    #[arg(long)]
    pub dry_run: bool,
}

/// What to make up.
#[derive(Debug, clap::Args)]
pub struct SynthArgs {
    /// GGUF file to write; not needed with --dry-run
    #[arg(required_unless_present = "dry_run")]
    pub output: Option<PathBuf>,
    /// q2 or q4
    #[arg(long, value_name = "NAME")]
    pub recipe: String,
    /// Layers of each kind with data of their own; the others repeat it
    #[arg(long, value_name = "N")]
    pub distinct_layers: Option<usize>,
    /// Only print what would be written
    #[arg(long)]
    pub dry_run: bool,
}

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// Processor cores
    Cpu,
    /// NVIDIA GPU
    Cuda,
    /// Apple GPU
    Metal,
}

/// Flags of the chat and of a single prompt.
#[derive(Debug, clap::Args)]
pub struct TalkArgs {
    /// Answer TEXT and exit
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    #[arg(conflicts_with = "prompt_file")]
    pub prompt: Option<String>,

    /// Answer the text in FILE, or on standard input (-)
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub prompt_file: Option<PathBuf>,

    /// GGUF file, or else $DS4_MODEL, ds4flash.gguf, a demo
    ///
    /// Without this flag: the file that the environment variable DS4_MODEL names, or
    /// ./ds4flash.gguf, or the tiny demo model that is part of the program.
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,

    /// System prompt, "" for none (also: -sys)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, hide_default_value = true)]
    #[arg(default_value = "You are a helpful assistant", hide_short_help = true)]
    pub system: String,

    /// Most tokens of an answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50_000, hide_short_help = true)]
    pub tokens: usize,

    /// Tokens of context at most
    ///
    /// The model's own limit holds too.
    #[arg(short, long, value_name = "N", default_value_t = 32_768)]
    pub ctx: usize,

    /// Think before answering (the default)
    #[arg(long, hide_short_help = true, overrides_with_all = ["think_max", "nothink"])]
    pub think: bool,

    /// Think as hard as the model can; needs --ctx 393216
    #[arg(long, hide_short_help = true, overrides_with_all = ["think", "nothink"])]
    pub think_max: bool,

    /// Answer at once, without thinking first
    #[arg(long, overrides_with_all = ["think", "think_max"])]
    pub nothink: bool,

    /// Temperature, 0 for the likeliest answer
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    #[arg(hide_short_help = true)]
    pub temp: f64,

    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, hide_short_help = true)]
    pub top_p: f64,

    /// Choose among tokens at least this probable relative to the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.05, hide_short_help = true)]
    pub min_p: f64,

    /// Choose among this many of the likeliest tokens; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0, hide_short_help = true)]
    pub top_k: usize,

    /// The same seed gives the same answer [default: another one each time]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub seed: Option<u64>,

    /// Makes tokens of the context less likely; 1 does nothing
    #[arg(long, value_name = "X", default_value_t = 1.0, hide_short_help = true)]
    pub repetition_penalty: f32,

    /// Makes an answer's tokens less likely the more often they occurred; 0 does nothing
    #[arg(long, value_name = "X", default_value_t = 0.0, hide_short_help = true)]
    pub frequency_penalty: f32,

    /// Makes tokens that the answer has less likely; 0 does nothing
    #[arg(long, value_name = "X", default_value_t = 0.0, hide_short_help = true)]
    pub presence_penalty: f32,

    /// Tools that the model may call: a JSON list of OpenAI function tools (with a prompt only)
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub tools: Option<PathBuf>,

    /// Answer as one JSON object
    #[arg(long, hide_short_help = true)]
    pub json: bool,

    /// No Markdown rendering and no styles on a terminal
    #[arg(long, hide_short_help = true)]
    pub plain: bool,

    /// Thinking and timings on standard error, in a pipe too
    #[arg(short, long, hide_short_help = true)]
    pub verbose: bool,

    /// Folder where /save keeps what the model remembers [default: as `ds4 cache`]
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub kv_disk_dir: Option<PathBuf>,

    /// Threads that compute [default: one per core]
    #[arg(short, long, value_name = "N", hide_short_help = true)]
    pub threads: Option<usize>,

    /// Where to run.
    #[command(flatten)]
    pub place: DeviceArgs,

    /// Print the prompt's token ids and pieces instead of answering it
    #[arg(long, hide_short_help = true)]
    pub dump_tokens: bool,
}

impl Args {
    /// Reads a command line, the program's name first.
    ///
    /// # Errors
    /// Clap's: a mistake, or a request for help or the version.
    pub fn read(line: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        super::numbers::read(spelled_out(line))
    }
}

/// The line with ds4's `-sys`, which would otherwise be `-s -y -s`, spelled `--system`.
fn spelled_out(line: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let takes_text = ["-p", "--prompt", "--system"].map(OsStr::new);
    let mut out: Vec<OsString> = Vec::new();
    let mut is_value = false;
    for word in line {
        let word = if !is_value && word == "-sys" { "--system".into() } else { word };
        is_value = !is_value && takes_text.contains(&word.as_os_str());
        out.push(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn read(line: &[&str]) -> Args {
        let line = std::iter::once("ds4").chain(line.iter().copied()).map(OsString::from);
        Args::read(line).unwrap()
    }

    #[test]
    fn the_definition_holds_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_single_dash_spelling_of_system_is_read_where_it_is_a_flag() {
        assert_eq!(read(&["-sys", "Be brief", "-p", "x"]).talk.system, "Be brief");
        assert_eq!(read(&["-sys", ""]).talk.system, "");
        assert_eq!(read(&["-sys", "-sys"]).talk.system, "-sys");
        assert_eq!(read(&["-p", "-sys"]).talk.prompt.as_deref(), Some("-sys"));
    }

    #[test]
    fn a_prompt_may_begin_with_a_dash() {
        assert_eq!(read(&["-p", "-1 + 3?"]).talk.prompt.as_deref(), Some("-1 + 3?"));
    }

    #[test]
    fn the_last_word_on_thinking_wins() {
        let talk = read(&["--nothink", "--think-max", "--think"]).talk;
        assert!(talk.think && !talk.think_max && !talk.nothink);
        let talk = read(&["--think", "--nothink"]).talk;
        assert!(!talk.think && talk.nothink);
    }

    #[test]
    fn the_short_help_fits_a_small_terminal() {
        let help = Args::command().term_width(80).render_help().to_string();
        assert!(help.lines().count() <= 24, "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
    }
}
