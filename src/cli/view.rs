//! An answer as it is shown while it is written.

use std::io::{self, Write};

use super::markdown::Markdown;
use super::terminal::{visible, visible_char, Terminal};
use super::wrap::{Style, Wrap};
use crate::prompt::Event;

/// What was shown last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Nothing,
    Thinking,
    Text,
    Call,
}

/// How it is shown.
enum How {
    /// Not at all: the caller has another use for it.
    Silent,
    /// As the model wrote it, for a pipe; thinking goes to standard error if wanted.
    Copied { thinking: bool },
    /// On a terminal without styles.
    Plain,
    /// On a terminal.
    Rendered { columns: usize, markdown: Box<Markdown>, thinking: Wrap },
}

/// Shows one answer on standard output.
pub struct View {
    how: How,
    part: Part,
    /// The last character that went to standard output ended a line.
    at_line_start: bool,
}

impl View {
    /// A view that shows nothing.
    pub fn silent() -> Self {
        Self { how: How::Silent, part: Part::Nothing, at_line_start: true }
    }

    /// A view for this terminal or pipe.
    pub fn new(terminal: &Terminal, verbose: bool) -> Self {
        let how = if terminal.renders() {
            let columns = terminal.width();
            let markdown = Box::new(Markdown::new(columns));
            How::Rendered { columns, markdown, thinking: Wrap::new(columns) }
        } else if terminal.stdout {
            How::Plain
        } else {
            How::Copied { thinking: verbose }
        };
        Self { how, part: Part::Nothing, at_line_start: true }
    }

    /// Shows an event.
    ///
    /// # Errors
    /// Standard output refuses.
    pub fn show(&mut self, event: &Event) -> io::Result<()> {
        if matches!(self.how, How::Silent) {
            return Ok(());
        }
        let mut out = String::new();
        match event {
            Event::Reasoning(text) => {
                if let How::Copied { thinking } = self.how {
                    if thinking {
                        // Not standard output: nobody reading it is no reason to stop.
                        let _ = write!(io::stderr(), "{}", visible(text));
                        self.part = Part::Thinking;
                    }
                    return Ok(());
                }
                self.turn_to(Part::Thinking, &mut out);
                self.thinking(text, &mut out);
            }
            Event::Text(text) | Event::Malformed { raw: text, .. } => {
                let fresh = self.part != Part::Text;
                self.turn_to(Part::Text, &mut out);
                // What separates an answer from its thinking is ours to choose on a terminal.
                let copied = matches!(self.how, How::Copied { .. });
                let text = if fresh && !copied { text.trim_start_matches('\n') } else { text };
                self.text(text, &mut out);
                if fresh && text.is_empty() {
                    self.part = Part::Nothing;
                }
            }
            Event::ToolCallBegin { name, .. } => {
                self.turn_to(Part::Call, &mut out);
                self.call(&format!("{name}("), &mut out);
            }
            Event::ToolArguments { fragment, .. } => self.call(fragment, &mut out),
            Event::ToolCallEnd { .. } => {
                self.call(")\n", &mut out);
                self.part = Part::Nothing;
            }
            Event::ToolCallsEnd => {}
        }
        self.write(&out)
    }

    /// Shows what was held back, and ends the last line.
    ///
    /// # Errors
    /// Standard output refuses.
    pub fn finish(&mut self) -> io::Result<()> {
        let mut out = String::new();
        self.close_part(&mut out);
        if !self.at_line_start && !out.ends_with('\n') || self.at_line_start && !out.is_empty() {
            out.push('\n');
        }
        self.write(&out)
    }

    fn write(&mut self, out: &str) -> io::Result<()> {
        if let Some(last) = out.chars().next_back() {
            self.at_line_start = last == '\n';
            let mut stdout = io::stdout().lock();
            stdout.write_all(out.as_bytes())?;
            stdout.flush()?;
        }
        Ok(())
    }

    /// Ends what was shown, if this is something else.
    fn turn_to(&mut self, part: Part, out: &mut String) {
        if self.part == part {
            return;
        }
        let before = self.part;
        self.close_part(out);
        let ended = out.ends_with('\n') || (out.is_empty() && self.at_line_start);
        match (&self.how, before, part) {
            (How::Copied { .. }, Part::Text, Part::Call) if !ended => out.push('\n'),
            (How::Rendered { .. } | How::Plain, Part::Thinking | Part::Text, _) => {
                if !ended {
                    out.push('\n');
                }
                out.push('\n');
            }
            _ => {}
        }
        match (&self.how, before, part) {
            (How::Plain, _, Part::Thinking) => out.push_str("(thinking)\n"),
            (How::Plain, Part::Thinking, _) => out.push_str("(answer)\n"),
            _ => {}
        }
        self.part = part;
    }

    fn close_part(&mut self, out: &mut String) {
        match (&mut self.how, self.part) {
            (How::Rendered { markdown, columns, .. }, Part::Text) => {
                markdown.finish(out);
                **markdown = Markdown::new(*columns);
            }
            (How::Rendered { thinking, columns, .. }, Part::Thinking | Part::Call) => {
                thinking.reset(out);
                *thinking = Wrap::new(*columns);
            }
            (How::Copied { .. }, Part::Thinking) => {
                let _ = writeln!(io::stderr());
            }
            _ => {}
        }
    }

    fn thinking(&mut self, text: &str, out: &mut String) {
        match &mut self.how {
            How::Rendered { thinking, .. } => {
                for c in text.chars().filter(|c| *c != '\r') {
                    thinking.put(visible_char(c), Style::DIM, out);
                }
            }
            _ => out.push_str(&visible(text)),
        }
    }

    fn text(&mut self, text: &str, out: &mut String) {
        match &mut self.how {
            How::Rendered { markdown, .. } => markdown.push(text, out),
            How::Plain => out.push_str(&visible(text)),
            _ => out.push_str(text),
        }
    }

    fn call(&mut self, text: &str, out: &mut String) {
        match &mut self.how {
            How::Rendered { thinking, .. } => {
                for c in text.chars() {
                    thinking.put_unbroken(visible_char(c), Style::CODE, out);
                }
            }
            How::Plain => out.push_str(&visible(text)),
            _ => out.push_str(text),
        }
    }
}
