//! The way of a sub-layer into and out of the residual streams.

use candle_core::{Result, Tensor};
use candle_ds4_ops::{self as ops, MixParams, Workspace};

use super::Linear;
use crate::config::Config;
use crate::weights::{self, Weights};

/// Manifold-constrained hyper-connection around one sub-layer.
///
/// The residual state is `[tokens, streams, hidden]`; a sub-layer sees one weighted sum of the
/// streams and its result is spread over all of them, while the streams mix among themselves by a
/// doubly stochastic matrix.
#[derive(Debug)]
pub struct HyperConnection {
    projection: Linear,
    scale: Tensor,
    base: Tensor,
    params: MixParams,
}

impl HyperConnection {
    /// Loads `{prefix}_fn`, `_scale` and `_base`.
    ///
    /// # Errors
    /// A tensor that is missing or of the wrong shape or type.
    pub fn load(weights: &Weights, prefix: &str, config: &Config) -> weights::Result<Self> {
        let params = config.hyper_connection;
        let width = params.width();
        let inputs = params.streams * config.hidden_size;
        Ok(Self {
            projection: Linear::new(weights.matrix(&name(prefix, "fn"), width, inputs)?),
            scale: weights.vector(&name(prefix, "scale"), 3)?,
            base: weights.vector(&name(prefix, "base"), width)?,
            params,
        })
    }

    /// The mixing weights that this state asks for, `[tokens, 2n + n²]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn mix(&self, state: &Tensor, ws: &Workspace) -> Result<Tensor> {
        let raw = self.projection.forward(&state.flatten_from(1)?, ws)?;
        ops::hyper_mix(state, &raw, &self.scale, &self.base, self.params, ws)
    }
}

/// The last collapse of the streams, before the output norm: gates only, nothing flows back.
#[derive(Debug)]
pub struct HyperHead {
    projection: Linear,
    scale: Tensor,
    base: Tensor,
    params: MixParams,
}

impl HyperHead {
    /// Loads `{prefix}_fn`, `_scale` and `_base`.
    ///
    /// # Errors
    /// A tensor that is missing or of the wrong shape or type.
    pub fn load(weights: &Weights, prefix: &str, config: &Config) -> weights::Result<Self> {
        let params = config.hyper_connection;
        let inputs = params.streams * config.hidden_size;
        Ok(Self {
            projection: Linear::new(weights.matrix(&name(prefix, "fn"), params.streams, inputs)?),
            scale: weights.vector(&name(prefix, "scale"), 1)?,
            base: weights.vector(&name(prefix, "base"), params.streams)?,
            params,
        })
    }

    /// `[tokens, streams, hidden]` → `[tokens, hidden]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn collapse(&self, state: &Tensor, ws: &Workspace) -> Result<Tensor> {
        let raw = self.projection.forward(&state.flatten_from(1)?, ws)?;
        let mix = ops::hyper_head_mix(state, &raw, &self.scale, &self.base, self.params, ws)?;
        ops::hyper_collapse(state, &mix, ws)
    }
}

fn name(prefix: &str, part: &str) -> String {
    format!("{prefix}_{part}.weight")
}
