//! DeepSeek V4 Flash on one machine, on the [candle](candle_core) tensor framework.
//!
//! # The journey of a prompt
//!
//! A [`hub::Name`] becomes a file on this machine, fetched and verified if need be.
//! A [`gguf::Gguf`] file is mapped into memory and its header checked. [`config::Config`] makes
//! numbers that can be trusted out of its metadata; [`weights::Weights`] hands out its tensors by
//! name, with shape and type checked. [`model::Model`] is built from both.
//!
//! [`prompt::Conversation`] renders messages to text that knows which of its stretches are control
//! tokens; [`tokenizer::Tokenizer`] turns it into ids. What a user writes can never become a
//! control token.
//!
//! [`engine::Engine`] finds how much of the prompt is known from earlier ones, in memory or on disk,
//! runs the rest through [`model::Model::forward`] in chunks, and then token after token;
//! [`engine::Service`] does that for many jobs at a time, in one pass for all. In the model, a
//! token is four residual streams, mixed before and after each sub-layer
//! ([`model::HyperConnection`]). [`model::Attention`] sees the last 128 tokens and, in most layers,
//! rows that a [`model::Compressor`] has pooled from 4 or 128 tokens each; where there are too many
//! of the former, the [`model::Indexer`] picks. [`model::Experts`] runs the few of many experts
//! that the [`model::Router`] names. What is remembered of a sequence lives in its
//! [`cache::Cache`].
//!
//! [`sample::Sampler`] chooses the next token from the logits; [`prompt::Reader`] makes text,
//! reasoning and tool calls of the ids as they come.
//!
//! Each arithmetic step is an op of [`candle_ds4_ops`], which knows devices, block formats and
//! kernels; nothing above it does.
//!
//! Imports point one way: which room imports which is a table in `docs/architecture.md`, and a test.
#![deny(missing_docs)]

pub use candle_core as candle;
pub use candle_ds4_ops as ops;

pub mod cache;
pub mod cli;
pub mod config;
pub mod demo;
pub mod engine;
pub mod gguf;
pub mod guide;
pub mod hub;
pub mod model;
pub mod prompt;
pub mod quantize;
pub mod sample;
pub mod server;
pub mod size;
mod system;
pub mod tokenizer;
pub mod weights;

/// The README's program compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
