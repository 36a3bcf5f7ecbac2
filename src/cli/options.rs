//! What the command line means: one value a question, decided and checked.

use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use candle_core::Device;

use super::args::{Args, BenchArgs, Command, QuantizeArgs, SynthArgs, TalkArgs};
use super::bench::{Bench, Prompt};
use super::cache::CacheArgs;
use super::connect::Connect;
use super::failure::Failure;
use super::model_path::ModelPath;
use super::place::Place;
use super::terminal::{tell, Terminal};
use crate::cache::store::default_folder;
use crate::prompt::{Thinking, Tool};
use crate::sample::Sampling;

/// What is to be done.
pub enum Work {
    /// Fetch a model.
    Pull {
        /// Which.
        name: String,
        /// And besides.
        options: super::pull::Options,
    },
    /// Show what can be fetched.
    PullList {
        /// Whose.
        name: Option<String>,
        /// As JSON.
        json: bool,
    },
    /// Show what was fetched.
    List {
        /// As JSON.
        json: bool,
    },
    /// Remove a model.
    Remove(String),
    /// Judge the machine.
    Doctor {
        /// As JSON.
        json: bool,
    },
    /// Set up a client of the server.
    Connect(Connect),
    /// List a file.
    Inspect {
        /// Which.
        file: PathBuf,
        /// For programs.
        json: bool,
    },
    /// Write scores.
    Logits {
        /// Which model.
        model: ModelPath,
        /// Token ids.
        tokens: PathBuf,
        /// How they are cut.
        chunks: Vec<usize>,
        /// Where scores go.
        output: PathBuf,
    },
    /// Measure prediction.
    Perplexity {
        /// Which model.
        model: ModelPath,
        /// The text.
        file: PathBuf,
        /// Tokens to look back on.
        ctx: Option<usize>,
        /// As JSON.
        json: bool,
    },
    /// Make a smaller file.
    Quantize(QuantizeArgs),
    /// Measure what matters.
    Imatrix {
        /// The model.
        model: PathBuf,
        /// The text.
        file: PathBuf,
        /// Where the matrix goes.
        output: PathBuf,
        /// Tokens read without forgetting.
        ctx: Option<usize>,
    },
    /// Look after the KV store.
    Cache(CacheArgs),
    /// Make up a model.
    Synth(SynthArgs),
    /// Measure speed.
    Bench {
        /// Which model.
        model: ModelPath,
        /// Where it runs.
        device: Device,
        /// What is measured.
        bench: Box<Bench>,
    },
    /// Answer one prompt.
    Answer(String, Box<Options>),
    /// Show the tokens of one prompt.
    DumpTokens(String, Box<Options>),
    /// Talk.
    Chat(Box<Options>),
}

/// How to talk.
pub struct Options {
    /// Which model.
    pub model: ModelPath,
    /// Where it runs.
    pub device: Device,
    /// The system prompt, if there is one.
    pub system: Option<String>,
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// Tokens of context wanted; the model's limit holds too.
    pub context: usize,
    /// How hard to think.
    pub thinking: Thinking,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// Folder of the store for what the model remembers of saved conversations.
    pub store: Option<PathBuf>,
    /// Answer as JSON.
    pub json: bool,
    /// Thinking and timings on standard error in any case.
    pub verbose: bool,
    /// Where output goes.
    pub terminal: Terminal,
}

