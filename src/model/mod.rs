//! DeepSeek V4 as candle modules: reads like the paper; kernels, formats and devices are elsewhere.
//!
//! One forward pass serves everything: a chunk of a prompt, one token of one sequence, one token of
//! each of many, a draft to verify. All are a batch of tokens with a cache for each sequence.

mod attention;
mod block;
mod compressor;
mod experts;
mod head;
mod hyper_connection;
mod indexer;
mod linear;
mod norm;
mod recorded;
mod router;
mod step;
mod streams;

use candle_core::{Device, Tensor};
use candle_ds4_ops::device::{can_record, profiling};
use candle_ds4_ops::{self as ops, Matrix, Ragged, Workspace};

pub use attention::Attention;
pub use block::Block;
pub use compressor::Compressor;
pub use experts::Experts;
pub use head::Head;
pub use hyper_connection::{HyperConnection, HyperHead};
pub use indexer::Indexer;
pub use linear::Linear;
pub use norm::RmsNorm;
pub use router::Router;
pub use step::{Observer, Step};
pub use streams::Streams;

use self::recorded::Recorder;
use crate::cache::{Cache, LayerCache};
use crate::config::{Config, ConfigError};
use crate::gguf::Gguf;
use crate::weights::{Weights, WeightsError};

/// Why a file is no model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Its metadata.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// One of its tensors.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A device without kernels.
    #[error("this program was built without kernels for {0:?}: use --device cpu")]
    Device(candle_core::DeviceLocation),
}

/// Why a forward pass was refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// A token that the vocabulary does not have.
    #[error("token {token} at position {position} is outside the vocabulary of {vocab_size}")]
    Token {
        /// The token.
        token: u32,
        /// Its position in the sequence.
        position: usize,
        /// Tokens that there are.
        vocab_size: usize,
    },
    /// More tokens than the model was trained for.
    #[error("a sequence of {tokens} tokens is longer than the model's context of {context}")]
    Context {
        /// Tokens that the sequence would have.
        tokens: usize,
        /// Tokens that it may have.
        context: usize,
    },
    /// A sequence without new tokens.
    #[error("sequence {sequence} of the batch has no new tokens")]
    Empty {
        /// Its index in the batch.
        sequence: usize,
    },
    /// The device or an op.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

/// Of which tokens logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: a chunk of a prompt that is not its last.
    None,
    /// The last new token of each sequence.
    Last,
    /// Every new token.
    All,
}

/// New tokens of one sequence, and the cache of those before.
#[derive(Debug)]
pub struct Input<'a> {
    /// At least one.
    pub tokens: &'a [u32],
    /// What the model remembers of the sequence so far.
    pub cache: &'a mut Cache,
}

/// DeepSeek V4.
#[derive(Debug)]
pub struct Model {
    config: Config,
    device: Device,
    embedding: Matrix,
    blocks: Vec<Block>,
    head: Head,
    recorder: Recorder,
}

impl Model {
    /// Loads a file onto a device. On the CPU nothing is copied: matrices stay in the mapped file.
    ///
    /// Draft heads (`mtp.*`) are not loaded.
    ///
    /// # Errors
    /// Metadata or tensors that are missing, contradict each other, or have an unsupported type; a
    /// device without kernels, or with too little memory (says how much is missing).
    pub fn load(gguf: &Gguf, device: &Device) -> Result<Self, LoadError> {
        Self::load_with(gguf, device, &mut |_, _| {})
    }

