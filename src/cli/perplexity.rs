//! `ds4 perplexity`: how well the model foretells a text.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context};

use crate::engine::Engine;
use crate::model::{Input, Logits};

/// Tokens a window when the caller does not say, unless the context is shorter.
pub const WINDOW_TOKENS: usize = 4096;

/// Tokens a pass: what scores are held in memory for.
const CHUNK_TOKENS: usize = 128;

/// A text's likelihood under the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// Mean negative logarithm of the probability of a token, in nats.
    pub nll: f64,
    /// Tokens scored: all of the text's.
    pub tokens: usize,
    /// Windows that the text was cut into.
    pub windows: usize,
    /// Tokens a window, BOS included.
    pub window: usize,
    /// Time in the model.
    pub time: Duration,
}

impl Perplexity {
    /// `exp` of the mean negative log-likelihood: as many equally likely tokens would surprise as
    /// much.
    pub fn perplexity(&self) -> f64 {
        self.nll.exp()
    }

    /// Scored tokens per second.
    pub fn rate(&self) -> f64 {
        self.tokens as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// Measures the text in `file` and prints the result on `out`: a few lines, or with `json` one
/// object.
///
/// `window` is the number of tokens that a prediction may look back on at most, BOS included; by
/// default [`WINDOW_TOKENS`], or the context if that is shorter. `progress` hears the tokens
/// scored so far, of all.
///
/// # Errors
/// A file that cannot be read, is not UTF-8 or is empty, a window without room, or the model.
pub fn run(
    engine: &Engine,
    file: &Path,
    window: Option<usize>,
    json: bool,
    progress: &mut dyn FnMut(usize, usize),
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let name = file.display();
    let bytes = std::fs::read(file).with_context(|| format!("{name}: cannot read the text"))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let at = error.valid_up_to();
        anyhow::anyhow!("{name}: byte {at} is not UTF-8: convert the text to UTF-8")
    })?;
    let ids = engine.tokenizer().encode(text);
    ensure!(!ids.is_empty(), "{name}: the text is empty: there is nothing to score");
    let found = measure(engine, &ids, window, progress)?;
    if json {
        let json = serde_json::json!({
            "file": name.to_string(),
            "perplexity": found.perplexity(),
            "nll_per_token": found.nll,
            "tokens": found.tokens,
            "windows": found.windows,
            "context": found.window,
            "seconds": found.time.as_secs_f64(),
            "tokens_per_second": found.rate(),
        });
        writeln!(out, "{json}")?;
    } else {
        writeln!(out, "perplexity {:.4}", found.perplexity())?;
        writeln!(out, "NLL/token  {:.6}", found.nll)?;
        writeln!(
            out,
            "tokens     {} in {} window(s) of at most {}",
            found.tokens, found.windows, found.window
        )?;
        writeln!(out, "speed      {:.1} tok/s", found.rate())?;
    }
    Ok(out.flush()?)
}

/// Scores every one of `ids` after BOS and what stands before it.
///
/// A text longer than a window is read in windows that overlap by half, each opened by BOS, so
/// that every token but the first ones sees at least half a window of what stands before it.
///
/// # Errors
/// A window outside 2 to the context, scores that are not finite, or the model.
pub fn measure(
    engine: &Engine,
    ids: &[u32],
    window: Option<usize>,
    progress: &mut dyn FnMut(usize, usize),
) -> anyhow::Result<Perplexity> {
    let context = engine.context();
    let window = window.unwrap_or(WINDOW_TOKENS.min(context));
    ensure!(
        (2..=context).contains(&window),
        "a window of {window} tokens (--ctx): choose 2 to {context}"
    );
    let start = Instant::now();
    let (mut nll, mut done, mut windows) = (0.0, 0, 0);
    while done < ids.len() {
        // BOS and what is only read come first, then what is scored.
        let read = done.min(window / 2).min(window - 2);
        let scored = (window - 1 - read).min(ids.len() - done);
        let mut tokens = vec![engine.tokenizer().control().bos];
        tokens.extend_from_slice(&ids[done - read..done + scored]);
        nll += score(engine, &tokens, read, &mut |n| progress(done + n, ids.len()))?;
        done += scored;
        windows += 1;
    }
    let tokens = ids.len();
    Ok(Perplexity { nll: nll / tokens as f64, tokens, windows, window, time: start.elapsed() })
}

