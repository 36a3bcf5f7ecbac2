//! A chat in a page: load a model, render the conversation, print tokens as they come.
//!
//!     cargo run --release --example chat                          # the bundled demo model
//!     cargo run --release --example chat -- model.gguf
//!     echo 'What is the capital of France?' | cargo run --release --example chat
//!
//! Every line of input is a question. The program `ds4` does the same with more comfort.

use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;

use candle_ds4::candle::Device;
use candle_ds4::demo::demo_model;
use candle_ds4::engine::{Engine, Progress, Request};
use candle_ds4::gguf::Gguf;
use candle_ds4::prompt::{Conversation, Event, Message, Reader, Thinking};
use candle_ds4::sample::Sampling;

fn main() -> anyhow::Result<()> {
    let device = Device::Cpu;
    let engine = match std::env::args().nth(1) {
        Some(file) => Engine::load(file, &device)?,
        None => Engine::from_gguf(&Gguf::from_bytes(demo_model())?, "the demo model", &device)?,
    };
    let tokenizer = engine.tokenizer();
    let mut sequence = engine.new_sequence()?;
    let mut conversation = Conversation {
        messages: vec![Message::system("You are a helpful assistant")],
        thinking: Thinking::Off,
        ..Conversation::default()
    };
    let interactive = io::stdin().is_terminal();
    let mut lines = io::stdin().lock().lines();
    loop {
        if interactive {
            print!("> ");
            io::stdout().flush()?;
        }
        let Some(question) = lines.next().transpose()? else { return Ok(()) };
        if question.trim().is_empty() {
            continue;
        }
        conversation.messages.push(Message::user(question));

        // The whole conversation is rendered anew; the sequence runs only what it has not seen.
        let request = Request {
            prompt: conversation.render().ids(tokenizer)?,
            sampling: Sampling::greedy(),
            max_tokens: 1000,
        };
        let mut reader = Reader::new(tokenizer, conversation.thinking);
        let mut answer = String::new();
        let mut show = |events: Vec<Event>| {
            for event in events {
                if let Event::Text(text) = event {
                    print!("{text}");
                    answer.push_str(&text);
                }
            }
            io::stdout().flush()
        };
        engine.generate(&mut sequence, &request, &mut |progress| {
            let shown = match progress {
                Progress::Token(token) => show(reader.push(tokenizer, token)),
                Progress::Prefill { .. } => Ok(()),
            };
            // Nobody reads on: no reason to go on writing.
            shown.map_or(ControlFlow::Break(()), ControlFlow::Continue)
        })?;
        show(reader.finish())?;
        println!();
        conversation.messages.push(Message::assistant(answer));
    }
}
