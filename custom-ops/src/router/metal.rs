//! The launches: experts and their weights in one.

use candle_core::{bail, DType, Result};

use super::{Choice, Choose};
use crate::device::metal::{library, parameters, Launch, Library, Output};

/// Experts of which a SIMD-group keeps the scores.
const MOST_EXPERTS: usize = 1024;

parameters! {
    struct Params {
        experts: u32,
        k: u32,
        scale: f32,
        tokens_in_table: u32,
    }
}

fn kernels() -> &'static Library {
    library!()
}

impl Choose<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let Self { logits, experts, k, .. } = *self;
        if experts > MOST_EXPERTS {
            bail!("route: Metal kernels have up to {MOST_EXPERTS} experts, not {experts}");
        }
        let params = Params {
            experts: experts as u32,
            k: k as u32,
            scale: self.scale,
            tokens_in_table: match self.choice {
                Choice::Hash { table, .. } => table.dim(0)? as u32,
                Choice::TopK { .. } => 0,
            },
        };
        let launch = match self.choice {
            Choice::TopK { bias, .. } => Launch::new("route", kernels(), "route_top_k", &params)
                .constants(&[bias.is_some()])
                .read(logits)?
                .read(bias.unwrap_or(logits))?,
            Choice::Hash { table, tokens } => {
                if params.tokens_in_table == 0 {
                    bail!("route: a table without tokens");
                }
                Launch::new("route", kernels(), "route_hash", &params)
                    .constants(&[false])
                    .read(logits)?
                    .read_u32(table)?
                    .read_u32(tokens)?
            }
        };
        launch.write(out).write_tensor(self.weights, DType::F32)?.run(
            &out.gpu,
            [logits.dim(0)?, 1, 1],
            32,
        )
    }
}
