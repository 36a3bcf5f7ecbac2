//! The launches.

use candle_core::{bail, Result};

use super::{Copy, Pack, RowFormat};
use crate::device::metal::{library, parameters, Launch, Library, Output};

const THREADS: usize = 256;

parameters! {
    struct CopyParams {
        count: u32,
    }
}

parameters! {
    struct PackParams {
        width: u32,
        nope: u32,
        block: u32,
        scales_at: u32,
        row_bytes: u32,
    }
}

fn kernels() -> &'static Library {
    library!()
}

impl Copy<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let count = self.source.elem_count();
        if count != out.elements {
            bail!("kv_copy: {count} values into {}", out.elements);
        }
        Launch::new("kv_copy", kernels(), "kv_copy", &CopyParams { count: count as u32 })
            .read(self.source)?
            .write(out)
            .run(&out.gpu, [count.div_ceil(THREADS), 1, 1], THREADS)
    }
}

impl Pack<'_> {
    /// On the CPU a row that its format cannot hold is an error. Here it becomes the nearest that
    /// can be held: rows come from the rounding kernels, and nobody waits for an answer.
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let (width, row_bytes) = (self.format.width(), self.format.row_bytes());
        let rows = self.source.elem_count() / width.max(1);
        if rows * row_bytes != out.elements {
            bail!("kv_pack: {rows} rows into {} bytes", out.elements);
        }
        let (kernel, nope, block) = match self.format {
            RowFormat::Fp8 { nope, .. } => ("kv_pack_fp8", nope, self.format.block()),
            // A width that is odd would share a byte between two rows' ends.
            RowFormat::Fp4 { width } if width % 2 == 0 => {
                ("kv_pack_fp4", width, self.format.block())
            }
            other => bail!("kv_pack: no Metal kernel packs {other:?}"),
        };
        let params = PackParams {
            width: width as u32,
            nope: nope as u32,
            block: block as u32,
            scales_at: self.format.scales_at() as u32,
            row_bytes: row_bytes as u32,
        };
        Launch::new("kv_pack", kernels(), kernel, &params).read(self.source)?.write(out).run(
            &out.gpu,
            [rows, 1, 1],
            32,
        )
    }
}
