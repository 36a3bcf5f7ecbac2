//! The launches. Few tokens: gate and up, down. Many: grouping by expert, tiles, a sum.

use candle_core::{bail, DType, Result, Tensor};

use super::{Experts, Mlp};
use crate::device::metal::{library, parameters, Launch, Library, Output};
use crate::device::{on_metal, Workspace};
use crate::matmul::{METAL_TILE as TILE, METAL_TILE_THREADS as TILE_THREADS};
use crate::Format;

/// Rows of a threadgroup for few tokens: one for each SIMD-group.
const ROWS: usize = 4;
const THREADS: usize = 128;
const GROUP_THREADS: usize = 1024;
/// Tokens up to which every pair reads its expert on its own.
const FEW_TOKENS: usize = 8;

parameters! {
    struct Params {
        tokens: u32,
        slots: u32,
        experts: u32,
        hidden: u32,
        inter: u32,
        common: u32,
        clamp: f32,
        add: u32,
        in_bytes: u32,
        out_bytes: u32,
        common_in_bytes: u32,
        common_out_bytes: u32,
    }
}

parameters! {
    struct Grouping {
        pairs: u32,
        experts: u32,
        tiles: u32,
    }
}

fn kernels() -> &'static Library {
    library!()
}

/// What is computed on the way; empty on the CPU.
pub(super) struct Scratch {
    /// Inner activations of each pair, and of the shared expert of each token.
    inner: Tensor,
    common: Tensor,
    /// Pairs by expert, tiles of them, and each pair's product.
    order: Tensor,
    tiles: Tensor,
    terms: Tensor,
    most_tiles: usize,
}

impl Scratch {
    pub(super) fn new(
        routed: Mlp,
        ids: &Tensor,
        shared: Option<Mlp>,
        ws: &Workspace,
    ) -> Result<Self> {
        let mut sizes = [1; 5];
        let (tokens, slots) = ids.dims2()?;
        let pairs = tokens * slots;
        // Every expert may end with a tile that is not full.
        let most_tiles = (pairs / TILE[1] + routed.gate.stack()).min(pairs.max(1));
        if on_metal(ws.device()) {
            let common = shared.map_or(0, |mlp| mlp.gate.rows());
            sizes[0] = pairs * routed.gate.rows();
            sizes[1] = tokens * common;
            if tokens > FEW_TOKENS {
                sizes[2] = pairs;
                sizes[3] = 3 * most_tiles;
                sizes[4] = pairs * routed.gate.cols();
            }
        }
        let [inner, common, order, tiles, terms] = sizes;
        Ok(Self {
            inner: ws.f32(inner)?,
            common: ws.f32(common)?,
            order: ws.u32(order)?,
            tiles: ws.u32(tiles)?,
            terms: ws.f32(terms)?,
            most_tiles,
        })
    }
}

