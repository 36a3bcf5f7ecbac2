//! Markdown within a line: emphasis, code and links, decided as early as they can be.

use std::ops::Range;

/// Characters that an unfinished span may hold back; a longer one is text.
const MOST_HELD: usize = 240;

/// What a line goes on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inline {
    /// Only more input can tell.
    Wait,
    /// So many bytes of text.
    Text(usize),
    /// A backslash and the character that it makes ordinary.
    Escape(usize),
    /// Emphasis.
    Emphasis {
        /// Between the delimiters.
        inner: Range<usize>,
        /// Delimiters included.
        len: usize,
        /// Of two or three.
        bold: bool,
        /// Of one or three.
        italic: bool,
    },
    /// Code.
    Code {
        /// Between the delimiters.
        inner: Range<usize>,
        /// Delimiters included.
        len: usize,
    },
    /// A link.
    Link {
        /// What it says.
        text: Range<usize>,
        /// Where it leads.
        target: Range<usize>,
        /// All of it.
        len: usize,
    },
}

/// What `line`, which is not empty and follows the character `before`, begins with. `ended` says
/// that nothing follows it; then the answer is never [`Inline::Wait`].
pub fn next(line: &str, before: char, ended: bool) -> Inline {
    let Some(first) = line.chars().next() else { return Inline::Wait };
    let found = match first {
        '\\' => escape(line),
        '`' => code(line),
        '*' | '_' => emphasis(line, first, before, ended),
        '[' => link(line),
        _ => Some(Inline::Text(line.find(is_special).unwrap_or(line.len()))),
    };
    match found {
        Some(found) => found,
        // Nothing closes it: its delimiter is text.
        None if ended || line.chars().count() > MOST_HELD => {
            Inline::Text(run(line, first).max(first.len_utf8()))
        }
        None => Inline::Wait,
    }
}

fn is_special(c: char) -> bool {
    matches!(c, '\\' | '`' | '*' | '_' | '[')
}

/// Bytes of `c`s that `text` begins with.
fn run(text: &str, c: char) -> usize {
    text.len() - text.trim_start_matches(c).len()
}

/// Only what Markdown itself uses is escaped: `\(` and `\[` open formulas.
fn escape(line: &str) -> Option<Inline> {
    let next = line.chars().nth(1)?;
    Some(match next {
        '*' | '_' | '`' | '#' | '>' | '-' | '+' | '.' | '!' | '|' | '~' | '<' => {
            Inline::Escape(1 + next.len_utf8())
        }
        _ => Inline::Text(1),
    })
}

/// The run of exactly `n` backticks in `text` from `from` on; `None` if there is none yet.
fn closing_ticks(text: &str, from: usize, n: usize) -> Option<usize> {
    let mut at = from;
    while let Some(found) = text.get(at..)?.find('`') {
        let start = at + found;
        let len = run(&text[start..], '`');
        if len == n {
            return Some(start);
        }
        at = start + len;
    }
    None
}

/// A closing run may still grow and then close nothing; that is too rare to wait a character for.
fn code(line: &str) -> Option<Inline> {
    let n = run(line, '`');
    let close = closing_ticks(line, n, n)?;
    let inner = &line[n..close];
    let padded = inner.len() > 2 && inner.starts_with(' ') && inner.ends_with(' ');
    let pad = usize::from(padded);
    Some(Inline::Code { inner: n + pad..close - pad, len: close + n })
}

fn emphasis(line: &str, mark: char, before: char, ended: bool) -> Option<Inline> {
    let n = run(line, mark);
    let inside_word = mark == '_' && before.is_alphanumeric();
    if n > 3 || inside_word {
        return Some(Inline::Text(n));
    }
    let next = line[n..].chars().next()?;
    if next.is_whitespace() {
        return Some(Inline::Text(n));
    }
    let close = closing_mark(line, mark, n, ended)?;
    Some(Inline::Emphasis { inner: n..close, len: close + n, bold: n > 1, italic: n != 2 })
}

/// Where the `n` marks are that close the `n` at the beginning of `line`.
fn closing_mark(line: &str, mark: char, n: usize, ended: bool) -> Option<usize> {
    let mut at = n;
    let mut before = ' ';
    while let Some(c) = line[at..].chars().next() {
        let rest = &line[at..];
        let mut step = c.len_utf8();
        if c == '`' {
            step = run(rest, '`');
            if let Some(close) = closing_ticks(line, at + step, step) {
                step = close + step - at;
            }
        } else if c == '\\' {
            step += rest[1..].chars().next().map_or(0, char::len_utf8);
        } else if c == mark {
            step = run(rest, mark);
            let after = rest[step..].chars().next();
            // It may be longer, and `_` needs to know what follows.
            if after.is_none() && !ended {
                return None;
            }
            let in_word = mark == '_' && after.is_some_and(char::is_alphanumeric);
            if !before.is_whitespace() && !in_word {
                if step == n {
                    return Some(at);
                }
                // What one and two marks opened, three close, the inner first.
                if step == 3 {
                    return Some(at + step - n);
                }
            }
        }
        before = line[..at + step].chars().next_back().unwrap_or(' ');
        at += step;
    }
    None
}

fn link(line: &str) -> Option<Inline> {
    let text_end = line.find(']')?;
    match line[text_end + 1..].chars().next()? {
        '(' if text_end > 1 => {}
        _ => return Some(Inline::Text(1)),
    }
    let target = text_end + 2;
    let end = target + line[target..].find([')', ' '])?;
    if line[end..].starts_with(' ') || end == target {
        return Some(Inline::Text(1));
    }
    Some(Inline::Link { text: 1..text_end, target: target..end, len: end + 1 })
}
