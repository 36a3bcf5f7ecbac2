//! The feed-forward part: routed experts and one that all tokens share.

use candle_core::{Result, Tensor};
use candle_ds4_ops::{self as ops, Given, Matrix, Mlp};

use super::{Router, Step};
use crate::config::Config;
use crate::weights::{self, Weights};

/// Clamped SwiGLU experts, a few of many for each token, plus the shared one.
#[derive(Debug)]
pub struct Experts {
    router: Router,
    routed: [Matrix; 3],
    shared: [Matrix; 3],
    clamp: f32,
    layer: usize,
}

impl Experts {
    /// Loads layer `layer`.
    ///
    /// # Errors
    /// A tensor that is missing or of the wrong shape or type.
    pub fn load(weights: &Weights, layer: usize, config: &Config) -> weights::Result<Self> {
        let moe = &config.moe;
        let (hidden, width) = (config.hidden_size, moe.width);
        let routed = |part: &str, rows: usize, cols: usize| {
            weights.stack(&format!("blk.{layer}.ffn_{part}_exps.weight"), moe.experts, rows, cols)
        };
        let shared = |part: &str, rows: usize, cols: usize| {
            weights.matrix(&format!("blk.{layer}.ffn_{part}_shexp.weight"), rows, cols)
        };
        let shared_width = width * moe.shared;
        Ok(Self {
            router: Router::load(weights, layer, config)?,
            routed: [
                routed("gate", width, hidden)?,
                routed("up", width, hidden)?,
                routed("down", hidden, width)?,
            ],
            shared: [
                shared("gate", shared_width, hidden)?,
                shared("up", shared_width, hidden)?,
                shared("down", hidden, shared_width)?,
            ],
            clamp: moe.clamp[layer],
            layer,
        })
    }

    /// `[tokens, hidden]` → `[tokens, hidden]`. The last products may be left to the streams.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, xs: &Tensor, step: Step<'_>) -> Result<Given> {
        let [routed, shared] =
            [&self.routed, &self.shared].map(|[gate, up, down]| Mlp { gate, up, down });
        let Self { router, clamp, .. } = self;
        let Some(observer) = step.observer else {
            let (gate, choice, scale) = (router.gate(), router.choice(step), router.scale());
            return ops::routed_experts(
                xs,
                gate,
                choice,
                scale,
                routed,
                Some(shared),
                *clamp,
                step.ws,
            );
        };
        let (ids, weights) = router.route(xs, step)?;
        observer.experts(self.layer, xs, routed, &ids, &weights, *clamp)?;
        ops::experts(xs, routed, &ids, &weights, Some(shared), *clamp, step.ws).map(Given::Value)
    }
}
