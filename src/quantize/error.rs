//! Why a file could not be quantised.

use std::path::PathBuf;

use crate::config::ConfigError;
use crate::gguf;

/// Why a file could not be quantised.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The GGUF file that is read or written.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// The model's metadata.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file could not be read or written.
    #[error("{}: cannot {action}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        error: std::io::Error,
    },
    /// A file of the input is damaged, or not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor of the input is missing, of the wrong shape or type, or unknown.
    #[error("{}: tensor {tensor}: {problem}", path.display())]
    Tensor {
        /// The file, or the folder of a checkpoint.
        path: PathBuf,
        /// The tensor as the input names it.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The recipe cannot be applied.
    #[error("{0}")]
    Recipe(String),
    /// The importance matrix does not fit the model.
    #[error("importance matrix: {0}")]
    Imatrix(String),
    /// The result would not fit the disk.
    #[error(
        "{}: {needed} bytes are still to be written and {free} are free: make room, or write to \
         another disk", path.display()
    )]
    Space {
        /// The output file.
        path: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes free for this user.
        free: u64,
    },
    /// The caller asked to stop.
    #[error("stopped; the same command goes on where this one was")]
    Stopped,
}

impl QuantizeError {
    pub(super) fn io(
        path: impl Into<PathBuf>,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |error| Self::Io { path, action, error }
    }

    pub(super) fn file(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::File { path: path.into(), problem: problem.into() }
    }

    pub(super) fn tensor(
        path: impl Into<PathBuf>,
        tensor: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::Tensor { path: path.into(), tensor: tensor.into(), problem: problem.into() }
    }
}

/// The outcome of a step.
pub(super) type Result<T> = std::result::Result<T, QuantizeError>;