impl Work {
    /// Reads files and standard input where the command line says so, and takes the first steps
    /// that can fail, so that a mistake is known before a model is loaded.
    ///
    /// # Errors
    /// What was typed makes no sense, or cannot be read, or is not built in.
    pub fn resolve(args: Args) -> Result<Self, Failure> {
        if let Some(command) = args.command {
            return match command {
                Command::Pull { name: Some(name), list: false, link, json } => {
                    Ok(Self::Pull { name, options: super::pull::Options { link, json } })
                }
                Command::Pull { name, json, .. } => Ok(Self::PullList { name, json }),
                Command::List { json } => Ok(Self::List { json }),
                Command::Rm { name } => Ok(Self::Remove(name)),
                Command::Doctor { json } => Ok(Self::Doctor { json }),
                Command::Connect { client, url, ctx: context, write } => {
                    Ok(Self::Connect(Connect { client, url, context, write }))
                }
                Command::Inspect { file, json } => Ok(Self::Inspect { file, json }),
                Command::Quantize(what) => Ok(Self::Quantize(what)),
                Command::Imatrix { model, file, output, ctx } => {
                    Ok(Self::Imatrix { model, file, output, ctx })
                }
                Command::Cache(what) => Ok(Self::Cache(what)),
                Command::Synth(what) => Ok(Self::Synth(what)),
                Command::Bench(args) => {
                    let bench = Box::new(Bench::resolve(&args)?);
                    if let Some(threads) = args.threads {
                        use_threads(threads)?;
                    }
                    let device = Place::of(&args.place).open()?;
                    Ok(Self::Bench { model: model_path(args.model.as_deref()), device, bench })
                }
                Command::Logits { model, tokens, chunks, output } => {
                    Ok(Self::Logits { model: model_path(model.as_deref()), tokens, chunks, output })
                }
                Command::Perplexity { model, file, ctx, json } => {
                    Ok(Self::Perplexity { model: model_path(model.as_deref()), file, ctx, json })
                }
            };
        }
        let talk = args.talk;
        let prompt = prompt(&talk)?;
        let options = Box::new(Options::resolve(&talk)?);
        match prompt {
            Some(prompt) if talk.dump_tokens => Ok(Self::DumpTokens(prompt, options)),
            Some(prompt) => Ok(Self::Answer(prompt, options)),
            None => {
                let needs_prompt = [
                    (talk.dump_tokens, "--dump-tokens"),
                    (talk.json, "--json"),
                    (talk.tools.is_some(), "--tools"),
                ];
                match needs_prompt.into_iter().find(|(typed, _)| *typed) {
                    Some((_, flag)) => Err(Failure::Input(format!(
                        "{flag} needs a prompt: give one with -p TEXT, with --prompt-file FILE, \
                         or through a pipe"
                    ))),
                    None => Ok(Self::Chat(options)),
                }
            }
        }
    }
}

impl Options {
    fn resolve(talk: &TalkArgs) -> Result<Self, Failure> {
        if talk.tokens == 0 || talk.ctx < 2 {
            return Err(Failure::Input(format!(
                "--tokens is {}, --ctx {}: an answer needs at least one token, a context two",
                talk.tokens, talk.ctx
            )));
        }
        if let Some(threads) = talk.threads {
            use_threads(threads)?;
        }
        let sampling = Sampling {
            temperature: talk.temp,
            top_p: talk.top_p,
            min_p: talk.min_p,
            top_k: talk.top_k,
            repetition_penalty: talk.repetition_penalty,
            frequency_penalty: talk.frequency_penalty,
            presence_penalty: talk.presence_penalty,
            // 32 bits, so that programs that read the seed from JSON as a float can give it back.
            seed: talk.seed.unwrap_or_else(|| u64::from(rand::random::<u32>())),
            ..Sampling::default()
        };
        sampling.check().map_err(|error| {
            Failure::Input(format!("{error} (flags: --temp, --top-p, --min-p, --…-penalty)"))
        })?;
        Ok(Self {
            model: model_path(talk.model.as_deref()),
            device: Place::of(&talk.place).open()?,
            system: Some(talk.system.clone()).filter(|system| !system.is_empty()),
            max_tokens: talk.tokens,
            context: talk.ctx,
            thinking: match (talk.think_max, talk.nothink) {
                (true, _) => Thinking::Max,
                (_, true) => Thinking::Off,
                _ => Thinking::On,
            },
            sampling,
            tools: talk.tools.as_deref().map(tools).transpose()?.unwrap_or_default(),
            store: talk.kv_disk_dir.clone().or_else(default_folder),
            json: talk.json,
            verbose: talk.verbose,
            terminal: Terminal::detect(talk.plain),
        })
    }
}

/// `wanted`, or plain thinking with a warning if the context is too short for it.
pub fn affordable(wanted: Thinking, context: usize) -> Thinking {
    let within = wanted.within(context);
    if within != wanted {
        tell(&format!(
            "--think-max needs a context of at least {} tokens, this one has {context}: thinking as \
             usual (raise it with --ctx if the model allows)",
            Thinking::MAX_CONTEXT
        ));
    }
    within
}

/// The model typed, or what stands for none.
pub fn model_path(typed: Option<&Path>) -> ModelPath {
    ModelPath::resolve(typed, std::env::var_os("DS4_MODEL").as_deref(), Path::new("."))
}

