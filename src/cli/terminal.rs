//! What standard output and standard error are, and what may be sent to them.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

/// The width of a terminal that does not tell.
const DEFAULT_WIDTH: usize = 80;

/// Faint text.
pub const DIM: &str = "\x1b[2m";
/// The end of all styles.
pub const RESET: &str = "\x1b[0m";

/// Where the program's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Standard output is a terminal.
    pub stdout: bool,
    /// Standard error is a terminal.
    pub stderr: bool,
    /// Escape sequences are understood and wanted.
    pub styles: bool,
}

impl Terminal {
    /// As the program finds itself; `plain` asks for no styles.
    pub fn detect(plain: bool) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            stdout: io::stdout().is_terminal(),
            stderr: io::stderr().is_terminal(),
            styles: !plain && !dumb && !set("NO_COLOR"),
        }
    }

    /// Whether answers are rendered rather than copied.
    pub fn renders(&self) -> bool {
        self.stdout && self.styles
    }

    /// Columns, as of now.
    pub fn width(&self) -> usize {
        terminal_size::terminal_size().map_or(DEFAULT_WIDTH, |(width, _)| usize::from(width.0))
    }

    /// `text` for standard error: dim where that is possible.
    pub fn dim(&self, text: &str) -> String {
        if self.stderr && self.styles {
            format!("{DIM}{text}{RESET}")
        } else {
            text.to_owned()
        }
    }
}

static PROGRAM: OnceLock<&str> = OnceLock::new();

/// The program's name from now on, if it has none yet.
pub fn set_program(name: &'static str) {
    let _ = PROGRAM.set(name);
}

/// The program's name.
pub fn program() -> &'static str {
    PROGRAM.get().copied().unwrap_or("ds4")
}

/// A line on standard error in the program's name. Nobody listening is no reason to fail.
pub fn tell(message: &str) {
    let _ = writeln!(io::stderr(), "{}: {}", program(), visible(message));
}

/// A line on standard error as it is.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// What a character from outside may look like on a terminal: control characters become their
/// pictures, so that no text can move the cursor, retitle the window or fake a prompt; what would
/// reorder the text around it becomes U+FFFD. New lines and tabs stay.
pub fn visible_char(c: char) -> char {
    match c {
        '\n' | '\t' => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + c as u32).unwrap_or(char::REPLACEMENT_CHARACTER),
        '\x7f' => '\u{2421}',
        '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            char::REPLACEMENT_CHARACTER
        }
        _ => c,
    }
}

/// The text with every character as [`visible_char`] has it.
pub fn visible(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| visible_char(c) == c) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.chars().map(visible_char).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_cannot_steer_the_terminal() {
        assert_eq!(visible("a\x1b[2J\x07b\r\n\tc"), "a␛[2J␇b␍\n\tc");
        assert_eq!(visible("\u{9b}31m \u{202e}x"), "\u{fffd}31m \u{fffd}x");
        assert!(matches!(visible("Grüße, 世界\n"), Cow::Borrowed(_)));
    }
}
