//! The launches.

use candle_core::{bail, DType, Result, Tensor};

use super::enter::{Due, Enter, Given};
use super::{Collapse, Expand, Kind, Mix};
use crate::device::metal::{library, parameters, Launch, Library, Output};
use crate::matmul::metal_dense_code;
use crate::{Format, Matrix};

const THREADS: usize = 256;
/// Streams that a lane's share of the mixing matrix allows.
const MOST_STREAMS: usize = 4;
/// Tokens up to which the way in is two launches, which read the projection for each.
const MOST_ENTER_TOKENS: usize = 8;
/// Channels of a block of those, and what one leaves of a token.
const ENTER_CHANNELS: usize = 32;
const ENTER_VALUES: usize = 48;

parameters! {
    struct MixParams {
        streams: u32,
        per_token: u32,
        iterations: u32,
        eps: f32,
        norm_eps: f32,
    }
}

parameters! {
    struct EnterParams {
        streams: u32,
        hidden: u32,
        blocks: u32,
        rows: u32,
        row_bytes: u32,
        iterations: u32,
        eps: f32,
        mix_norm_eps: f32,
        norm_eps: f32,
    }
}

parameters! {
    struct Product {
        enter: EnterParams,
        tokens: u32,
        cols: u32,
        row_bytes: u32,
        format: u32,
    }
}

parameters! {
    struct Streams {
        streams: u32,
        width: u32,
        hidden: u32,
    }
}

fn kernels() -> &'static Library {
    library!()
}

fn check(streams: usize) -> Result<()> {
    match streams {
        1..=MOST_STREAMS => Ok(()),
        _ => bail!(
            "hyper_connection: Metal kernels have up to {MOST_STREAMS} streams, not {streams}"
        ),
    }
}

impl Mix<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let (is_head, params) = match self.kind {
            Kind::Layer(params) => (false, params),
            Kind::Head(params) => (true, params),
        };
        check(params.streams)?;
        let (tokens, streams, hidden) = self.state.dims3()?;
        let params = MixParams {
            streams: streams as u32,
            per_token: (streams * hidden) as u32,
            iterations: params.sinkhorn_iterations.max(1) as u32,
            eps: params.eps,
            norm_eps: params.norm_eps as f32,
        };
        Launch::new("hyper_mix", kernels(), "hyper_mix", &params)
            .constants(&[is_head])
            .read(self.state)?
            .read(self.raw)?
            .read(self.scale)?
            .read(self.base)?
            .write(out)
            .run(&out.gpu, [tokens, 1, 1], THREADS)
    }
}

impl Collapse<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let params = Streams {
            streams: self.streams as u32,
            width: self.width as u32,
            hidden: self.hidden as u32,
        };
        let groups = [self.hidden.div_ceil(THREADS), self.state.dim(0)?, 1];
        Launch::new("hyper_collapse", kernels(), "hyper_collapse", &params)
            .read(self.state)?
            .read(self.mix)?
            .write(out)
            .run(&out.gpu, groups, THREADS)
    }
}

impl Expand<'_> {
    pub(super) fn on_metal(&self, state: &Output) -> Result<()> {
        check(self.streams)?;
        let params = Streams {
            streams: self.streams as u32,
            width: ((2 + self.streams) * self.streams) as u32,
            hidden: self.hidden as u32,
        };
        let groups = [self.hidden.div_ceil(THREADS), self.y.dim(0)?, 1];
        Launch::new("hyper_expand", kernels(), "hyper_expand", &params)
            .read(self.y)?
            .read(self.mix)?
            .write(state)
            .run(&state.gpu, groups, THREADS)
    }
}

/// Whether the launches for few tokens are for this.
pub(super) fn enters_at_once(state: &Tensor, projection: &Matrix) -> Result<bool> {
    let (tokens, streams, hidden) = state.dims3()?;
    let format = projection.format();
    let fits = matches!(format, Format::F32 | Format::F16 | Format::BF16 | Format::Q8_0)
        && (1..=MOST_STREAMS).contains(&streams)
        && hidden.is_multiple_of(8);
    Ok(fits && (1..=MOST_ENTER_TOKENS).contains(&tokens))
}

