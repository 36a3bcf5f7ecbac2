//! A matrix in whatever format the file has it.

use candle_core::{Result, Tensor};
use candle_ds4_ops::{self as ops, Given, Matrix, Workspace};

/// `y = W x` without bias; hides the format of `W` and the device.
#[derive(Debug)]
pub struct Linear {
    weight: Matrix,
}

impl Linear {
    /// A layer with this weight `[out, in]`.
    pub fn new(weight: Matrix) -> Self {
        Self { weight }
    }

    /// `[tokens, in]` → `[tokens, out]`.
    ///
    /// # Errors
    /// If the width of `xs` is not `in`.
    pub fn forward(&self, xs: &Tensor, ws: &Workspace) -> Result<Tensor> {
        ops::matmul(xs, &self.weight, ws)
    }

    /// [`Linear::forward`], left to whoever takes the result in.
    pub fn of(&self, xs: Tensor) -> Given {
        Given::Product { x: xs, w: self.weight.clone() }
    }

    /// [`Linear::forward`] into `out` `[tokens, out]`, which may be some rows of a larger tensor.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_into(&self, xs: &Tensor, out: &Tensor, ws: &Workspace) -> Result<()> {
        ops::matmul_into(xs, &self.weight, out, ws)
    }

    /// Several layers on the same `xs`, which a GPU reads together.
    ///
    /// # Errors
    /// If the width of `xs` is not `in` of each.
    pub fn forward_all(layers: &[&Self], xs: &Tensor, ws: &Workspace) -> Result<Vec<Tensor>> {
        let weights: Vec<&Matrix> = layers.iter().map(|layer| &layer.weight).collect();
        ops::matmuls(xs, &weights, ws)
    }

    /// As [`Linear::forward`] for a block-diagonal weight kept as `[groups · out, in]`: slice `g` of `xs`
    /// `[tokens, groups · in]` goes through rows `g · out ..` → `[tokens, groups · out]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_grouped(&self, xs: &Tensor, groups: usize, ws: &Workspace) -> Result<Tensor> {
        ops::grouped_matmul(xs, &self.weight, groups, ws)
    }

    /// The weight.
    pub fn weight(&self) -> &Matrix {
        &self.weight
    }
}
