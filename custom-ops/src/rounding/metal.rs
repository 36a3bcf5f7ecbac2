//! The launches.

use candle_core::{bail, Result};

use super::{block_of, Form, Round, FP8_BLOCK};
use crate::device::metal::{library, parameters, Launch, Library, Output};

/// Values of a row that a SIMD-group has room for.
const MOST_DIM: usize = 1024;

parameters! {
    struct Kv {
        dim: u32,
        nope: u32,
        block: u32,
    }
}

parameters! {
    struct Fp4 {
        dim: u32,
        scale: f32,
    }
}

fn kernels() -> &'static Library {
    library!()
}

impl Round {
    pub(super) fn on_metal(&self, x: &Output) -> Result<()> {
        let (op, dim) = (self.name, self.dim);
        let rows = x.elements / dim.max(1);
        match self.form {
            Form::Kv { nope } => {
                let block = block_of(nope, FP8_BLOCK);
                let params = Kv { dim: dim as u32, nope: nope as u32, block: block as u32 };
                Launch::new(op, kernels(), op, &params).write(x).run(
                    &x.gpu,
                    [nope / block + usize::from(nope < dim), rows, 1],
                    32,
                )
            }
            Form::HadamardFp4 => {
                if dim > MOST_DIM {
                    bail!("{op}: Metal kernels have rows of up to {MOST_DIM} values, not {dim}");
                }
                let params = Fp4 { dim: dim as u32, scale: (dim as f32).powf(-0.5) };
                Launch::new(op, kernels(), op, &params).write(x).run(&x.gpu, [rows, 1, 1], 32)
            }
        }
    }
}
