//! What was typed at the chat's prompt.

use std::path::PathBuf;

/// Help on commands.
pub const HELP: &str = "\
/help            this list
/think           think before answering        /nothink   answer at once
/think-max       think as hard as possible (needs a context of 393216 tokens)
/ctx N           a context of N tokens, as far as the model allows
/read FILE       ask what is in FILE
/system [TEXT]   show or replace the system prompt; \"\" removes it
/retry           another answer to the last question
/undo            take back the last question and its answer
/new             begin a new conversation
/save FILE       keep the conversation in FILE   /load FILE   go on with it
/stats           numbers: context, memory, the last answer
/quit, /exit     leave (also: Ctrl-D, or Ctrl-C twice)

A line that ends in \\ goes on in the next one; pasted text may have several lines.
Ctrl-C stops an answer. A question that begins with / is asked with // instead.";

/// One input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    Empty,
    /// A question.
    Ask(String),
    /// A command.
    Do(Command),
    /// What is wrong with a command, and what to do.
    Wrong(String),
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// List the commands.
    Help,
    /// Think before answering.
    Think,
    /// Think as hard as possible.
    ThinkMax,
    /// Answer at once.
    NoThink,
    /// Change the context.
    Ctx(usize),
    /// Ask what is in a file.
    Read(PathBuf),
    /// Show the system prompt, or replace it; by nothing if empty.
    System(Option<String>),
    /// Answer again.
    Retry,
    /// Take back a turn.
    Undo,
    /// Begin anew.
    New,
    /// Keep the conversation.
    Save(PathBuf),
    /// Go on with a conversation.
    Load(PathBuf),
    /// Show numbers.
    Stats,
    /// Leave.
    Quit,
}

/// The names of all commands.
pub const NAMES: [&str; 15] = [
    "/help",
    "/think",
    "/think-max",
    "/nothink",
    "/ctx",
    "/read",
    "/system",
    "/retry",
    "/undo",
    "/new",
    "/save",
    "/load",
    "/stats",
    "/quit",
    "/exit",
];

impl Input {
    /// Reads what was typed, which may have several lines.
    pub fn parse(typed: &str) -> Self {
        let text = joined(typed);
        let text = text.trim();
        if text.is_empty() {
            return Self::Empty;
        }
        if let Some(question) = text.strip_prefix("//") {
            return Self::Ask(format!("/{question}"));
        }
        if !text.starts_with('/') {
            return Self::Ask(text.to_owned());
        }
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match command(name, rest.trim()) {
            Ok(command) => Self::Do(command),
            Err(problem) => Self::Wrong(problem),
        }
    }
}

/// The lines of an input with a backslash at the end joined to the next by a line break.
fn joined(typed: &str) -> String {
    let lines: Vec<&str> = typed.split('\n').collect();
    let last = lines.len() - 1;
    let lines = lines.into_iter().enumerate();
    // The last line's backslash is a backslash.
    let lines = lines
        .map(|(i, line)| if i < last { line.strip_suffix('\\').unwrap_or(line) } else { line });
    lines.collect::<Vec<_>>().join("\n")
}

fn command(name: &str, rest: &str) -> Result<Command, String> {
    let alone = |command| match rest {
        "" => Ok(command),
        _ => Err(format!("{name} stands alone, but {rest:?} follows it: /help lists commands")),
    };
    let file = |command: fn(PathBuf) -> Command| match rest {
        "" => Err(format!("{name} needs a file: {name} FILE")),
        _ => Ok(command(unquoted(rest).into())),
    };
    match name {
        "/help" => alone(Command::Help),
        "/think" => alone(Command::Think),
        "/think-max" => alone(Command::ThinkMax),
        "/nothink" => alone(Command::NoThink),
        "/ctx" => match rest.parse() {
            Ok(tokens) if tokens >= 2 => Ok(Command::Ctx(tokens)),
            _ => {
                Err(format!("/ctx needs a number of tokens, at least 2, not {rest:?}: /ctx 65536"))
            }
        },
        "/read" => file(Command::Read),
        "/save" => file(Command::Save),
        "/load" => file(Command::Load),
        "/system" if rest.is_empty() => Ok(Command::System(None)),
        "/system" => Ok(Command::System(Some(unquoted(rest).to_owned()))),
        "/retry" => alone(Command::Retry),
        "/undo" => alone(Command::Undo),
        "/new" => alone(Command::New),
        "/stats" => alone(Command::Stats),
        "/quit" | "/exit" => alone(Command::Quit),
        _ => Err(format!(
            "no command {name}: did you mean {}? (/help lists commands; // asks a question that \
             begins with /)",
            nearest(name)
        )),
    }
}

/// `text` without the quotes around it, if there are any.
fn unquoted(text: &str) -> &str {
    let inside = |quote| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    inside('"').or_else(|| inside('\'')).unwrap_or(text)
}

/// The command whose name is most like `name`.
fn nearest(name: &str) -> &'static str {
    let likeness = |known: &&&str| {
        let same_beginning = known.starts_with(name);
        (!same_beginning, strsim::damerau_levenshtein(known, name))
    };
    NAMES.iter().min_by_key(likeness).copied().unwrap_or("/help")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(typed: &str) -> Input {
        Input::parse(typed)
    }

    fn wrong(typed: &str) -> String {
        match parse(typed) {
            Input::Wrong(problem) => problem,
            other => panic!("{typed}: {other:?}"),
        }
    }

    #[test]
    fn every_command_is_read_and_listed() {
        for name in NAMES {
            let with_operand = format!("{name} 7");
            let read = |typed: &str| matches!(parse(typed), Input::Do(_));
            assert!(read(name) || read(&with_operand), "{name}");
            assert!(HELP.contains(name), "{name}");
        }
    }

    #[test]
    fn operands_are_the_rest_of_the_line() {
        assert_eq!(parse("/ctx 4096"), Input::Do(Command::Ctx(4096)));
        assert_eq!(parse("/read my notes.txt "), Input::Do(Command::Read("my notes.txt".into())));
        assert_eq!(parse("/save 'a b'"), Input::Do(Command::Save("a b".into())));
        assert_eq!(parse("/system"), Input::Do(Command::System(None)));
        assert_eq!(parse("/system \"\""), Input::Do(Command::System(Some(String::new()))));
        assert_eq!(parse("/system Be brief"), Input::Do(Command::System(Some("Be brief".into()))));
    }

    #[test]
    fn mistakes_are_named_with_what_to_do() {
        assert!(wrong("/udno").contains("/undo"));
        assert!(wrong("/thinkmax").contains("/think-max"));
        assert!(wrong("/sta").contains("/stats"));
        assert!(wrong("/ctx").contains("/ctx 65536"));
        assert!(wrong("/ctx -3").contains("-3"));
        assert!(wrong("/ctx 1").contains("at least 2"));
        assert!(wrong("/save").contains("/save FILE"));
        assert!(wrong("/undo it").contains("it"));
    }

    #[test]
    fn questions_are_what_is_no_command() {
        assert_eq!(parse(" \n "), Input::Empty);
        assert_eq!(parse(" hi "), Input::Ask("hi".into()));
        assert_eq!(parse("//etc?"), Input::Ask("/etc?".into()));
        assert_eq!(parse("one\\\ntwo\\\n\nthree\\"), Input::Ask("one\ntwo\n\nthree\\".into()));
        assert_eq!(parse("pasted\nlines"), Input::Ask("pasted\nlines".into()));
    }
}