/// The prompt, or `None` for a chat.
fn prompt(talk: &TalkArgs) -> Result<Option<String>, Failure> {
    let (text, source) = match (&talk.prompt, &talk.prompt_file) {
        (Some(text), _) => (text.clone(), "-p".to_owned()),
        (None, Some(file)) if file.as_os_str() != "-" => {
            (read_text(file)?, file.display().to_string())
        }
        (None, None) if io::stdin().is_terminal() => return Ok(None),
        _ => {
            let what = "standard input";
            let mut bytes = Vec::new();
            io::stdin()
                .read_to_end(&mut bytes)
                .map_err(|error| Failure::unreadable(what, &error, "give the prompt with -p"))?;
            (utf8(bytes, what)?, what.to_owned())
        }
    };
    // As `$(…)` does: editors and `echo` end files with one.
    let text = text.trim_end_matches(['\n', '\r']);
    if text.trim().is_empty() {
        return Err(Failure::Input(format!(
            "{source}: the prompt is empty; give one with -p TEXT, with --prompt-file FILE, or \
             through a pipe"
        )));
    }
    Ok(Some(text.to_owned()))
}

/// A text file.
///
/// # Errors
/// It cannot be read, or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, Failure> {
    let what = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| {
        Failure::unreadable(&what, &error, "check the path and that you may read the file")
    })?;
    utf8(bytes, &what)
}

/// `bytes` as text; `what` is where they come from.
///
/// # Errors
/// They are not UTF-8; the error says where not.
pub fn utf8(bytes: Vec<u8>, what: &str) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes().get(at).copied().unwrap_or_default();
        Failure::Input(format!(
            "{what}: not UTF-8 text at byte {at} (0x{byte:02x}); convert it first, for instance \
             with `iconv -f latin1 -t utf-8`"
        ))
    })
}

fn tools(path: &Path) -> Result<Vec<Tool>, Failure> {
    serde_json::from_str(&read_text(path)?).map_err(|error| {
        Failure::Input(format!(
            "{}: no list of tools: {error}; expected [{{\"type\": \"function\", \"function\": \
             {{\"name\": …, \"parameters\": …}}}}]",
            path.display()
        ))
    })
}

/// More threads than any machine has cores for.
const MOST_THREADS: usize = 1024;

/// Computes with this many threads.
///
/// # Errors
/// None, or more than the system has.
pub fn use_threads(threads: usize) -> Result<(), Failure> {
    if !(1..=MOST_THREADS).contains(&threads) {
        return Err(Failure::Input(format!(
            "--threads is {threads}: it must be from 1 to {MOST_THREADS}; leave it out for one per core"
        )));
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|error| {
        Failure::Run(format!("{threads} threads cannot be had: {error}; use fewer (--threads)"))
    })
}

impl Bench {
    fn resolve(args: &BenchArgs) -> Result<Self, Failure> {
        let prompt = match (&args.prompt_file, &args.chat_prompt_file) {
            (Some(file), _) => Prompt::Text(read_text(file)?),
            (_, Some(file)) => Prompt::Chat {
                text: read_text(file)?,
                system: Some(args.system.clone()).filter(|system| !system.is_empty()),
            },
            _ => Prompt::Synthetic,
        };
        let bench = Self {
            prompt,
            ctx_start: args.ctx_start,
            ctx_max: args.ctx_max,
            ctx_alloc: args.ctx_alloc,
            step_mul: args.step_mul,
            step_incr: args.step_incr,
            gen_tokens: args.gen_tokens,
            batch: args.batch,
            chunk: args.chunk,
            csv: args.csv.clone(),
            json: args.json,
            svg: args.svg.clone(),
            made_up_cache: args.made_up_cache,
            profile: args.profile,
        };
        // A mistake is known before a model is loaded.
        bench.frontiers().map_err(|error| Failure::Input(error.to_string()))?;
        Ok(bench)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_not_utf8_says_where() {
        let error = utf8(b"caf\xe9 au lait".to_vec(), "menu.txt").unwrap_err();
        let message = error.to_string();
        assert_eq!(error.code(), 2);
        for needle in ["menu.txt", "byte 3", "0xe9", "iconv"] {
            assert!(message.contains(needle), "{message}");
        }
    }
}
