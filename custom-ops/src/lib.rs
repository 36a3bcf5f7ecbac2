#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod attention;
mod blocks;
mod compressor;
pub mod device;
mod dot;
mod embed;
mod experts;
mod hyper_connection;
mod indexer;
mod kv;
mod likeliest;
mod matmul;
mod matrix;
mod ragged;
#[cfg(cuda_kernels)]
mod repack;
mod rms_norm;
mod rope;
mod rounding;
mod router;
mod settle;
mod shortlist;

pub use attention::{sink_attention, turned_attention, Attention, Compressed, Selection};
pub use blocks::Format;
pub use compressor::{pool, PoolState, Pooling};
pub use device::Workspace;
pub use embed::embed;
#[cfg(cuda_kernels)]
pub use experts::ExpertsDown;
pub use experts::{experts, routed_experts, Mlp};
pub use hyper_connection::{
    hyper_collapse, hyper_enter, hyper_expand, hyper_head_mix, hyper_leave, hyper_mix, Due,
    Entrance, Given, MixParams,
};
pub use indexer::{select_rows, select_rows_raw, NO_ROW};
pub use kv::{
    append_rows, write_rings, BytesError, NotARow, NotPackable, Ring, RowFormat, Rows, PAGE_TOKENS,
};
pub use likeliest::likeliest;
pub use matmul::{grouped_matmul, matmul, matmul_into, matmuls};
pub use matrix::Matrix;
pub use ragged::{Ragged, Slice, Span};
pub use rms_norm::{rms_norm, rms_norm_over};
pub use rope::{rope, rope_normed, RopeTable, Turn, Yarn};
pub use rounding::{hadamard_fp4_round_trip, kv_round_trip, Rounding};
pub use router::{route, Choice};
pub use settle::{settle, settle_and_project, Compression, Finish, Settle};
pub use shortlist::{shortlists, Reach, Shortlist};
