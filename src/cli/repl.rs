//! The chat: a prompt, an answer, a prompt.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper};

use super::chat::print_stats;
use super::command::{Command, Input, HELP, NAMES};
use super::failure::Failure;
use super::options::{affordable, read_text, Options};
use super::session::{End, Reply, Session};
use super::stats;
use super::terminal::{note, tell, visible};
use super::transcript::Transcript;
use super::view::View;
use crate::prompt::{Message, Role, Thinking};

/// Inputs that are remembered.
const HISTORY: usize = 1000;

/// Whether the chat goes on.
enum Then {
    GoOn,
    Leave,
}

/// Talks until the user leaves.
///
/// # Errors
/// The model cannot be had, or the terminal fails.
pub fn run(options: &Options) -> Result<(), Failure> {
    let mut chat = Chat { session: Session::open(options)?, options, last: None };
    let mut editor = editor()?;
    let history = history_file();
    if let Some(history) = &history {
        // The first chat has none.
        let _ = editor.load_history(history);
    }
    chat.greet();
    chat.talk(&mut editor, history.as_deref())
}

struct Chat<'o> {
    session: Session,
    options: &'o Options,
    /// The last answer.
    last: Option<Reply>,
}

impl Chat<'_> {
    fn greet(&self) {
        let model = visible(&self.session.model).into_owned();
        let context = self.session.engine().context();
        let line = format!("ds4 · {model} · context {context} · /help lists commands");
        note(&self.options.terminal.dim(&line));
    }

    fn talk(
        &mut self,
        editor: &mut Editor<Typing, FileHistory>,
        history: Option<&Path>,
    ) -> Result<(), Failure> {
        let mut interrupted = false;
        loop {
            let typed = match editor.readline("ds4> ") {
                Ok(typed) => typed,
                Err(ReadlineError::Interrupted) => {
                    let had_text = editor.helper().is_some_and(|typing| typing.has_text.take());
                    if interrupted && !had_text {
                        return Ok(());
                    }
                    interrupted = true;
                    note(&self.options.terminal.dim("(Ctrl-C again, or Ctrl-D, leaves)"));
                    continue;
                }
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => {
                    return Err(Failure::Run(format!(
                        "the terminal cannot be read: {error}; give the prompt with -p instead"
                    )))
                }
            };
            interrupted = false;
            let input = Input::parse(&typed);
            if input != Input::Empty {
                let added = editor.add_history_entry(typed.as_str());
                if let (Ok(true), Some(history)) = (added, history) {
                    // A chat without a place for its history is still a chat.
                    let _ = editor.append_history(history);
                }
            }
            match self.take(input) {
                Ok(Then::GoOn) => {}
                Ok(Then::Leave) => return Ok(()),
                // The reader of standard output is gone, and with it the sense of going on.
                Err(Failure::Closed) => return Err(Failure::Closed),
                Err(failure) => tell(&failure.to_string()),
            }
        }
    }

    fn take(&mut self, input: Input) -> Result<Then, Failure> {
        match input {
            Input::Empty => {}
            Input::Wrong(problem) => tell(&problem),
            Input::Ask(question) => {
                self.session.ask(question);
                self.answer()?;
            }
            Input::Do(Command::Quit) => return Ok(Then::Leave),
            Input::Do(command) => self.perform(command)?,
        }
        Ok(Then::GoOn)
    }

    fn perform(&mut self, command: Command) -> Result<(), Failure> {
        match command {
            Command::Help => note(HELP),
            Command::Think => self.think(Thinking::On),
            Command::ThinkMax => self.think(Thinking::Max),
            Command::NoThink => self.think(Thinking::Off),
            Command::Ctx(tokens) => {
                let context = self.session.set_context(tokens);
                let limit = if context < tokens { " (the model's limit)" } else { "" };
                note(&format!("context {context}{limit}"));
                self.session.thinking = affordable(self.session.thinking, context);
            }
            Command::Read(path) => {
                let text = read_text(&path)?;
                if text.trim().is_empty() {
                    let path = path.display();
                    return Err(Failure::Input(format!("{path}: empty; choose another file")));
                }
                self.session.ask(text);
                self.answer()?;
            }
            Command::System(None) => match &self.session.system {
                Some(system) => note(&visible(system)),
                None => note("(no system prompt)"),
            },
            Command::System(Some(text)) => {
                self.session.system = Some(text).filter(|text| !text.is_empty());
            }
            Command::Retry => {
                self.session.take_back_answer();
                if !self.session.awaits_answer() {
                    return Err(Failure::Input("nothing to retry: ask something first".into()));
                }
                self.answer()?;
            }
            Command::Undo => match self.session.take_back_turn() {
                Some(question) => note(&format!("took back: {}", first_line(&question.content))),
                None => return Err(Failure::Input("nothing to undo: ask something first".into())),
            },
            Command::New => {
                self.session.messages.clear();
                note("a new conversation");
            }
            Command::Save(path) => self.save(&path)?,
            Command::Load(path) => self.load(&path)?,
            Command::Stats => self.print_numbers(),
            Command::Quit => {}
        }
        Ok(())
    }

    fn think(&mut self, thinking: Thinking) {
        self.session.thinking = affordable(thinking, self.session.engine().context());
        note(manner(self.session.thinking));
    }

    fn answer(&mut self) -> Result<(), Failure> {
        let mut view = View::new(&self.options.terminal, self.options.verbose);
        let reply = self.session.answer(&mut view)?;
        let dim = |text: &str| note(&self.options.terminal.dim(text));
        match reply.end {
            End::Interrupted if self.session.awaits_answer() => {
                dim("(stopped before the answer; /retry asks again, a new question replaces it)");
            }
            End::Interrupted => dim("(stopped)"),
            End::Length => dim("(cut at the most tokens of an answer: --tokens)"),
            End::Context => dim("(the context is full: /ctx, /undo or /new make room)"),
            End::Stop | End::ToolCalls => {}
        }
        print_stats(&self.session, &reply, self.options);
        self.last = Some(reply);
        Ok(())
    }

    fn save(&mut self, path: &Path) -> Result<(), Failure> {
        let Session { system, thinking, messages, .. } = &self.session;
        Transcript::new(system.as_deref(), *thinking, messages).save(path)?;
        note(&format!("saved {} messages in {}", messages.len(), path.display()));
        match self.session.save_state() {
            Ok(0) => {}
            Ok(tokens) => note(&self.options.terminal.dim(&format!(
                "(what the model remembers of {tokens} tokens is kept too; see: ds4 cache ls)"
            ))),
            Err(error) => note(&format!("it will have to be read again when loaded: {error:#}")),
        }
        Ok(())
    }

    fn load(&mut self, path: &Path) -> Result<(), Failure> {
        let transcript = Transcript::load(path)?;
        if let Some(thinking) = transcript.thinking() {
            self.session.thinking = affordable(thinking, self.session.engine().context());
        }
        self.session.system = transcript.system;
        self.session.messages = transcript.messages;
        let (count, manner) = (self.session.messages.len(), manner(self.session.thinking));
        note(&format!("loaded {count} messages; {manner}"));
        for message in &self.session.messages {
            note(&self.options.terminal.dim(&summary(message)));
        }
        match self.session.load_state() {
            Ok((0, _)) => {}
            Ok((known, all)) => note(&self.options.terminal.dim(&format!(
                "({known} of {all} tokens are known from before and need not be read again)"
            ))),
            Err(error) => note(&format!("it will have to be read again: {error:#}")),
        }
        Ok(())
    }

    fn print_numbers(&self) {
        let session = &self.session;
        let (used, context) = (session.sequence().len(), session.engine().context());
        let questions = session.messages.iter().filter(|m| m.role == Role::User).count();
        note(&format!("model     {}", visible(&session.model)));
        note(&format!("messages  {} ({questions} questions)", session.messages.len()));
        note(&format!("context   {used} of {context} tokens"));
        note(&format!(
            "memory    {:.1} MiB of cache",
            session.sequence().bytes() as f64 / 1048576.0
        ));
        if let Some(reply) = &self.last {
            note(&format!("last      {}", stats::line(&reply.outcome, used, context)));
        }
    }
}

