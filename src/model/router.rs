//! Which experts a token goes to.

use candle_core::{Result, Tensor};
use candle_ds4_ops::{self as ops, Choice, Matrix};

use super::Step;
use crate::config::Config;
use crate::weights::{self, Weights};

/// Scores all experts and picks a few: by score, or in the first layers by token id.
#[derive(Debug)]
pub struct Router {
    gate: Matrix,
    rule: Rule,
    scale: f32,
}

#[derive(Debug)]
enum Rule {
    TopK { k: usize, bias: Tensor },
    Hash { table: Tensor },
}

impl Router {
    /// Loads layer `layer`.
    ///
    /// # Errors
    /// A tensor that is missing or of the wrong shape or type.
    pub fn load(weights: &Weights, layer: usize, config: &Config) -> weights::Result<Self> {
        let moe = &config.moe;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let gate = weights.matrix(&name("ffn_gate_inp.weight"), moe.experts, config.hidden_size)?;
        let rule = if layer < moe.hash_layers {
            let name = name("ffn_gate_tid2eid.weight");
            let table = weights.indices(&name, config.vocab_size, moe.active, moe.experts)?;
            Rule::Hash { table }
        } else {
            let bias = weights.vector(&name("exp_probs_b.bias"), moe.experts)?;
            Rule::TopK { k: moe.active, bias }
        };
        Ok(Self { gate, rule, scale: moe.scale })
    }

    /// What scores the experts, `[experts, hidden]`.
    pub fn gate(&self) -> &Matrix {
        &self.gate
    }

    /// How this step's experts are chosen by those scores.
    pub fn choice<'a>(&'a self, step: Step<'a>) -> Choice<'a> {
        match &self.rule {
            Rule::TopK { k, bias } => Choice::TopK { k: *k, bias: Some(bias) },
            Rule::Hash { table } => Choice::Hash { table, tokens: step.ids },
        }
    }

    /// What the weights of a token's experts add up to.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Experts `[tokens, k]` u32 and their weights `[tokens, k]` f32.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn route(&self, xs: &Tensor, step: Step<'_>) -> Result<(Tensor, Tensor)> {
        let logits = ops::matmul(xs, &self.gate, step.ws)?;
        ops::route(&logits, self.choice(step), self.scale, step.ws)
    }
}