impl Experts<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        for mlp in [Some(self.routed), self.shared].into_iter().flatten() {
            for matrix in [mlp.gate, mlp.up, mlp.down] {
                matrix.check_metal_columns("experts")?;
            }
            if mlp.gate.format() != mlp.up.format() {
                let (gate, up) = (mlp.gate.format(), mlp.up.format());
                bail!("experts: Metal kernels have gate and up in one format, not {gate} and {up}");
            }
        }
        match self.x.dim(0)? {
            0 => Ok(()),
            1..=FEW_TOKENS => self.few(out),
            _ => self.many(out),
        }
    }

    /// Of the routed experts, the shared one, or both.
    fn params(&self, routed: bool, shared: bool, add: bool) -> Result<Params> {
        let (tokens, hidden) = self.x.dims2()?;
        let shared = self.shared.filter(|_| shared);
        Ok(Params {
            tokens: tokens as u32,
            slots: if routed { self.ids.dim(1)? as u32 } else { 0 },
            experts: self.routed.gate.stack() as u32,
            hidden: hidden as u32,
            inter: self.routed.gate.rows() as u32,
            common: shared.map_or(0, |mlp| mlp.gate.rows()) as u32,
            clamp: self.clamp,
            add: u32::from(add),
            in_bytes: self.routed.gate.row_bytes() as u32,
            out_bytes: self.routed.down.row_bytes() as u32,
            common_in_bytes: shared.map_or(0, |mlp| mlp.gate.row_bytes()) as u32,
            common_out_bytes: shared.map_or(0, |mlp| mlp.down.row_bytes()) as u32,
        })
    }

    fn few(&self, out: &Output) -> Result<()> {
        let shared = self.shared;
        let routed = self.ids.dim(1)? > 0;
        let pair = |matrix: fn(Mlp<'_>) -> Format| {
            (matrix(self.routed), shared.map_or(matrix(self.routed), matrix))
        };
        let gates = pair(|mlp| mlp.gate.format());
        let downs = pair(|mlp| mlp.down.format());
        if together(gates) {
            self.inner(out, gates, self.params(true, true, false)?)?;
        } else {
            self.inner(out, (gates.0, gates.0), self.params(true, false, false)?)?;
            self.inner(out, (gates.1, gates.1), self.params(false, true, false)?)?;
        }
        if together(downs) {
            return self.down(out, downs, self.params(true, true, false)?);
        }
        self.down(out, (downs.0, downs.0), self.params(true, false, false)?)?;
        self.down(out, (downs.1, downs.1), self.params(false, true, routed)?)
    }

    /// Bytes that the chosen experts and the shared one have, of `matrices` of each.
    fn bytes(&self, params: &Params, matrix: fn(&Mlp<'_>) -> usize) -> usize {
        let pairs = (params.tokens * params.slots) as usize;
        let one = matrix(&self.routed) / self.routed.gate.stack().max(1);
        let shared = self.shared.filter(|_| params.common > 0);
        pairs * one + shared.map_or(0, |mlp| params.tokens as usize * matrix(&mlp))
    }

    fn inner(&self, out: &Output, formats: (Format, Format), params: Params) -> Result<()> {
        let common = self.shared.unwrap_or(self.routed);
        let rows = if params.slots > 0 { params.inter } else { 0 }.max(params.common) as usize;
        let slots = params.slots as usize + usize::from(params.common > 0);
        let bytes = self.bytes(&params, |mlp| mlp.gate.byte_len() + mlp.up.byte_len());
        Launch::new("experts", kernels(), name("inner", formats), &params)
            .weights(self.routed.gate.metal("experts")?, bytes)
            .bind(self.routed.up.metal("experts")?)
            .bind(common.gate.metal("experts")?)
            .bind(common.up.metal("experts")?)
            .read(self.x)?
            .read_u32(self.ids)?
            .read(self.weights)?
            .write_tensor(&self.scratch.inner, DType::F32)?
            .write_tensor(&self.scratch.common, DType::F32)?
            .run(&out.gpu, [rows.div_ceil(ROWS), slots, params.tokens as usize], THREADS)
    }

    fn down(&self, out: &Output, formats: (Format, Format), params: Params) -> Result<()> {
        let common = self.shared.unwrap_or(self.routed);
        let bytes = self.bytes(&params, |mlp| mlp.down.byte_len());
        let groups = [(params.hidden as usize).div_ceil(ROWS), params.tokens as usize, 1];
        Launch::new("experts", kernels(), name("down", formats), &params)
            .weights(self.routed.down.metal("experts")?, bytes)
            .bind(common.down.metal("experts")?)
            .read(&self.scratch.inner)?
            .read(&self.scratch.common)?
            .read_u32(self.ids)?
            .write(out)
            .run(&out.gpu, groups, THREADS)
    }

    fn many(&self, out: &Output) -> Result<()> {
        let Scratch { inner, common, order, tiles, terms, most_tiles } = &self.scratch;
        let params = self.params(true, false, self.shared.is_some())?;
        let tokens = params.tokens as usize;
        let (hidden, experts) = (params.hidden as usize, params.experts as usize);
        if experts > GROUP_THREADS {
            bail!("experts: Metal kernels have up to {GROUP_THREADS} experts, not {experts}");
        }
        if let Some(shared) = self.shared {
            let params = self.params(false, true, false)?;
            // The shared expert's dimensions in the places of a routed one's.
            let params = Params {
                inter: params.common,
                in_bytes: params.common_in_bytes,
                out_bytes: params.common_out_bytes,
                ..params
            };
            let tiles = tokens.div_ceil(TILE[1]);
            self.inner_tiles(out, shared, params, false, tiles, common)?;
            let rows = hidden.div_ceil(TILE[0]);
            let kernel = format!("experts_down_tiles_{}", shared.down.format().kernel_name());
            Launch::new("experts", kernels(), kernel, &params)
                .constants(&[false])
                .weights(shared.down.metal("experts")?, tiles * shared.down.byte_len())
                .read(common)?
                .read_u32(order)?
                .read_u32(&self.scratch.tiles)?
                .write(out)
                .run(&out.gpu, [rows, tiles, 1], TILE_THREADS)?;
        }
        let grouping = Grouping {
            pairs: params.tokens * params.slots,
            experts: params.experts,
            tiles: *most_tiles as u32,
        };
        Launch::new("experts", kernels(), "experts_group", &grouping)
            .constants(&[true])
            .read_u32(self.ids)?
            .write_tensor(order, DType::U32)?
            .write_tensor(tiles, DType::U32)?
            .run(&out.gpu, [1, 1, 1], GROUP_THREADS)?;
        self.inner_tiles(out, self.routed, params, true, *most_tiles, inner)?;
        let kernel = format!("experts_down_tiles_{}", self.routed.down.format().kernel_name());
        Launch::new("experts", kernels(), kernel, &params)
            .constants(&[true])
            .weights(self.routed.down.metal("experts")?, self.routed.down.byte_len())
            .read(inner)?
            .read_u32(order)?
            .read_u32(tiles)?
            .write_tensor(terms, DType::F32)?
            .run(&out.gpu, [hidden.div_ceil(TILE[0]), *most_tiles, 1], TILE_THREADS)?;
        Launch::new("experts", kernels(), "experts_sum", &params)
            .constants(&[true])
            .read(terms)?
            .write(out)
            .run(&out.gpu, [hidden.div_ceil(TILE_THREADS), tokens, 1], TILE_THREADS)
    }

    fn inner_tiles(
        &self,
        out: &Output,
        mlp: Mlp,
        params: Params,
        routed: bool,
        tiles: usize,
        inner: &Tensor,
    ) -> Result<()> {
        let kernel = format!("experts_inner_tiles_{}", mlp.gate.format().kernel_name());
        // Half of a tile's rows are gate's, half are up's.
        let rows = (params.inter as usize).div_ceil(TILE[0] / 2);
        let bytes = mlp.gate.byte_len() + mlp.up.byte_len();
        Launch::new("experts", kernels(), kernel, &params)
            .constants(&[routed])
            .weights(mlp.gate.metal("experts")?, bytes)
            .bind(mlp.up.metal("experts")?)
            .read(self.x)?
            .read(self.weights)?
            .read_u32(&self.scratch.order)?
            .read_u32(&self.scratch.tiles)?
            .write_tensor(inner, DType::F32)?
            .run(&out.gpu, [rows, tiles, 1], TILE_THREADS)
    }
}

/// Whether one kernel serves routed and shared experts of these formats.
fn together((routed, shared): (Format, Format)) -> bool {
    let published = [Format::Q2K, Format::Q4K, Format::Iq2Xxs];
    routed == shared || (published.contains(&routed) && shared == Format::Q8_0)
}

fn name(part: &str, (routed, shared): (Format, Format)) -> String {
    format!("experts_{part}_{}_{}", routed.kernel_name(), shared.kernel_name())
}
