//! `--trace FILE`: for each request what was asked, how much of it was known, why not more, and
//! what came of it. It contains prompts and answers, which the log does not.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Finish, Usage};
use crate::engine::Namespace;
use crate::tokenizer::Tokenizer;

/// Earlier answers that a prompt is compared with.
const REMEMBERED: usize = 32;
/// Tokens shown on either side of the first difference.
const AROUND: usize = 8;

/// Writes the trace.
pub struct Tracer {
    tokenizer: Arc<Tokenizer>,
    state: Mutex<State>,
}

struct State {
    file: File,
    /// Ids of earlier prompts with their answers, the latest last.
    known: VecDeque<(Namespace, String, Vec<u32>)>,
}

/// One answer, for the trace.
pub struct Traced<'a> {
    /// The request's id.
    pub request: &'a str,
    /// Whose cache was looked into.
    pub namespace: Namespace,
    /// The ids that were asked with.
    pub prompt: &'a [u32],
    /// The ids that came back.
    pub answer: &'a [u32],
    /// Tokens.
    pub usage: Usage,
    /// How it ended; `None` if it was broken off or failed.
    pub finish: Option<&'a Finish>,
}

impl Tracer {
    /// A tracer that appends to `file`, which only its owner may read.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(file: &Path, tokenizer: Arc<Tokenizer>) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let opened = options.open(file).map_err(|error| {
            let said = format!(
                "--trace {}: cannot be written: {error}; name a file in a folder that is there and \
                 that you may write to",
                file.display()
            );
            io::Error::new(error.kind(), said)
        });
        let state = State { file: opened?, known: VecDeque::new() };
        Ok(Self { tokenizer, state: Mutex::new(state) })
    }

    /// Writes what happened to one answer.
    pub fn write(&self, traced: &Traced<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let text = self.describe(traced, &state);
        if let Err(error) = state.file.write_all(text.as_bytes()) {
            tracing::warn!(%error, "the trace cannot be written");
        }
        if state.known.len() == REMEMBERED {
            state.known.pop_front();
        }
        let ids = [traced.prompt, traced.answer].concat();
        state.known.push_back((traced.namespace, traced.request.to_owned(), ids));
    }

    fn describe(&self, traced: &Traced<'_>, state: &State) -> String {
        let Traced { request, prompt, answer, usage, .. } = traced;
        let finish = traced.finish.map_or_else(|| "broken off".to_owned(), |f| format!("{f:?}"));
        let mut text = format!(
            "== {request}\ncache: {} of {} prompt tokens were known, {} computed\n",
            usage.cached,
            usage.prompt,
            usage.prompt.saturating_sub(usage.cached),
        );
        self.describe_miss(traced, state, &mut text);
        let shown = |ids: &[u32]| self.tokenizer.decode(ids);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "-- prompt\n{}", shown(prompt));
        let _ = writeln!(text, "-- answer, {} tokens, {finish}\n{}\n", answer.len(), shown(answer));
        text
    }

    /// Why not more of the prompt was known: where it leaves the earlier text that it follows
    /// longest.
    fn describe_miss(&self, traced: &Traced<'_>, state: &State, text: &mut String) {
        let prompt = traced.prompt;
        let earlier = state.known.iter().filter(|(owner, ..)| *owner == traced.namespace);
        let common = |ids: &[u32]| ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let best = earlier.rev().map(|(_, id, ids)| (common(ids), id, ids));
        let best = best.reduce(|best, next| if next.0 > best.0 { next } else { best });
        let _ = match best {
            None => writeln!(text, "miss: nothing earlier to compare with"),
            Some((shared, id, ids)) if shared == ids.len() || shared == prompt.len() => {
                writeln!(text, "follows {id} for all of its {shared} tokens")
            }
            Some((shared, id, ids)) => writeln!(
                text,
                "follows {id} for {shared} tokens, then differs\n  there: {}\n  here:  {}",
                self.window(ids, shared),
                self.window(prompt, shared),
            ),
        };
    }

    /// The tokens around a position, with a bar before it.
    fn window(&self, ids: &[u32], at: usize) -> String {
        let from = at.saturating_sub(AROUND);
        let to = (at + AROUND).min(ids.len());
        let mut text = String::new();
        for (position, id) in ids.iter().enumerate().take(to).skip(from) {
            let bar = if position == at { "| " } else { "" };
            let piece = String::from_utf8_lossy(self.tokenizer.token_bytes(*id).unwrap_or(b""));
            let _ = write!(text, "{bar}{id} {piece:?} ");
        }
        text
    }
}