/// Whether the first of them also computes what is due as `w·x`.
pub(super) fn multiplies_at_once(w: &Matrix) -> bool {
    w.stack() == 1 && metal_dense_code(w.format()).is_some() && w.cols().is_multiple_of(8)
}

/// Values that the first launch leaves for the second.
pub(super) fn partial_values(state: &Tensor) -> Result<usize> {
    let (tokens, _, hidden) = state.dims3()?;
    Ok(tokens * hidden.div_ceil(ENTER_CHANNELS) * ENTER_VALUES)
}

impl Enter<'_> {
    pub(super) fn on_metal(&self, out: &Output) -> Result<()> {
        let (tokens, streams, hidden) = self.state.dims3()?;
        let entrance = self.entrance;
        let projection = entrance.projection;
        let blocks = hidden.div_ceil(ENTER_CHANNELS);
        let params = EnterParams {
            streams: streams as u32,
            hidden: hidden as u32,
            blocks: blocks as u32,
            rows: projection.rows() as u32,
            row_bytes: projection.row_bytes() as u32,
            iterations: entrance.params.sinkhorn_iterations.max(1) as u32,
            eps: entrance.params.eps,
            mix_norm_eps: entrance.params.norm_eps as f32,
            norm_eps: entrance.norm_eps as f32,
        };
        let constants = [projection.rows() == streams, self.due.is_some()];
        match self.due {
            Some(Due { given: Given::Product { x, w }, mix }) => {
                self.take_in_product(out, params, (x, w), mix)?;
            }
            _ => {
                let kernel = format!("hyper_streams_{}", projection.format().kernel_name());
                let launch = Launch::new("hyper_enter", kernels(), kernel, &params)
                    .constants(&constants)
                    .weights(projection.metal("hyper_enter")?, projection.byte_len());
                let launch = match self.due {
                    Some(due) => launch
                        .read(due.given.value()?)?
                        .read(&due.mix)?
                        .write_tensor(self.state, DType::F32)?,
                    None => launch.read(self.state)?.read(self.state)?.read(self.state)?,
                };
                launch.write_tensor(&self.partial, DType::F32)?.run(
                    &out.gpu,
                    [blocks, tokens, 1],
                    THREADS,
                )?;
            }
        }
        Launch::new("hyper_enter", kernels(), "hyper_collapsed", &params)
            .constants(&constants)
            .read(self.state)?
            .read(&self.partial)?
            .read(entrance.scale)?
            .read(entrance.base)?
            .read(entrance.norm)?
            .write_tensor(self.mix, DType::F32)?
            .write(out)
            .run(&out.gpu, [hidden.div_ceil(THREADS), tokens, 1], THREADS)
    }

    fn take_in_product(
        &self,
        out: &Output,
        enter: EnterParams,
        (x, w): (&Tensor, &Matrix),
        mix: &Tensor,
    ) -> Result<()> {
        let projection = self.entrance.projection;
        let Some(format) = metal_dense_code(w.format()) else {
            bail!("hyper_enter: no Metal kernel for a product of {}", w.format());
        };
        let (tokens, cols) = x.dims2()?;
        let params = Product {
            enter,
            tokens: tokens as u32,
            cols: cols as u32,
            row_bytes: w.row_bytes() as u32,
            format,
        };
        let (of, name) = (tokens.next_power_of_two(), projection.format().kernel_name());
        Launch::new("hyper_enter", kernels(), format!("hyper_product_{of}_{name}"), &params)
            .constants(&[projection.rows() as u32 == enter.streams, true])
            .weights(projection.metal("hyper_enter")?, projection.byte_len())
            .weights(w.metal("hyper_enter")?, w.byte_len())
            .read(x)?
            .read(mix)?
            .write_tensor(self.state, DType::F32)?
            .write_tensor(&self.partial, DType::F32)?
            .run(&out.gpu, [enter.blocks as usize, 1, 1], THREADS)
    }
}
