//! A model, its tokenizer and the sequences it runs.

mod choose;
mod disk;
mod footprint;
mod generate;
mod job;
mod limits;
mod pass;
mod prefixes;
mod reply;
mod running;
mod scheduler;
mod sequence;
mod service;
mod share;
mod stats;

use std::path::Path;

use candle_core::Device;
use candle_ds4_ops::device::is_out_of_memory;
use candle_ds4_ops::Workspace;

use crate::cache::CacheError;
use crate::gguf::{self, Gguf};
use crate::model::{ForwardError, LoadError, Model};
use crate::sample::SampleError;
use crate::size::Size;
use crate::tokenizer::{self, Tokenizer};

pub use disk::{open_store, StoreError};
pub use generate::{Finish, Outcome, Progress, Request};
pub use job::{Attach, Chosen, Guide, GuideError, Job, Namespace, TokenLogprob, Update};
pub use limits::Limits;
pub use sequence::Sequence;
pub use service::{Refused, Service, Updates};
pub use stats::{Stats, STEP_TIME_BOUNDS};

/// Why the engine could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The file is no GGUF.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// The file's vocabulary, named.
    #[error("{file}: {error}")]
    Tokenizer {
        /// The file as the caller named it.
        file: String,
        /// What is wrong with it.
        error: tokenizer::Error,
    },
    /// The file's model, named.
    #[error("{file}: {error}")]
    Load {
        /// The file as the caller named it.
        file: String,
        /// What is wrong with it.
        error: Box<LoadError>,
    },
    /// Vocabulary and model disagree.
    #[error(
        "{file}: {tokens} tokens in the vocabulary, {vocab_size} in the model: the file \
         contradicts itself, download it again or convert it again"
    )]
    Vocabulary {
        /// The file as the caller named it.
        file: String,
        /// Tokens that the tokenizer knows.
        tokens: usize,
        /// Tokens that the model scores.
        vocab_size: usize,
    },
    /// A prompt needs a control token that the vocabulary lacks.
    #[error(transparent)]
    Prompt(#[from] tokenizer::Error),
    /// No token to start from.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {tokens} tokens, the context {context}: shorten it, or raise the context \
         (--ctx, at most {most} for this model)"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that a sequence may have.
        context: usize,
        /// Tokens that the model allows.
        most: usize,
    },
    /// The memory for sequences cannot hold this one, even alone.
    #[error(
        "a sequence of {tokens} tokens (prompt and answer) takes {} of memory, and sequences may \
         take {}: shorten the prompt, ask for fewer tokens, or raise --kv-memory-mb",
        Size(*needed as u64),
        Size(*budget as u64)
    )]
    Memory {
        /// Tokens of prompt and answer.
        tokens: usize,
        /// Bytes that they take.
        needed: usize,
        /// Bytes that there are.
        budget: usize,
    },
    /// The device's memory is full, though this sequence would have fitted.
    #[error(
        "the device has no memory left for this request ({0}): try again when others have ended, or \
         start with a smaller --kv-memory-mb"
    )]
    OutOfMemory(String),
    /// What restricts the answer.
    #[error(transparent)]
    Guide(#[from] GuideError),
    /// A defect of this program.
    #[error("this program made an error; please report it: {0}")]
    Panicked(String),
    /// The engine is being stopped, and the job had not begun.
    #[error("the server is shutting down")]
    Stopping,
    /// The engine has stopped without an answer.
    #[error("the engine ended before the answer did")]
    Ended,
    /// A forward pass.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// A cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The choice of a token.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The device.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

impl EngineError {
    /// Whether the device has no memory left.
    fn is_out_of_memory(&self) -> bool {
        match self {
            Self::OutOfMemory(_) => true,
            Self::Forward(ForwardError::Device(error))
            | Self::Cache(CacheError::Device(error))
            | Self::Device(error) => is_out_of_memory(error),
            _ => false,
        }
    }

    /// As a request's caller hears it.
    fn told(self) -> Self {
        match self.is_out_of_memory() {
            true if !matches!(self, Self::OutOfMemory(_)) => {
                // A trace of the place may follow.
                let words = self.to_string();
                Self::OutOfMemory(words.lines().next().unwrap_or_default().to_owned())
            }
            _ => self,
        }
    }
}

/// One model on one device; owned by one thread.
pub struct Engine {
    model: Model,
    tokenizer: Tokenizer,
    workspace: Workspace,
    context: usize,
}

impl Engine {
    /// Opens a GGUF file and loads its model and vocabulary.
    ///
    /// # Errors
    /// A file that is missing, damaged, of another model, or of a type that is not supported.
    pub fn load(file: impl AsRef<Path>, device: &Device) -> Result<Self, EngineError> {
        let path = file.as_ref();
        Self::from_gguf(&Gguf::open(path)?, &path.display().to_string(), device)
    }

    /// Loads the model and vocabulary of a GGUF that is open already; `name` is what errors call
    /// it.
    ///
    /// # Errors
    /// A file that is damaged, of another model, or of a type that is not supported.
    pub fn from_gguf(gguf: &Gguf, name: &str, device: &Device) -> Result<Self, EngineError> {
        let file = name.to_owned();
        let model = Model::load(gguf, device)
            .map_err(|error| EngineError::Load { file: file.clone(), error: Box::new(error) })?;
        let tokenizer = Tokenizer::from_gguf(gguf)
            .map_err(|error| EngineError::Tokenizer { file: file.clone(), error })?;
        let (tokens, vocab_size) = (tokenizer.vocab_size(), model.config().vocab_size);
        if tokens != vocab_size {
            return Err(EngineError::Vocabulary { file, tokens, vocab_size });
        }
        Ok(Self::new(model, tokenizer))
    }

    /// An engine for a model that is already loaded.
    pub fn new(model: Model, tokenizer: Tokenizer) -> Self {
        let workspace = Workspace::new(model.device());
        let context = model.config().context_length;
        Self { model, tokenizer, workspace, context }
    }

    /// The same with sequences of at most `tokens` tokens; the model's own limit holds too.
    #[must_use]
    pub fn with_context(mut self, tokens: usize) -> Self {
        self.set_context(tokens);
        self
    }

    /// Sequences may have at most `tokens` tokens from now on; the model's own limit holds too.
    pub fn set_context(&mut self, tokens: usize) {
        self.context = tokens.min(self.model.config().context_length);
    }

    /// Tokens that a sequence may have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Where a step's intermediate values live.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// A sequence without tokens.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn new_sequence(&self) -> Result<Sequence, EngineError> {
        Sequence::new(self)
    }
}
