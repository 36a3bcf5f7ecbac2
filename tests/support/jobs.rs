//! Jobs for a service with the demo model, and what is heard of them.

use std::sync::{Arc, OnceLock};

use candle_ds4::candle::Device;
use candle_ds4::demo::demo_model;
use candle_ds4::engine::{Chosen, Engine, EngineError, Job, Namespace, Outcome, Update, Updates};
use candle_ds4::gguf::Gguf;
use candle_ds4::sample::Sampling;

pub fn gguf() -> Gguf {
    Gguf::from_bytes(demo_model()).unwrap()
}

pub fn engine() -> Engine {
    Engine::from_gguf(&gguf(), "the demo model", &Device::Cpu).unwrap()
}

pub fn eos() -> u32 {
    static EOS: OnceLock<u32> = OnceLock::new();
    *EOS.get_or_init(|| engine().tokenizer().control().eos)
}

/// Greedy, and never the end of the answer.
pub fn endless(prompt: Vec<u32>, max_tokens: usize) -> Job {
    Job {
        prompt,
        sampling: Sampling {
            logit_bias: [(eos(), f32::NEG_INFINITY)].into(),
            ..Sampling::greedy()
        },
        max_tokens,
        room: max_tokens,
        guide: None,
        logprobs: None,
        namespace: Namespace::default(),
        landmarks: Vec::new(),
    }
}

#[derive(Debug, Default)]
pub struct Answer {
    pub chosen: Vec<Chosen>,
    pub end: Option<Outcome>,
    pub failed: Option<Arc<EngineError>>,
}

/// All that is heard of a job, which must come in order.
pub fn listen(mut updates: Updates) -> Answer {
    let mut answer = Answer::default();
    let mut known = 0;
    while let Some(update) = updates.blocking_recv() {
        assert!(answer.end.is_none() && answer.failed.is_none(), "more after the end: {update:?}");
        match update {
            Update::Prefill { cached, done, total } => {
                assert!(cached <= done && known <= done && done <= total);
                assert!(answer.chosen.is_empty(), "a prompt that is read after its answer began");
                known = done;
            }
            Update::Token(chosen) => answer.chosen.push(chosen),
            Update::End(outcome) => answer.end = Some(outcome),
            Update::Failed(error) => answer.failed = Some(error),
        }
    }
    answer
}