    /// The same; `progress` hears how many bytes of all have been read. On the CPU they are only mapped.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with(
        gguf: &Gguf,
        device: &Device,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        let kernels = match device {
            Device::Cpu => true,
            Device::Cuda(_) => cfg!(feature = "cuda"),
            Device::Metal(_) => cfg!(feature = "metal"),
        };
        if !kernels {
            return Err(LoadError::Device(device.location()));
        }
        let config = Config::from_metadata(gguf.metadata())?;
        let weights = Weights::with_progress(gguf, device, progress)?;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let blocks = (0..config.layers.len())
            .map(|layer| Block::load(&weights, layer, &config))
            .collect::<Result<_, WeightsError>>()?;
        let model = Self {
            embedding: weights.matrix("token_embd.weight", vocab, hidden)?,
            blocks,
            head: Head::load(&weights, &config)?,
            config,
            device: device.clone(),
            recorder: Recorder::default(),
        };
        weights.finish()?;
        Ok(model)
    }

    /// The numbers that shape it.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The cache of a new sequence.
    ///
    /// # Errors
    /// If the device has no memory left.
    pub fn new_cache(&self) -> candle_core::Result<Cache> {
        Cache::new(&self.config, &self.device)
    }

    /// Runs new tokens of one or more sequences through all layers and appends them to the caches.
    ///
    /// Returns logits `[rows, vocab]` f32, sequence after sequence: a row for each sequence with
    /// [`Logits::Last`], for each token with [`Logits::All`], none with [`Logits::None`]. They live
    /// in `ws` until its next use; on a GPU those of one new token for each sequence until the next step
    /// of the same sequences, because such a step is recorded and replayed.
    ///
    /// Any cut of a sequence into calls gives the same values.
    ///
    /// # Errors
    /// If the input is refused, the caches are as before. If the device fails half-way, the caches
    /// of the batch must be cleared or restored before they are used again, and say so.
    pub fn forward(
        &self,
        inputs: &mut [Input<'_>],
        logits: Logits,
        ws: &Workspace,
    ) -> Result<Tensor, ForwardError> {
        self.forward_with(inputs, logits, ws, None)
    }

    /// The same under the eyes of an observer.
    ///
    /// # Errors
    /// As [`Model::forward`], and the observer's.
    pub fn forward_observed(
        &self,
        inputs: &mut [Input<'_>],
        logits: Logits,
        ws: &Workspace,
        observer: &dyn Observer,
    ) -> Result<Tensor, ForwardError> {
        self.forward_with(inputs, logits, ws, Some(observer))
    }

    fn forward_with(
        &self,
        inputs: &mut [Input<'_>],
        logits: Logits,
        ws: &Workspace,
        observer: Option<&dyn Observer>,
    ) -> Result<Tensor, ForwardError> {
        self.check(inputs)?;
        let single = inputs.iter().all(|input| input.tokens.len() == 1);
        let plain = observer.is_none() && logits == Logits::Last && !inputs.is_empty();
        if single && plain && can_record(&self.device) && !profiling() {
            return self.recorder.step(self, inputs);
        }
        let sequences: Vec<_> =
            inputs.iter().map(|input| (input.cache.len(), input.tokens.len())).collect();
        let batch = Ragged::new(&sequences, &self.device)?;
        let ids: Vec<u32> = inputs.iter().flat_map(|input| input.tokens).copied().collect();
        let ids = Tensor::from_vec(ids, batch.tokens(), &self.device)?;

        let mut caches = Vec::with_capacity(inputs.len());
        for input in inputs.iter_mut() {
            caches.push(input.cache.begin()?);
        }
        let step = Step { ids: &ids, batch: &batch, ws, observer };
        let logits = self.run(step, caches, logits)?;
        for input in inputs {
            input.cache.advance(input.tokens.len());
        }
        Ok(logits)
    }

    fn run(
        &self,
        step: Step<'_>,
        mut caches: Vec<&mut [LayerCache]>,
        logits: Logits,
    ) -> candle_core::Result<Tensor> {
        let Step { ids, batch, ws, .. } = step;
        let _frame = ws.frame();
        let streams = self.config.hyper_connection.streams;
        let mut streams = Streams::new(ops::embed(ids, &self.embedding, streams, ws)?);
        for (layer, block) in self.blocks.iter().enumerate() {
            let mut of_layer: Vec<_> = caches.iter_mut().map(|layers| &mut layers[layer]).collect();
            block.forward(&mut streams, step, &mut of_layer)?;
        }
        match logits {
            Logits::None => ws.f32((0, self.config.vocab_size)),
            Logits::Last if batch.tokens() != batch.spans().len() => {
                let last = batch.spans().iter().map(|span| span.row + span.len - 1);
                let last: Vec<usize> = last.collect();
                self.head.forward(&streams.select(&last)?, ws)
            }
            Logits::Last | Logits::All => self.head.forward(&streams, ws),
        }
    }

    /// Refuses what would fail half-way.
    fn check(&self, inputs: &[Input<'_>]) -> Result<(), ForwardError> {
        let vocab_size = self.config.vocab_size;
        let context = self.config.context_length;
        for (sequence, input) in inputs.iter().enumerate() {
            let start = input.cache.len();
            if input.tokens.is_empty() {
                return Err(ForwardError::Empty { sequence });
            }
            let tokens = start + input.tokens.len();
            if tokens > context {
                return Err(ForwardError::Context { tokens, context });
            }
            let outside = |&token: &u32| token as usize >= vocab_size;
            if let Some(at) = input.tokens.iter().position(outside) {
                let token = input.tokens[at];
                return Err(ForwardError::Token { token, position: start + at, vocab_size });
            }
        }
        Ok(())
    }
}
