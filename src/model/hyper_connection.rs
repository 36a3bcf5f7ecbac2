//! The way of a sub-layer into and out of the residual streams.

use candle_core::{Result, Tensor};
use candle_ds4_ops::{self as ops, Entrance, Matrix, MixParams, Workspace};

use super::{RmsNorm, Streams};
use crate::config::Config;
use crate::weights::{self, Weights};

/// Manifold-constrained hyper-connection around one sub-layer.
///
/// The residual state is `[tokens, streams, hidden]`; a sub-layer sees one weighted sum of the
/// streams and its result is spread over all of them, while the streams mix among themselves by a
/// doubly stochastic matrix.
#[derive(Debug)]
pub struct HyperConnection {
    projection: Matrix,
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
            projection: weights.matrix(&name(prefix, "fn"), width, inputs)?,
            scale: weights.vector(&name(prefix, "scale"), 3)?,
            base: weights.vector(&name(prefix, "base"), width)?,
            params,
        })
    }

    /// What the sub-layer behind `norm` reads, `[tokens, hidden]`; its result is then to be given to the
    /// streams.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn enter(&self, streams: &mut Streams, norm: &RmsNorm, ws: &Workspace) -> Result<Tensor> {
        let Self { projection, scale, base, params } = self;
        let entrance = entrance(projection, scale, base, norm, *params);
        let (xs, mix) = ops::hyper_enter(streams.state(), streams.due(), entrance, ws)?;
        streams.entered(mix);
        Ok(xs)
    }
}

/// The last collapse of the streams, before the output norm: gates only, nothing flows back.
#[derive(Debug)]
pub struct HyperHead {
    projection: Matrix,
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
            projection: weights.matrix(&name(prefix, "fn"), params.streams, inputs)?,
            scale: weights.vector(&name(prefix, "scale"), 1)?,
            base: weights.vector(&name(prefix, "base"), params.streams)?,
            params,
        })
    }

    /// What the output behind `norm` reads, `[tokens, hidden]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn leave(&self, streams: &Streams, norm: &RmsNorm, ws: &Workspace) -> Result<Tensor> {
        let Self { projection, scale, base, params } = self;
        let entrance = entrance(projection, scale, base, norm, *params);
        ops::hyper_leave(streams.state(), streams.due(), entrance, ws)
    }
}

fn entrance<'a>(
    projection: &'a Matrix,
    scale: &'a Tensor,
    base: &'a Tensor,
    norm: &'a RmsNorm,
    params: MixParams,
) -> Entrance<'a> {
    Entrance { projection, scale, base, norm: norm.weight(), norm_eps: norm.eps(), params }
}

fn name(prefix: &str, part: &str) -> String {
    format!("{prefix}_{part}.weight")
}
