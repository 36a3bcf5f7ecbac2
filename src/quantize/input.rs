//! What is quantised: a GGUF file, or a folder with a checkpoint.

use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::checkpoint::Checkpoint;
use super::error::Result;
use super::gguf_source::GgufSource;
use super::Slot;
use crate::gguf::{Metadata, TensorType};

/// Where values come from. Shapes, types and the presence of every tensor are checked when it is
/// opened; only damaged or vanished data can fail later.
pub(super) trait Source: Send + Sync {
    /// The metadata of the model.
    fn metadata(&self) -> &Metadata;

    /// Decodes rows of one matrix of a tensor.
    fn rows(&self, slot: &Slot, slice: usize, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// A table of indices.
    fn indices(&self, slot: &Slot) -> Result<Vec<i32>>;

    /// All bytes of a tensor, if they are in this type already.
    fn unchanged(&self, slot: &Slot, ty: TensorType) -> Option<Bytes>;

    /// The files that values are read from.
    fn files(&self) -> Vec<PathBuf>;

    /// Tensors that are left out.
    fn ignored(&self) -> usize;
}

/// A model to be quantised.
pub struct Input {
    pub(super) source: Box<dyn Source>,
}

impl Input {
    /// Opens a GGUF file, or a folder that holds a checkpoint with DeepSeek's own names and types or
    /// with those of `transformers`. Only headers are read.
    ///
    /// # Errors
    /// What is missing, damaged, unknown or of the wrong shape; the message names file and tensor.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let source: Box<dyn Source> = match path.is_dir() {
            true => Box::new(Checkpoint::open(path)?),
            false => Box::new(GgufSource::open(path)?),
        };
        Ok(Self { source })
    }

    /// The metadata that the model has as a GGUF file.
    pub fn metadata(&self) -> &Metadata {
        self.source.metadata()
    }

    /// Tensors of the input that a GGUF file of the main model does not have: the draft head's.
    pub fn ignored(&self) -> usize {
        self.source.ignored()
    }
}
