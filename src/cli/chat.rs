//! One prompt, one answer.

use std::io::{self, Write};

use serde_json::json;

use super::failure::Failure;
use super::options::{affordable, Options};
use super::session::{conversation, open_tokenizer, End, Reply, Session};
use super::stats;
use super::terminal::{note, tell};
use super::view::View;
use crate::prompt::Message;

/// Answers `prompt` on standard output.
///
/// # Errors
/// The model cannot be had, the prompt is too long, the model fails, or Ctrl-C.
pub fn answer(prompt: String, options: &Options) -> Result<(), Failure> {
    let mut session = Session::open(options)?;
    let seed = session.sampling.seed;
    session.ask(prompt);
    let mut view =
        if options.json { View::silent() } else { View::new(&options.terminal, options.verbose) };
    let reply = session.answer(&mut view)?;
    if options.json {
        print_json(&session, &reply, seed)?;
    }
    if options.verbose || (options.terminal.stdout && options.terminal.stderr && !options.json) {
        print_stats(&session, &reply, options);
    }
    match reply.end {
        End::Interrupted => Err(Failure::Interrupted),
        End::Context => {
            tell(
                "the answer is cut short: the context is full; raise it with --ctx, or ask for \
                 less",
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The line of numbers after an answer; none if the prompt was not even read to its end.
pub fn print_stats(session: &Session, reply: &Reply, options: &Options) {
    if reply.end == End::Interrupted && reply.outcome.generated_tokens == 0 {
        return;
    }
    let (used, context) = (session.sequence().len(), session.engine().context());
    note(&options.terminal.dim(&stats::line(&reply.outcome, used, context)));
}

fn print_json(session: &Session, reply: &Reply, seed: u64) -> Result<(), Failure> {
    let Reply { message, outcome, end } = reply;
    let object = json!({
        "model": session.model,
        "text": message.content,
        "reasoning": message.reasoning,
        "tool_calls": message.tool_calls,
        "finish": end.word(),
        "seed": seed,
        "usage": {
            "prompt_tokens": outcome.prompt_tokens,
            "cached_tokens": outcome.cached_tokens,
            "completion_tokens": outcome.generated_tokens,
            "total_tokens": outcome.prompt_tokens + outcome.generated_tokens,
        },
        "timings": {
            "prefill_seconds": outcome.prefill.as_secs_f64(),
            "prefill_tokens_per_second": outcome.prefill_rate(),
            "decode_seconds": outcome.decode.as_secs_f64(),
            "decode_tokens_per_second": outcome.decode_rate(),
        },
    });
    writeln!(io::stdout(), "{object:#}").map_err(Failure::output)
}

/// Lists the tokens of `prompt` as the model would read it: position, id, and the text that it
/// stands for, with control tokens marked.
///
/// # Errors
/// The model's vocabulary cannot be had.
pub fn dump_tokens(prompt: String, options: &Options) -> Result<(), Failure> {
    let tokenizer = open_tokenizer(&options.model)?;
    let thinking = affordable(options.thinking, options.context);
    let messages = [Message::user(prompt)];
    let conversation = conversation(options.system.as_deref(), &messages, &options.tools, thinking);
    let ids = conversation
        .render()
        .ids(&tokenizer)
        .map_err(|error| Failure::load(&options.model.name(), &error.into()))?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    for (position, &id) in ids.iter().enumerate() {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        let piece = match std::str::from_utf8(bytes) {
            Ok(text) => format!("{text:?}"),
            // A part of a character.
            Err(_) => bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect(),
        };
        let mark = if tokenizer.is_control(id) { "  control" } else { "" };
        writeln!(out, "{position:>6} {id:>7}  {piece}{mark}").map_err(Failure::output)?;
    }
    out.flush().map_err(Failure::output)
}