/// How the next answer is given.
fn manner(thinking: Thinking) -> &'static str {
    match thinking {
        Thinking::Off => "answers at once",
        Thinking::On => "thinks before answering",
        Thinking::Max | Thinking::Beyond => "thinks as hard as possible",
    }
}

/// A message on one line.
fn summary(message: &Message) -> String {
    let who = match message.role {
        Role::User => "you",
        Role::Assistant => "model",
        Role::Tool => "tool",
        Role::System | Role::Developer | Role::LatestReminder => "system",
    };
    format!("{who}: {}", first_line(&message.content))
}

/// The beginning of a text, for a reminder.
fn first_line(text: &str) -> String {
    const SHOWN: usize = 60;
    let line = text.lines().next().unwrap_or_default();
    let mut shown: String = visible(line).chars().take(SHOWN).collect();
    if shown.chars().count() < text.trim_end().chars().count() {
        shown.push('…');
    }
    shown
}

fn editor() -> Result<Editor<Typing, FileHistory>, Failure> {
    let refused = |error: ReadlineError| {
        Failure::Run(format!("the terminal cannot be used: {error}; give the prompt with -p"))
    };
    let config = Config::builder()
        .max_history_size(HISTORY)
        .map_err(refused)?
        .history_ignore_space(true)
        .bracketed_paste(true)
        .auto_add_history(false)
        .build();
    let mut editor = Editor::with_config(config).map_err(refused)?;
    editor.set_helper(Some(Typing { files: FilenameCompleter::new(), has_text: Cell::new(false) }));
    Ok(editor)
}

/// Where the history is kept: `ds4/history` in the user's data folder. `None` without one.
fn history_file() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let data = match variable("XDG_DATA_HOME") {
        Some(data) => PathBuf::from(data),
        None => Path::new(&variable("HOME").or_else(|| variable("USERPROFILE"))?)
            .join(".local")
            .join("share"),
    };
    let folder = data.join("ds4");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}

/// What the line editor asks while one types.
struct Typing {
    files: FilenameCompleter,
    /// Ctrl-C would throw something away.
    has_text: Cell<bool>,
}

impl Helper for Typing {}

impl Highlighter for Typing {}

impl Hinter for Typing {
    type Hint = String;

    /// No hint, but the only word about what is on the line that Ctrl-C then clears.
    fn hint(&self, line: &str, _at: usize, _context: &Context<'_>) -> Option<String> {
        self.has_text.set(!line.is_empty());
        None
    }
}

impl Validator for Typing {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        Ok(if context.input().ends_with('\\') {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Valid(None)
        })
    }
}

impl Completer for Typing {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = line.get(..at).unwrap_or(line);
        let takes_file = ["/read ", "/save ", "/load "];
        if takes_file.iter().any(|command| typed.starts_with(command)) {
            return self.files.complete(line, at, context);
        }
        let known = NAMES.iter().filter(|name| typed.starts_with('/') && name.starts_with(typed));
        let pair = |name: &&str| Pair { display: (*name).into(), replacement: (*name).into() };
        Ok((0, known.map(pair).collect()))
    }
}
