//! Markdown at the beginning of a line: what kind of line it is, decided as early as it can be.

/// What a line begins with. Lengths are in bytes and count what comes before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Text, after an indent.
    Text {
        /// Blanks.
        indent: usize,
    },
    /// A row of a table, after an indent.
    Row {
        /// Blanks.
        indent: usize,
    },
    /// A heading.
    Heading {
        /// From 1 to 6.
        level: usize,
        /// Up to its text.
        len: usize,
    },
    /// A block quote, in which the line begins anew.
    Quote {
        /// Up to what is quoted.
        len: usize,
    },
    /// An item of a list without numbers.
    Bullet {
        /// Blanks.
        indent: usize,
        /// Up to its text.
        len: usize,
    },
    /// An item of a list with numbers.
    Number {
        /// Blanks.
        indent: usize,
        /// Up to its text.
        len: usize,
    },
    /// A rule: the whole line.
    Rule,
    /// The beginning of fenced code: the whole line.
    Fence(Fence),
}

/// What opened fenced code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    mark: char,
    len: usize,
    indent: usize,
}

/// What `line` begins with, or `None` if only more input can tell. `ended` says that nothing
/// follows; then there is an answer.
pub fn block(line: &str, ended: bool) -> Option<Block> {
    let rest = line.trim_start_matches([' ', '\t']);
    let indent = line.len() - rest.len();
    let text = Some(Block::Text { indent });
    let Some(mark) = rest.chars().next() else { return text.filter(|_| ended) };
    let run = rest.len() - rest.trim_start_matches(mark).len();
    let after = rest[run..].chars().next();
    match mark {
        '#' if run <= 6 => match after {
            Some(' ') => Some(Block::Heading { level: run, len: indent + run + 1 }),
            Some(_) => text,
            None => text.filter(|_| ended),
        },
        '>' => match rest.chars().nth(1) {
            Some(' ') => Some(Block::Quote { len: indent + 2 }),
            Some(_) => Some(Block::Quote { len: indent + 1 }),
            None => Some(Block::Quote { len: indent + 1 }).filter(|_| ended),
        },
        '`' | '~' if run >= 3 => {
            if rest[run..].contains('`') {
                return text;
            }
            Some(Block::Fence(Fence { mark, len: run, indent })).filter(|_| ended)
        }
        '`' | '~' if after.is_none() => text.filter(|_| ended),
        '-' | '*' | '_' | '+' => bullet_or_rule(rest, mark, indent, ended),
        '0'..='9' => number(rest, indent, ended),
        '|' => Some(Block::Row { indent }),
        _ => text,
    }
}

fn bullet_or_rule(rest: &str, mark: char, indent: usize, ended: bool) -> Option<Block> {
    let bullet = mark != '_' && matches!(rest.chars().nth(1), Some(' ') | None);
    let item = if bullet {
        Block::Bullet { indent, len: indent + rest.len().min(2) }
    } else {
        Block::Text { indent }
    };
    if !rest.chars().all(|c| c == mark || c == ' ') {
        return Some(item);
    }
    if !ended {
        return None;
    }
    let rule = mark != '+' && rest.chars().filter(|c| *c == mark).count() >= 3;
    Some(if rule { Block::Rule } else { item })
}

fn number(rest: &str, indent: usize, ended: bool) -> Option<Block> {
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let mut after = rest[digits..].chars();
    match (after.next(), after.next()) {
        (Some('.' | ')'), Some(' ')) if digits <= 9 => {
            Some(Block::Number { indent, len: indent + digits + 2 })
        }
        (None, _) | (Some('.' | ')'), None) if digits <= 9 && !ended => None,
        _ => Some(Block::Text { indent }),
    }
}

impl Fence {
    /// Whether `line` closes the code, or `None` if only more input can tell.
    pub fn closed_by(&self, line: &str, ended: bool) -> Option<bool> {
        let rest = line.trim_start_matches(' ');
        let indented_too_far = line.len() - rest.len() > self.indent + 3;
        let blank = rest.trim_start_matches(self.mark);
        let run = rest.len() - blank.len();
        if indented_too_far || !blank.trim().is_empty() || (run < self.len && !blank.is_empty()) {
            return Some(false);
        }
        ended.then_some(run >= self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_its_beginning_says() {
        for (line, wanted) in [
            ("plain", Block::Text { indent: 0 }),
            ("## two", Block::Heading { level: 2, len: 3 }),
            ("#hash", Block::Text { indent: 0 }),
            ("####### seven", Block::Text { indent: 0 }),
            ("> said", Block::Quote { len: 2 }),
            (">said", Block::Quote { len: 1 }),
            ("- item", Block::Bullet { indent: 0, len: 2 }),
            ("  * item", Block::Bullet { indent: 2, len: 4 }),
            ("*emphasis*", Block::Text { indent: 0 }),
            ("**bold**", Block::Text { indent: 0 }),
            ("-5 degrees", Block::Text { indent: 0 }),
            ("---", Block::Rule),
            ("* * *", Block::Rule),
            ("-", Block::Bullet { indent: 0, len: 1 }),
            ("--", Block::Text { indent: 0 }),
            ("12. item", Block::Number { indent: 0, len: 4 }),
            ("3) item", Block::Number { indent: 0, len: 3 }),
            ("1.5 litres", Block::Text { indent: 0 }),
            ("1234567890. x", Block::Text { indent: 0 }),
            ("| a | b |", Block::Row { indent: 0 }),
            ("```rust", Block::Fence(Fence { mark: '`', len: 3, indent: 0 })),
            ("```inline```", Block::Text { indent: 0 }),
            ("`code`", Block::Text { indent: 0 }),
            ("", Block::Text { indent: 0 }),
        ] {
            assert_eq!(block(line, true), Some(wanted), "{line:?}");
        }
    }

    #[test]
    fn plain_text_is_decided_by_its_first_character() {
        for line in ["p", "É", "世", "(", "\"", "|"] {
            assert!(block(line, false).is_some(), "{line:?} waits");
        }
        assert!(block("12a", false).is_some());
        assert!(block("- x", false).is_some());
    }

    #[test]
    fn code_ends_with_a_fence_as_long_as_its_first() {
        let Some(Block::Fence(fence)) = block("````md", true) else { panic!("no fence") };
        assert_eq!(fence.closed_by("```", true), Some(false));
        assert_eq!(fence.closed_by("```` ", true), Some(true));
        assert_eq!(fence.closed_by("````", false), None);
        assert_eq!(fence.closed_by("let", false), Some(false));
        assert_eq!(fence.closed_by("````x", false), Some(false));
        assert_eq!(fence.closed_by("", false), None);
        assert_eq!(fence.closed_by("", true), Some(false));
    }
}
