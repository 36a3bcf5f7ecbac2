//! Why the program ends without success: an exit code, and one message that says what to do.

use std::fmt;
use std::io;
use std::process::ExitCode;

use crate::engine::EngineError;
use crate::gguf;
use crate::sample::SampleError;

/// An end without success.
#[derive(Debug)]
pub enum Failure {
    /// Bad usage or bad input: the user can do something about it. Exit code 2.
    Input(String),
    /// It went wrong while running. Exit code 1.
    Run(String),
    /// Ctrl-C. Exit code 130, as of a program that the signal kills.
    Interrupted,
    /// Nobody reads the output any more (`| head`): no failure at all. Exit code 0.
    Closed,
}

impl Failure {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Input(_) => 2,
            Self::Run(_) => 1,
            Self::Interrupted => 130,
            Self::Closed => 0,
        }
    }

    /// Says on standard error why the program ends, and returns how.
    pub fn report(&self) -> ExitCode {
        if !matches!(self, Self::Closed) {
            super::terminal::tell(&self.to_string());
        }
        ExitCode::from(self.code())
    }

    /// Bad input that cannot be read: what, and what to do about it.
    pub fn unreadable(what: &str, error: &io::Error, advice: &str) -> Self {
        Self::Input(format!("{what}: cannot be read: {error}; {advice}"))
    }

    /// Standard output refused.
    pub fn output(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Run(format!(
                "standard output: cannot be written: {error}; check the disk or the pipe that it \
                 goes to"
            )),
        }
    }

    /// A model that cannot be loaded from `file`.
    pub fn load(file: &str, error: &EngineError) -> Self {
        let message = error.to_string();
        let named = if message.contains(file) { message } else { format!("{file}: {message}") };
        match error {
            EngineError::Gguf(error) => match error.rule() {
                gguf::Error::Io { action: "open", .. } => Self::Input(format!(
                    "{named}; give a GGUF file with -m FILE or a model of `ds4 pull --list` with -m NAME, \
                     or try the bundled demo model: leave out -m and DS4_MODEL"
                )),
                _ => Self::Input(named),
            },
            EngineError::Load { .. }
            | EngineError::Tokenizer { .. }
            | EngineError::Vocabulary { .. } => {
                Self::Input(format!("{named} (`ds4 inspect` shows what is in the file)"))
            }
            _ => Self::Run(with_memory_advice(named)),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(message) | Self::Run(message) => write!(f, "{message}"),
            Self::Interrupted => write!(f, "interrupted"),
            Self::Closed => write!(f, "the reader of the output has gone"),
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Sample(SampleError::NotFinite { .. } | SampleError::Candle(_)) => {
                Self::Run(message)
            }
            EngineError::Forward(_) | EngineError::Cache(_) | EngineError::Device(_) => {
                Self::Run(with_memory_advice(format!("the model failed: {message}")))
            }
            EngineError::OutOfMemory(_) => {
                Self::Run(with_memory_advice(format!("the model failed: {message}")))
            }
            EngineError::EmptyPrompt | EngineError::PromptTooLong { .. } => Self::Input(message),
            _ => Self::Input(message),
        }
    }
}

/// What to do about a failed device, which for most is too little memory.
fn with_memory_advice(message: String) -> String {
    let lower = message.to_lowercase();
    if lower.contains("memory") || lower.contains("alloc") {
        format!("{message}; use a shorter context (--ctx), or a smaller quantisation of the model")
    } else {
        format!("{message}; try --backend cpu, and check the file with `ds4 inspect`")
    }
}
