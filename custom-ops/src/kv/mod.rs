//! Where a sequence's state lives on the device: rings for what is soon overwritten, pages for
//! what is only appended.

mod packed;
mod ring;
mod rows;

pub use packed::{NotARow, NotPackable, RowFormat};
pub use ring::Ring;
pub(crate) use rows::HostRows;
pub use rows::{Rows, PAGE_TOKENS};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

use crate::device::{host, host_mut};

/// Copies `source` over a destination of the same element count.
struct Copy<'a> {
    source: &'a Tensor,
}

impl InplaceOp1 for Copy<'_> {
    fn name(&self) -> &'static str {
        "kv_copy"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let out = host_mut::<f32>(self.name(), out, layout)?;
        let source = host::<f32>(self.name(), self.source)?;
        if out.len() != source.len() {
            candle_core::bail!("kv_copy: {} values into {}", source.len(), out.len());
        }
        out.copy_from_slice(&source);
        Ok(())
    }
}
