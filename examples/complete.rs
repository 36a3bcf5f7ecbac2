//! The library in one page: load a model, run tokens through it, sample.
//!
//!     cargo run --release --example complete
//!     cargo run --release --example complete -- ds4flash.gguf "Once upon a time"
//!
//! Without a model it takes the bundled demo model. For a prompt with turns, thinking and tools see
//! the `chat` example and `candle_ds4::prompt`.

use std::io::Write;

use candle_ds4::candle::Device;
use candle_ds4::gguf::Gguf;
use candle_ds4::model::{Input, Logits, Model};
use candle_ds4::ops::Workspace;
use candle_ds4::prompt::Rendered;
use candle_ds4::sample::{Sampler, Sampling};
use candle_ds4::tokenizer::{Decoder, Tokenizer};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny/tiny.gguf");

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap_or_else(|| DEMO.to_owned());
    let text = arguments.next().unwrap_or_else(|| "The capital of France is".to_owned());

    let gguf = Gguf::open(path)?;
    let model = Model::load(&gguf, &Device::Cpu)?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let mut sampler = Sampler::new(Sampling { temperature: 0.6, seed: 1, ..Sampling::default() })?;

    // The cache is what the model remembers; each pass appends its tokens to it. The workspace
    // keeps the buffers of one pass for the next.
    let mut cache = model.new_cache()?;
    let workspace = Workspace::new(model.device());
    let mut tokens = Rendered::completion(&text).ids(&tokenizer)?;
    let mut decoder = Decoder::new();
    print!("{text}");
    for _ in 0..64 {
        let input = Input { tokens: &tokens[cache.len()..], cache: &mut cache };
        let logits = model.forward(&mut [input], Logits::Last, &workspace)?;
        let mut logits = logits.flatten_all()?.to_vec1::<f32>()?;
        let token = sampler.sample_slice(&mut logits, &tokens)?;
        // The end, or the beginning of a turn of a conversation that this is not.
        if tokenizer.is_control(token) {
            break;
        }
        tokens.push(token);
        print!("{}", decoder.push(&tokenizer, token));
        std::io::stdout().flush()?;
    }
    println!("{}", decoder.finish());
    Ok(())
}
