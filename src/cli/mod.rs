//! The subcommands of `ds4`.

pub mod inspect;
pub mod logits;
pub mod perplexity;
