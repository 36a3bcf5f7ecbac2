//! The subcommands of `ds4`.

pub mod imatrix;
pub mod inspect;
pub mod meter;
pub mod quantize;
pub mod synth;
