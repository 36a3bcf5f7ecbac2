//! Weights from their published form, or from another GGUF file, to a GGUF file in the types of a
//! recipe.
//!
//! A [`Layout`] says which tensors a model has and where a checkpoint keeps them, a [`Recipe`] says
//! which type each gets, an [`Input`] reads values, and [`quantize`] brings them together, tensor by
//! tensor and on all cores.

mod checkpoint;
mod error;
mod float8;
mod gguf_source;
mod hf_config;
mod hf_tokenizer;
mod imatrix;
mod input;
mod journal;
mod layout;
mod plan;
mod recipe;
mod safetensors;
mod synth;
mod write;

pub use error::QuantizeError;
pub use imatrix::{Collector, Imatrix, ImatrixEntry};
pub use input::Input;
pub use layout::{Layout, Role, Slot};
pub use plan::{Options, Plan};
pub use recipe::{LayerType, Recipe};
pub use synth::{synth, Synth};
pub use write::{quantize, Progress};
