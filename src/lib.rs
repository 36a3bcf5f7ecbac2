//! candle-ds4
#![deny(missing_docs)]

pub use candle_core as candle;
pub use candle_ds4_ops as ops;

pub mod cache;
pub mod cli;
pub mod config;
pub mod engine;
pub mod gguf;
pub mod model;
pub mod prompt;
pub mod sample;
pub mod tokenizer;
pub mod weights;
