//! `ds4 imatrix`: what a model's experts see while it reads a text.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{ensure, Context};
use candle_core::Device;

use super::meter::{Meter, Unit};
use crate::engine::Engine;
use crate::model::{Input, Logits};
use crate::quantize::Collector;

/// Tokens that are read without forgetting, when the caller does not say.
pub const WINDOW_TOKENS: usize = 4096;

/// Tokens a pass.
const CHUNK_TOKENS: usize = 512;

/// Reads the text in `file` with the model in `model`, on the CPU, in windows of `window` tokens, and
/// writes an importance matrix of its routed experts to `output`. `terminal` says whether standard
/// error is one.
///
/// # Errors
/// What cannot be read or written, and a text without tokens.
pub fn run(
    model: &Path,
    file: &Path,
    output: &Path,
    window: usize,
    terminal: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    ensure!(window > 0, "a window of 0 tokens");
    let text = fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
    let engine = Engine::load(model, &Device::Cpu)?;
    let tokens = engine.tokenizer().encode(&text);
    ensure!(!tokens.is_empty(), "{}: the file is empty", file.display());
    let window = window.min(engine.context());
    let collector = Collector::new();
    let mut meter = Meter::begin(Unit::Tokens, terminal);
    let mut done = 0;
    for window in tokens.chunks(window) {
        let mut cache = engine.model().new_cache()?;
        for tokens_of_pass in window.chunks(CHUNK_TOKENS) {
            let input = Input { tokens: tokens_of_pass, cache: &mut cache };
            let ws = engine.workspace();
            engine.model().forward_observed(&mut [input], Logits::None, ws, &collector)?;
            done += tokens_of_pass.len();
            meter.set(done as u64, tokens.len() as u64, "");
        }
    }
    meter.finish();
    let (unseen, experts) = collector.unseen();
    let name = file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let windows = tokens.len().div_ceil(window);
    let imatrix = collector.finish(u32::try_from(windows).unwrap_or(u32::MAX), &name);
    imatrix.save(output)?;
    let entries = imatrix.entries.len();
    writeln!(out, "{}: {entries} tensors from {} tokens", output.display(), tokens.len())?;
    if unseen > 0 {
        writeln!(
            out,
            "{unseen} of {experts} experts were not chosen once: their columns will count alike; more \
             text would help"
        )?;
    }
    Ok(out.flush()?)
}
