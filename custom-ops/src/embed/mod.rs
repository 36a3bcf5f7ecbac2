//! Rows of a table by index.

mod cpu;
#[cfg(cuda_kernels)]
mod cuda;
#[cfg(metal_kernels)]
mod metal;

use candle_core::{bail, CpuStorage, InplaceOp1, Layout, Result, Tensor};

#[cfg(feature = "cuda-emulator")]
use crate::device::cuda::emulating;
#[cfg(cuda_kernels)]
use crate::device::cuda::Target;
use crate::device::{host, host_mut, timed, Workspace};
use crate::Matrix;

/// `out[t, s] = table[ids[t]]` for each of `streams` equal streams `s`.
///
/// Shapes: `ids` `[tokens]` u32 · `table` `[vocab, hidden]` in any block format · result
/// `[tokens, streams, hidden]` f32.
/// Errors: an id that is not below `vocab` (names position and id).
/// Source: hyper-connections start from equal copies of a token's embedding (DeepSeek V4 paper).
pub fn embed(ids: &Tensor, table: &Matrix, streams: usize, ws: &Workspace) -> Result<Tensor> {
    let (stack, vocab, hidden) = (table.stack(), table.rows(), table.cols());
    if stack != 1 {
        bail!("embed: needs a single table, got a stack [{stack}, {vocab}, {hidden}]");
    }
    let out = ws.f32((ids.dims1()?, streams, hidden))?;
    timed(
        &out,
        || Ok(("embed".to_owned(), 0)),
        || out.inplace_op1(&Embed { ids, table, streams }),
    )?;
    Ok(out)
}

struct Embed<'a> {
    ids: &'a Tensor,
    table: &'a Matrix,
    streams: usize,
}

impl InplaceOp1 for Embed<'_> {
    fn name(&self) -> &'static str {
        "embed"
    }

    crate::device::metal_forward!();

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> Result<()> {
        crate::device::metal_emulated!(self, out, layout);
        #[cfg(feature = "cuda-emulator")]
        if emulating() {
            return cuda::embed(self, Target::emulated(out, layout));
        }
        let out = host_mut::<f32>(self.name(), out, layout)?;
        let ids = host::<u32>(self.name(), self.ids)?;
        let vocab = self.table.rows();
        for (position, &id) in ids.iter().enumerate() {
            if id as usize >= vocab {
                bail!("embed: token {position} has id {id}, the table has {vocab} rows");
            }
        }
        let table = self.table.host(self.name())?;
        cpu::embed(&ids, table, self.streams, self.table.cols(), out);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, out: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::embed(self, Target::cuda(out, layout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn each_stream_is_the_row_of_its_token() -> Result<()> {
        let ws = Workspace::new(&Device::Cpu);
        let values = Tensor::arange(0f32, 35.0, &Device::Cpu)?.reshape((5, 7))?;
        let table = Matrix::from_tensor(&values)?;
        let ids = Tensor::new(&[4u32, 0, 4], &Device::Cpu)?;
        let rows = values.index_select(&ids, 0)?.to_vec2::<f32>()?;
        for streams in [1, 2, 4] {
            let out = embed(&ids, &table, streams, &ws)?.to_vec3::<f32>()?;
            for (out, row) in out.iter().zip(&rows) {
                assert_eq!(out, &vec![row.clone(); streams]);
            }
        }
        assert_eq!(embed(&ids.narrow(0, 0, 0)?, &table, 2, &ws)?.dims(), [0, 2, 7]);
        Ok(())
    }

    #[test]
    fn an_id_beyond_the_table_is_named() -> Result<()> {
        let ws = Workspace::new(&Device::Cpu);
        let table =
            Matrix::from_tensor(&Tensor::ones((5, 2), candle_core::DType::F32, ws.device())?)?;
        let ids = Tensor::new(&[4u32, 1, 5], &Device::Cpu)?;
        let error = embed(&ids, &table, 1, &ws).unwrap_err().to_string();
        assert!(error.contains("token 2 has id 5"), "{error}");
        assert!(error.contains("5 rows"), "{error}");
        Ok(())
    }
}