/// The negative log-likelihood of `tokens[read + 1..]`, each after all before it.
fn score(
    engine: &Engine,
    tokens: &[u32],
    read: usize,
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<f64> {
    let (model, ws) = (engine.model(), engine.workspace());
    let mut cache = model.new_cache()?;
    let mut nll = 0.0;
    // The last token foretells nothing that is known.
    let last = tokens.len() - 1;
    while cache.len() < last {
        let from = cache.len();
        let only_read = from < read;
        let to = (from + CHUNK_TOKENS).min(if only_read { read } else { last });
        let which = if only_read { Logits::None } else { Logits::All };
        let input = Input { tokens: &tokens[from..to], cache: &mut cache };
        let logits = model.forward(&mut [input], which, ws)?;
        if only_read {
            continue;
        }
        for (at, row) in (from..to).zip(logits.to_vec2::<f32>()?) {
            nll += surprise(&row, tokens[at + 1] as usize)
                .with_context(|| format!("token {at} of a window"))?;
        }
        progress(to - read);
    }
    Ok(nll)
}

/// `-ln softmax(logits)[token]`.
fn surprise(logits: &[f32], token: usize) -> anyhow::Result<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let logit = logits.get(token).copied().unwrap_or(f32::NAN);
    let surprise = sum.ln() - f64::from(logit - max);
    ensure!(
        surprise.is_finite(),
        "the model's logits are not finite: the weights are damaged; verify the file with `ds4 \
         inspect`, or download it again"
    );
    Ok(surprise)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candle::Device;

    fn engine() -> Engine {
        let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny/tiny.gguf");
        Engine::load(demo, &Device::Cpu).unwrap()
    }

    const TEXT: &str = "The capital of France is Paris. The river came from the forest while the \
                        sun was shining. A black bird remembered the castle before the storm.";

    /// The sum over `tokens[from..]`, one token a pass.
    fn one_by_one(engine: &Engine, tokens: &[u32], from: usize) -> f64 {
        let mut cache = engine.model().new_cache().unwrap();
        let mut sum = 0.0;
        for (at, pair) in tokens.windows(2).enumerate() {
            let input = Input { tokens: &pair[..1], cache: &mut cache };
            let logits = engine.model().forward(&mut [input], Logits::Last, engine.workspace());
            let logits = logits.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            if at + 1 >= from {
                sum -= (f64::from(logits[pair[1] as usize]).exp() / total).ln();
            }
        }
        sum
    }

    #[test]
    fn a_text_of_one_window_is_the_chain_rule() {
        let engine = engine();
        let ids = engine.tokenizer().encode(&TEXT.repeat(24));
        assert!(ids.len() > 2 * CHUNK_TOKENS);
        let mut heard = Vec::new();
        let found = measure(&engine, &ids, None, &mut |done, all| heard.push((done, all))).unwrap();
        assert_eq!((found.tokens, found.windows), (ids.len(), 1));
        assert_eq!(heard.last(), Some(&(ids.len(), ids.len())));
        let tokens: Vec<u32> = [engine.tokenizer().control().bos].into_iter().chain(ids).collect();
        let want = one_by_one(&engine, &tokens, 1) / found.tokens as f64;
        assert!((found.nll - want).abs() < 1e-5, "{} is not {want}", found.nll);
        assert!((found.perplexity() - want.exp()).abs() < 1e-4 * want.exp());
    }

    #[test]
    fn windows_overlap_by_half_and_score_every_token_once() {
        let engine = engine();
        let bos = engine.tokenizer().control().bos;
        let ids = engine.tokenizer().encode(TEXT);
        let found = measure(&engine, &ids, Some(10), &mut |_, _| ()).unwrap();
        // The first window scores nine tokens, each later one reads five and scores four.
        let (mut sum, mut done, mut windows) = (0.0, 0, 0);
        while done < ids.len() {
            let (read, scored) = if done == 0 { (0, 9) } else { (5, 4) };
            let to = (done + scored).min(ids.len());
            let tokens: Vec<u32> = [bos].iter().chain(&ids[done - read..to]).copied().collect();
            sum += one_by_one(&engine, &tokens, 1 + read);
            (done, windows) = (to, windows + 1);
        }
        assert_eq!(found.windows, windows);
        assert!((found.nll - sum / ids.len() as f64).abs() < 1e-5);
        for window in [2, 3, 4, ids.len(), ids.len() + 1] {
            let found = measure(&engine, &ids, Some(window), &mut |_, _| ()).unwrap();
            assert_eq!(found.tokens, ids.len(), "window {window}");
            assert!(found.nll.is_finite());
        }
        for window in [0, 1, engine.context() + 1] {
            let error = measure(&engine, &ids, Some(window), &mut |_, _| ()).unwrap_err();
            assert!(error.to_string().contains("--ctx"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_scored_is_named_and_json_is_json() {
        let (engine, folder) = (engine(), tempfile::tempdir().unwrap());
        let file = folder.path().join("text.txt");
        let run = |json| {
            let mut out = Vec::new();
            run(&engine, &file, None, json, &mut |_, _| (), &mut out).map(|()| out)
        };
        for (text, wanted) in [(&b"ab\xffc"[..], "byte 2 is not UTF-8"), (b"", "empty")] {
            std::fs::write(&file, text).unwrap();
            let error = run(false).unwrap_err().to_string();
            assert!(error.contains(wanted) && error.contains("text.txt"), "{error}");
        }
        std::fs::write(&file, TEXT).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&run(true).unwrap()).unwrap();
        let nll = json["nll_per_token"].as_f64().unwrap();
        assert!((json["perplexity"].as_f64().unwrap().ln() - nll).abs() < 1e-9);
        assert!(json["tokens_per_second"].as_f64().unwrap() > 0.0);
        let text = String::from_utf8(run(false).unwrap()).unwrap();
        assert!(text.contains("perplexity") && text.contains("tok/s"), "{text}");
        std::fs::remove_file(&file).unwrap();
        assert!(format!("{:#}", run(false).unwrap_err()).contains("cannot read the text"));
    }
}
