//! The residual streams on their way through the layers.

use candle_core::{bail, Result, Tensor};
use candle_ds4_ops::{Due, Given};

/// Residual streams, and what the last sub-layer gave: the next one's way in writes it back, so that
/// the streams are read once.
#[derive(Debug)]
pub struct Streams {
    state: Tensor,
    due: Option<Due>,
    /// Of the sub-layer that has been entered.
    mix: Option<Tensor>,
}

impl Streams {
    /// Streams `[tokens, streams, hidden]` that begin with this state.
    pub fn new(state: Tensor) -> Self {
        Self { state, due: None, mix: None }
    }

    /// The state without what is due.
    pub fn state(&self) -> &Tensor {
        &self.state
    }

    /// What is due.
    pub fn due(&self) -> Option<&Due> {
        self.due.as_ref()
    }

    /// A sub-layer was entered: what was due is written back, and `mix` takes its result.
    pub fn entered(&mut self, mix: Tensor) {
        self.due = None;
        self.mix = Some(mix);
    }

    /// The result `[tokens, hidden]` of the sub-layer that was entered.
    ///
    /// # Errors
    /// If none was.
    pub fn give(&mut self, given: impl Into<Given>) -> Result<()> {
        let Some(mix) = self.mix.take() else { bail!("streams: a result of no sub-layer") };
        self.due = Some(Due { given: given.into(), mix });
        Ok(())
    }

    /// The streams of some of the tokens only.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn select(&self, tokens: &[usize]) -> Result<Self> {
        let of = |tensor: &Tensor| {
            let rows = tokens.iter().map(|&token| tensor.narrow(0, token, 1));
            let rows = rows.collect::<Result<Vec<_>>>()?;
            // Of one token a view: other ways would have candle compile kernels at the first prompt.
            Tensor::cat(&rows, 0)
        };
        let due = match &self.due {
            Some(Due { given, mix }) => Some(Due { given: given.select(of)?, mix: of(mix)? }),
            None => None,
        };
        Ok(Self { state: of(&self.state)?, due, mix: None })
    }
}
