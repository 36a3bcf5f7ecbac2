//! Steps of one token for each sequence, recorded once and replayed with one call.
//!
//! Launching a step op by op costs a GPU more time than the step itself. So the same forward pass that
//! serves everything is run once as usual, which brings buffers and kernels into place, once to be
//! recorded, and from then on replayed. Where memory is short, steps go on being launched. What moves from
//! step to step lies in device memory: ids, positions and page tables.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Tensor};
use candle_ds4_ops::device::{capture, has_room_to_record, upload, Graph};
use candle_ds4_ops::{Ragged, Workspace};

use super::{ForwardError, Input, Logits, Model, Step};
use crate::config::{Config, LayerKind};

/// Recordings that are kept: for so many sets of sequences that take turns.
const KEPT: usize = 4;
/// Tokens of context up to which the first recording of a set holds, in a model without an indexer; the
/// next ones double that.
const REACH: usize = 2048;

/// The recordings of a model.
#[derive(Default)]
pub(super) struct Recorder {
    /// The one used last at the end.
    steps: Mutex<Vec<Recorded>>,
}

/// A step of these sequences, at positions below `reach`.
struct Recorded {
    /// Which layers it works on, sequence by sequence.
    layers: Vec<u64>,
    reach: usize,
    batch: Ragged,
    ids: Tensor,
    ws: Workspace,
    warm: bool,
    graph: Option<(Graph, Tensor)>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "Recorder({} steps)", steps.len())
    }
}

impl Recorder {
    /// The logits `[sequences, vocab]` after one token of each sequence. They live until the next step of
    /// the same sequences.
    pub(super) fn step(
        &self,
        model: &Model,
        inputs: &mut [Input<'_>],
    ) -> Result<Tensor, ForwardError> {
        let layers: Vec<u64> = inputs.iter().map(|input| input.cache.layers_id()).collect();
        let starts: Vec<usize> = inputs.iter().map(|input| input.cache.len()).collect();
        let end = starts.iter().max().map_or(1, |start| start + 1);
        let reach = end.next_power_of_two().max(first_reach(model.config()));

        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        // Out of the list while it runs: a step that fails is not kept.
        let found = steps.iter().position(|s| s.layers == layers && s.reach == reach);
        let mut step = match found {
            Some(index) => steps.remove(index),
            None => Recorded::new(model, layers, reach)?,
        };
        let logits = step.run(model, inputs, &starts)?;
        if steps.len() == KEPT {
            steps.remove(0);
        }
        steps.push(step);
        Ok(logits)
    }
}

/// As long as no row needs to be chosen: up to there a step has fewer launches.
fn first_reach(config: &Config) -> usize {
    let ratio = config.layers.iter().find_map(|kind| match kind {
        LayerKind::Sparse { ratio } => Some(*ratio),
        _ => None,
    });
    match (&config.indexer, ratio) {
        (Some(indexer), Some(ratio)) => (indexer.top_k * ratio).max(1),
        _ => REACH,
    }
}

impl Recorded {
    fn new(model: &Model, layers: Vec<u64>, reach: usize) -> Result<Self, ForwardError> {
        let (sequences, device) = (layers.len(), model.device());
        Ok(Self {
            layers,
            reach,
            batch: Ragged::fixed(sequences, reach, device)?,
            ids: Tensor::zeros(sequences, DType::U32, device)?,
            ws: Workspace::new(device),
            warm: false,
            graph: None,
        })
    }

    fn run(
        &mut self,
        model: &Model,
        inputs: &mut [Input<'_>],
        starts: &[usize],
    ) -> Result<Tensor, ForwardError> {
        self.batch.set_starts(starts)?;
        let ids: Vec<u32> = inputs.iter().flat_map(|input| input.tokens).copied().collect();
        upload(&self.ids, &ids)?;
        for input in inputs.iter_mut() {
            input.cache.reserve(1)?;
        }
        let logits = match &self.graph {
            Some((graph, logits)) => {
                for input in inputs.iter_mut() {
                    input.cache.begin()?;
                }
                graph.launch()?;
                for input in inputs.iter_mut() {
                    input.cache.replayed(1)?;
                }
                logits.clone()
            }
            None => {
                let mut caches = Vec::with_capacity(inputs.len());
                for input in inputs.iter_mut() {
                    caches.push(input.cache.begin()?);
                }
                let Self { batch, ids, ws, .. } = self;
                let step = Step { ids, batch, ws, observer: None };
                if self.warm && has_room_to_record(model.device())? {
                    let run = || model.run(step, caches, Logits::Last);
                    let (graph, logits) = capture(model.device(), run)?;
                    graph.launch()?;
                    self.graph.insert((graph, logits)).1.clone()
                } else {
                    let logits = model.run(step, caches, Logits::Last)?;
                    self.warm = true;
                    logits
                }
            }
        };
        for input in inputs {
            input.cache.advance(1);
        }
        Ok(logits)
    }
}

impl Model {
    /// Launches of the step that was recorded last, nodes of it that are no kernels, and edges along which
    /// a kernel may begin before its predecessor ends; `None` if none was recorded.
    ///
    /// # Errors
    /// The device's.
    pub fn recorded_nodes(&self) -> candle_core::Result<Option<[usize; 3]>> {
        let steps = self.recorder.steps.lock().unwrap_or_else(PoisonError::into_inner);
        match steps.iter().rev().find_map(|step| step.graph.as_ref()) {
            Some((graph, _)) => {
                Ok(Some([graph.nodes(), graph.other_nodes()?, graph.programmatic_edges()?]))
            }
            None => Ok(None),
        }
    }
}
