//! Where a sequence's state lives on the device: rings for what is soon overwritten, pages for
//! what is only appended. Rows of pages are packed if they were rounded.

mod bytes;
#[cfg(cuda_kernels)]
mod cuda;
mod host;
#[cfg(metal_kernels)]
mod metal;
mod packed;
mod ring;
mod rows;
mod unpack;

pub use bytes::BytesError;
#[cfg(cuda_kernels)]
pub(crate) use cuda::RowsParam;
pub(crate) use host::HostRows;
pub use packed::{NotARow, NotPackable, RowFormat};
pub use ring::{write_rings, Ring};
pub use rows::{append_rows, Rows, PAGE_TOKENS};

/// Pages of a list that launches not yet finished may have written: those of the longest chunk of a
/// prompt that is in flight behind another.
#[cfg(metal_kernels)]
pub(crate) const RECENT_PAGES: usize = 16;

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

    crate::device::metal_forward!();

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, out, layout);
        let out = host_mut::<f32>(self.name(), out, layout)?;
        let source = host::<f32>(self.name(), self.source)?;
        if out.len() != source.len() {
            candle_core::bail!("kv_copy: {} values into {}", source.len(), out.len());
        }
        out.copy_from_slice(&source);
        Ok(())
    }
}

/// Writes the byte form of each row of `source` `[rows, width]` f32 over `[rows, row_bytes]` u8.
struct Pack<'a> {
    source: &'a Tensor,
    format: RowFormat,
}

impl InplaceOp1 for Pack<'_> {
    fn name(&self) -> &'static str {
        "kv_pack"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, out, layout);
        let out = host_mut::<u8>(self.name(), out, layout)?;
        let source = host::<f32>(self.name(), self.source)?;
        let (width, row_bytes) = (self.format.width(), self.format.row_bytes());
        if out.len() / row_bytes != source.len() / width {
            candle_core::bail!("kv_pack: {} values into {} bytes", source.len(), out.len());
        }
        let rows = source.chunks_exact(width).zip(out.chunks_exact_mut(row_bytes));
        for (index, (row, bytes)) in rows.enumerate() {
            if let Err(error) = self.format.pack(row, bytes) {
                candle_core::bail!("kv_pack: row {index}: {error}");
            }
        }
        Ok(())
    }
}
