//! The launches. Few tokens: gate and up, down. Many: grouping by expert, tiles, a sum.

use candle_core::{bail, DType, Result, Tensor};

use super::routed::Routed;
use super::{Experts, Mlp};
use crate::device::metal::{library, parameters, Launch, Library, Output};
use crate::device::{on_metal, Workspace};
use crate::matmul::{METAL_TILE as TILE, METAL_TILE_THREADS as TILE_THREADS};
use crate::router::Choice;
use crate::{Format, Matrix};

/// Rows of a threadgroup for few tokens: one for each SIMD-group.
const ROWS: usize = 4;
const THREADS: usize = 128;
const GROUP_THREADS: usize = 1024;
/// Tokens up to which every pair reads its expert on its own.
const FEW_TOKENS: usize = 8;
/// Rows of a threadgroup that chooses its expert itself, and experts among which it can.
const ROUTED_ROWS: usize = 32;
const ROUTED_EXPERTS: usize = 256;

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
    struct RoutedParams {
        slots: u32,
        experts: u32,
        hidden: u32,
        inter: u32,
        common: u32,
        in_bytes: u32,
        clamp: f32,
        scale: f32,
        tokens_in_table: u32,
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

    fn down(&self, out: &Output, formats: (Format, Format), params: Params) -> Result<()> {
        let Scratch { inner, common, .. } = &self.scratch;
        down(out, formats, params, (self.routed, self.shared), (inner, common, self.ids))
    }

    fn inner(&self, out: &Output, formats: (Format, Format), params: Params) -> Result<()> {
        let common = self.shared.unwrap_or(self.routed);
        let rows = if params.slots > 0 { params.inter } else { 0 }.max(params.common) as usize;
        let slots = params.slots as usize + usize::from(params.common > 0);
        let bytes =
            bytes(&params, self.routed, self.shared, |mlp| mlp.gate.byte_len() + mlp.up.byte_len());
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

/// Bytes that the chosen experts and the shared one have, of `matrices` of each.
fn bytes(
    params: &Params,
    routed: Mlp,
    shared: Option<Mlp>,
    matrices: fn(&Mlp<'_>) -> usize,
) -> usize {
    let pairs = (params.tokens * params.slots) as usize;
    let one = matrices(&routed) / routed.gate.stack().max(1);
    let shared = shared.filter(|_| params.common > 0);
    pairs * one + shared.map_or(0, |mlp| params.tokens as usize * matrices(&mlp))
}

/// The sum over the slots of few tokens, out of what `inner`, `common` and `ids` have.
fn down(
    out: &Output,
    formats: (Format, Format),
    params: Params,
    (routed, shared): (Mlp, Option<Mlp>),
    (inner, common, ids): (&Tensor, &Tensor, &Tensor),
) -> Result<()> {
    let bytes = bytes(&params, routed, shared, |mlp| mlp.down.byte_len());
    let groups = [(params.hidden as usize).div_ceil(ROWS), params.tokens as usize, 1];
    Launch::new("experts", kernels(), name("down", formats), &params)
        .weights(routed.down.metal("experts")?, bytes)
        .bind(shared.unwrap_or(routed).down.metal("experts")?)
        .read(inner)?
        .read(common)?
        .read_u32(ids)?
        .write(out)
        .run(&out.gpu, groups, THREADS)
}

/// Whether the launches for few tokens that choose their experts on the way are for this.
pub(super) fn routes_itself(
    tokens: usize,
    k: usize,
    router: &Matrix,
    routed: Mlp,
    shared: Option<Mlp>,
) -> bool {
    let mut dense = vec![router];
    dense.extend(shared.iter().flat_map(|shared| [shared.gate, shared.up]));
    let downs = (routed.down.format(), shared.map_or(routed.down, |mlp| mlp.down).format());
    (1..=FEW_TOKENS).contains(&tokens)
        && k > 0
        && (1..=ROUTED_EXPERTS).contains(&router.rows())
        && routed.gate.format() == routed.up.format()
        && together(downs)
        && (shared.is_none() || crate::matmul::metal_one_launch(&dense, tokens))
}

impl Routed<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let (tokens, hidden) = self.x.dims2()?;
        let Self { routed, k, .. } = *self;
        let shared = self.shared.map(|(mlp, _)| mlp);
        for mlp in [Some(routed), shared].into_iter().flatten() {
            for matrix in [mlp.gate, mlp.up, mlp.down] {
                matrix.check_metal_columns("experts")?;
            }
        }
        let common = shared.map_or(0, |mlp| mlp.gate.rows());
        let mut params = RoutedParams {
            slots: k as u32,
            experts: routed.gate.stack() as u32,
            hidden: hidden as u32,
            inter: routed.gate.rows() as u32,
            common: common as u32,
            in_bytes: routed.gate.row_bytes() as u32,
            clamp: self.clamp,
            scale: self.scale,
            tokens_in_table: 0,
        };
        let by_token = matches!(self.choice, Choice::Hash { .. });
        let has_bias = matches!(self.choice, Choice::TopK { bias: Some(_), .. });
        if let Choice::Hash { table, .. } = self.choice {
            params.tokens_in_table = table.dim(0)? as u32;
            if params.tokens_in_table == 0 {
                bail!("experts: a table without tokens");
            }
        }
        let one = (routed.gate.byte_len() + routed.up.byte_len()) / routed.gate.stack().max(1);
        let kernel = format!("experts_routed_{}", routed.gate.format().kernel_name());
        let launch = Launch::new("experts", kernels(), kernel, &params)
            .constants(&[false, by_token, has_bias])
            .weights(routed.gate.metal("experts")?, tokens * k * one)
            .bind(routed.up.metal("experts")?)
            .read(self.x)?
            .read(self.logits)?;
        // Every place must be bound; what there is no need for is not looked at.
        let launch = match self.choice {
            Choice::Hash { table, tokens } => launch.read_u32(table)?.read_u32(tokens)?,
            Choice::TopK { bias, .. } => {
                launch.read(bias.unwrap_or(self.logits))?.read(self.logits)?
            }
        };
        let launch = match self.shared {
            Some((_, [gate, up])) => launch.read(gate)?.read(up)?,
            _ => launch.read(self.logits)?.read(self.logits)?,
        };
        let rows = routed.gate.rows().max(common);
        let slots = k + usize::from(common > 0);
        launch
            .write_tensor(&self.scratch.ids, DType::U32)?
            .write_tensor(&self.scratch.inner, DType::F32)?
            .write_tensor(&self.scratch.common, DType::F32)?
            .run(&out.gpu, [rows.div_ceil(ROUTED_ROWS), slots, tokens], THREADS)?;
        let params = Params {
            tokens: tokens as u32,
            slots: k as u32,
            experts: params.experts,
            hidden: params.hidden,
            inter: params.inter,
            common: params.common,
            clamp: self.clamp,
            add: 0,
            in_bytes: params.in_bytes,
            out_bytes: routed.down.row_bytes() as u32,
            common_in_bytes: shared.map_or(0, |mlp| mlp.gate.row_bytes()) as u32,
            common_out_bytes: shared.map_or(0, |mlp| mlp.down.row_bytes()) as u32,
        };
        let formats = (routed.down.format(), shared.map_or(routed.down, |mlp| mlp.down).format());
        let super::routed::Scratch { ids, inner, common } = &self.scratch;
        down(out, formats, params, (routed, shared), (inner, common, ids))
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
