//! The launches.

use candle_core::{bail, Result};

use super::{Collapse, Expand, Kind, Mix};
use crate::device::metal::{library, parameters, Launch, Library, Output};

const THREADS: usize = 256;
/// Streams that a lane's share of the mixing matrix allows.
const MOST_STREAMS: usize = 4;

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
