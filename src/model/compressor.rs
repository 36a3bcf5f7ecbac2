//! Windows of tokens become rows that are kept for ever.

use candle_core::{Result, Tensor};
use candle_ds4_ops::{self as ops, PoolState, Pooling, RopeTable, Turn};

use super::{Linear, RmsNorm, Step};
use crate::cache::CompressorCache;
use crate::config::Config;
use crate::weights::{self, Weights};

/// The rounding that a row gets before it is kept.
#[derive(Clone, Copy, Debug)]
pub enum Rounding {
    /// None: as in implementations that leave it out.
    Off,
    /// FP8 of the channels that do not turn, BF16 of the others: rows that are attended to.
    Fp8 {
        /// How many do not turn.
        nope_dim: usize,
    },
    /// Hadamard, then FP4: the indexer's keys and queries.
    HadamardFp4,
}

impl Rounding {
    /// Rounds rows in place.
    ///
    /// # Errors
    /// If the rows do not have the channels.
    pub fn apply(self, rows: &Tensor) -> Result<()> {
        match self {
            Self::Off => Ok(()),
            Self::Fp8 { nope_dim } => ops::kv_round_trip(rows, nope_dim),
            Self::HadamardFp4 => ops::hadamard_fp4_round_trip(rows),
        }
    }
}

/// Pools each window of tokens into one row, with learned weights per channel.
#[derive(Debug)]
pub struct Compressor {
    values: Linear,
    gates: Linear,
    /// Bias of the gates by place in the window ("ape").
    bias: Tensor,
    norm: RmsNorm,
    pooling: Pooling,
    rope: RopeTable,
    rounding: Rounding,
}

impl Compressor {
    /// Loads `{prefix}_kv`, `_gate`, `_ape` and `_norm`, for rows of `dim` values.
    ///
    /// # Errors
    /// A tensor that is missing or of the wrong shape or type.
    pub fn load(
        weights: &Weights,
        prefix: &str,
        dim: usize,
        pooling: Pooling,
        rope: &RopeTable,
        rounding: Rounding,
        config: &Config,
    ) -> weights::Result<Self> {
        let name = |part: &str| format!("{prefix}_{part}.weight");
        let width = pooling.width(dim);
        let hidden = config.hidden_size;
        Ok(Self {
            values: Linear::new(weights.matrix(&name("kv"), width, hidden)?),
            gates: Linear::new(weights.matrix(&name("gate"), width, hidden)?),
            bias: weights.table(&name("ape"), pooling.ratio, width)?,
            norm: RmsNorm::load(weights, &name("norm"), dim, config.norm_eps)?,
            pooling,
            rope: rope.clone(),
            rounding,
        })
    }

    /// Appends to each sequence's cache the rows whose windows end in this batch.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device has no memory left.
    pub fn append(
        &self,
        xs: &Tensor,
        step: Step<'_>,
        caches: Vec<&mut CompressorCache>,
    ) -> Result<()> {
        let Step { batch, ws, .. } = step;
        let [values, gates] = Linear::forward_all([&self.values, &self.gates], xs, ws)?;
        let states: Vec<&PoolState> = caches.iter().map(|cache| &cache.state).collect();
        let rows = ops::pool(&values, &gates, &self.bias, &states, batch, self.pooling, ws)?;
        let rows = self.norm.forward(&rows, ws)?;
        // A row stands at its window's first token.
        let positions = batch.window_starts(self.pooling.ratio)?;
        ops::rope(&rows, &self.rope, &positions, Turn::Forward)?;
        self.rounding.apply(&rows)?;

        let past_values = states.iter().map(|state| &state.values).collect();
        let past_gates = states.iter().map(|state| &state.gates).collect();
        ops::write_rings(&[(past_values, &values), (past_gates, &gates)], batch)?;
        let lists = caches.into_iter().map(|cache| &mut cache.rows).collect();
        ops::append_rows(lists, &rows, batch, self.pooling.ratio)
    }
}
