//! RMS norm with a learned weight.

use candle_core::{Result, Tensor};
use candle_ds4_ops::{self as ops, Workspace};

use crate::weights::{self, Weights};

/// `y = weight ⊙ x / rms(x)`, over the last axis.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Loads the weight of `len` values.
    ///
    /// # Errors
    /// The tensor is missing or of the wrong shape or type.
    pub fn load(weights: &Weights, name: &str, len: usize, eps: f64) -> weights::Result<Self> {
        Ok(Self { weight: weights.vector(name, len)?, eps })
    }

    /// `[len]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Added to the mean square.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// As `xs`.
    ///
    /// # Errors
    /// If rows have another length than the weight.
    pub fn forward(&self, xs: &Tensor, ws: &Workspace) -> Result<Tensor> {
        ops::rms_norm(xs, Some(&self.weight), self.eps, ws)
    }
}
