//! The launch.

use candle_core::{bail, Result};

use super::Embed;
use crate::device::metal::{library, parameters, Launch, Output};

const THREADS: usize = 128;

parameters! {
    struct Params {
        hidden: u32,
        streams: u32,
        vocab: u32,
        row_bytes: u32,
    }
}

impl Embed<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let table = self.table;
        table.check_metal_columns("embed")?;
        let tokens = self.ids.dims1()?;
        if table.rows() == 0 && tokens > 0 {
            bail!("embed: {tokens} tokens of an empty table");
        }
        let params = Params {
            hidden: table.cols() as u32,
            streams: self.streams as u32,
            vocab: table.rows() as u32,
            row_bytes: table.row_bytes() as u32,
        };
        let kernel = format!("embed_{}", table.format().kernel_name());
        Launch::new("embed", library!(), kernel, &params)
            .read_u32(self.ids)?
            .weights(table.metal("embed")?, tokens * table.row_bytes())
            .write(out)
            .run(&out.gpu, [tokens, 1, 1], THREADS)
    }
}
