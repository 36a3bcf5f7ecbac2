//! Markdown to a terminal as it streams: a line at a time, and within a line no character later
//! than its meaning is known.
//!
//! Every input has an output, and how the input is cut changes nothing: characters go in one by
//! one. Delimiters that close nothing stay as they are, so that nothing the model wrote is lost.

use super::block::{block, Block, Fence};
use super::inline::{next, Inline};
use super::terminal::visible_char;
use super::wrap::{Style, Wrap};

/// What the current line is.
#[derive(Debug, Clone, Copy)]
enum Line {
    /// Not known yet.
    Begins,
    /// Text in this style, broken between words or not.
    Text(Style, bool),
    /// In fenced code.
    Code,
}

/// Renders one answer.
#[derive(Debug, Clone)]
pub struct Markdown {
    wrap: Wrap,
    line: Line,
    /// What is not decided, of this line.
    held: String,
    fence: Option<Fence>,
    /// Block quotes that the line is in.
    quotes: usize,
    /// The character before `held`.
    before: char,
}

const BAR: &str = "│ ";

impl Markdown {
    /// A renderer at the beginning of a line of a terminal with so many columns.
    pub fn new(columns: usize) -> Self {
        Self {
            wrap: Wrap::new(columns),
            line: Line::Begins,
            held: String::new(),
            fence: None,
            quotes: 0,
            before: ' ',
        }
    }

    /// Takes more of the text, and appends what can be shown of it.
    pub fn push(&mut self, text: &str, out: &mut String) {
        for c in text.chars() {
            match c {
                '\r' => {}
                '\n' => self.end_line(out),
                _ => {
                    self.held.push(visible_char(c));
                    self.advance(false, out);
                }
            }
        }
    }

    /// Appends what was held back, and leaves the terminal without a style.
    pub fn finish(&mut self, out: &mut String) {
        if !self.held.is_empty() {
            self.advance(true, out);
        }
        self.wrap.reset(out);
    }

    fn end_line(&mut self, out: &mut String) {
        self.advance(true, out);
        self.wrap.put('\n', Style::PLAIN, out);
        self.line = Line::Begins;
        self.held.clear();
        self.quotes = 0;
        self.before = ' ';
    }

    /// Shows what can be decided.
    fn advance(&mut self, ended: bool, out: &mut String) {
        loop {
            match self.line {
                Line::Begins => {
                    if !self.begin(ended, out) {
                        return;
                    }
                }
                Line::Code => {
                    for c in std::mem::take(&mut self.held).chars() {
                        self.wrap.put_unbroken(c, Style::CODE, out);
                    }
                    return;
                }
                Line::Text(style, breaks) => {
                    let held = std::mem::take(&mut self.held);
                    let done = self.inline(&held, style, breaks, ended, out);
                    self.held = held[done..].to_owned();
                    return;
                }
            }
        }
    }

    /// Decides what the line is, and shows how it begins; false if it must wait, or if the line
    /// is complete.
    fn begin(&mut self, ended: bool, out: &mut String) -> bool {
        if let Some(fence) = self.fence {
            match fence.closed_by(&self.held, ended) {
                None => return false,
                Some(false) => self.line = Line::Code,
                Some(true) => {
                    self.fence = None;
                    self.whole_line(out);
                    return false;
                }
            }
            return true;
        }
        let Some(block) = block(&self.held, ended) else { return false };
        let plain = Style::PLAIN;
        match block {
            Block::Text { indent } => self.begin_text(indent, indent, "", plain, true, out),
            Block::Row { indent } => self.begin_text(indent, indent, "", plain, false, out),
            Block::Heading { level, len } => {
                let style = Style { bold: true, underline: level == 1, ..plain };
                self.begin_text(0, len, "", style, true, out);
            }
            Block::Bullet { indent, len } => self.begin_text(indent, len, "• ", plain, true, out),
            Block::Number { indent, len } => {
                let number = self.held[indent..len].to_owned();
                self.begin_text(indent, len, &number, plain, true, out);
            }
            Block::Quote { len } => {
                self.held.drain(..len);
                self.quotes += 1;
                self.wrap.put_str(BAR, Style::DIM, out);
                // An empty quote has no more to decide.
                return !self.held.is_empty() || ended;
            }
            Block::Rule => {
                self.held.clear();
                let width = self.wrap.width().saturating_sub(self.quotes * BAR.chars().count());
                self.wrap.put_str(&"─".repeat(width), Style::DIM, out);
                return false;
            }
            // In a quote every line of the code would have to lose its mark.
            Block::Fence(_) if self.quotes > 0 => {
                self.begin_text(0, 0, "", Style::CODE, false, out);
            }
            Block::Fence(fence) => {
                self.fence = Some(fence);
                self.whole_line(out);
                return false;
            }
        }
        true
    }

    /// Shows a line that begins or ends code.
    fn whole_line(&mut self, out: &mut String) {
        for c in std::mem::take(&mut self.held).chars() {
            self.wrap.put_unbroken(c, Style::DIM, out);
        }
    }

    /// Shows `indent` and `mark` for the first `len` bytes of a line, whose text then follows.
    fn begin_text(
        &mut self,
        indent: usize,
        len: usize,
        mark: &str,
        style: Style,
        breaks: bool,
        out: &mut String,
    ) {
        let indent = &self.held[..indent];
        self.wrap.put_str(indent, Style::PLAIN, out);
        self.wrap.put_str(mark, Style::PLAIN, out);
        let bars = BAR.repeat(self.quotes);
        let blank = indent.chars().map(|c| if c == '\t' { 4 } else { 1 }).sum::<usize>()
            + mark.chars().count();
        let bars = bars.chars().map(|c| (c, Style::DIM));
        self.wrap.set_prefix(bars.chain((0..blank).map(|_| (' ', Style::PLAIN))).collect());
        self.held.drain(..len);
        self.line = Line::Text(style, breaks);
    }

    /// Shows what can be decided of `text`, and returns how many bytes that is.
    fn inline(
        &mut self,
        text: &str,
        style: Style,
        breaks: bool,
        ended: bool,
        out: &mut String,
    ) -> usize {
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            let len = match next(rest, self.before, ended) {
                Inline::Wait => return at,
                Inline::Text(len) => {
                    self.show(&rest[..len], style, breaks, out);
                    len
                }
                Inline::Escape(len) => {
                    self.show(&rest[1..len], style, breaks, out);
                    len
                }
                Inline::Code { inner, len } => {
                    self.show(&rest[inner], Style { code: true, ..style }, breaks, out);
                    len
                }
                Inline::Emphasis { inner, len, bold, italic } => {
                    let style =
                        Style { bold: style.bold || bold, italic: style.italic || italic, ..style };
                    self.before = ' ';
                    self.inline(&rest[inner], style, breaks, true, out);
                    len
                }
                Inline::Link { text, target, len } => {
                    let underlined = Style { underline: true, ..style };
                    self.before = ' ';
                    self.inline(&rest[text.clone()], underlined, breaks, true, out);
                    if rest[text] != rest[target.clone()] {
                        let target = format!(" ({})", &rest[target]);
                        self.show(&target, Style { dim: true, ..style }, breaks, out);
                    }
                    len
                }
            };
            at += len;
            self.before = text[..at].chars().next_back().unwrap_or(' ');
        }
        at
    }

    fn show(&mut self, text: &str, style: Style, breaks: bool, out: &mut String) {
        for c in text.chars() {
            if breaks {
                self.wrap.put(c, style, out);
            } else {
                self.wrap.put_unbroken(c, style, out);
            }
        }
        self.before = text.chars().next_back().unwrap_or(self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::super::wrap::tests::screen;
    use super::*;
    use proptest::prelude::*;

    fn render(text: &str, columns: usize) -> String {
        let (mut markdown, mut out) = (Markdown::new(columns), String::new());
        markdown.push(text, &mut out);
        markdown.finish(&mut out);
        out
    }

    #[test]
    fn emphasis_code_and_links_are_styled_and_lose_their_marks() {
        for (text, wanted) in [
            ("a **b** c", "a \x1b[1mb\x1b[0m c"),
            ("a *b* c", "a \x1b[3mb\x1b[0m c"),
            ("_b_", "\x1b[3mb\x1b[0m"),
            ("***b***", "\x1b[1m\x1b[3mb\x1b[0m"),
            ("**a *b***", "\x1b[1ma \x1b[0m\x1b[1m\x1b[3mb\x1b[0m"),
            ("`a*b*`", "\x1b[36ma*b*\x1b[0m"),
            ("`` a`b ``", "\x1b[36ma`b\x1b[0m"),
            ("**`x`**", "\x1b[1m\x1b[36mx\x1b[0m"),
            ("[t](u)", "\x1b[4mt\x1b[0m\x1b[2m (u)\x1b[0m"),
            ("[u](u)", "\x1b[4mu\x1b[0m"),
            (r"\*a\*", "*a*"),
        ] {
            assert_eq!(render(text, 80), wanted, "{text}");
        }
    }

    #[test]
    fn marks_that_close_nothing_stay() {
        for text in [
            "2 * 3 * 4",
            "snake_case_name",
            "f(*args, **kwargs)",
            "a ` b",
            "**open",
            "[ ] to do",
            "x[1][2]",
            "[a](",
            "[a](b c)",
            r"\(x\) and \[y\]",
            "a****b",
            "_",
            "`",
            "**",
            "__init__x",
        ] {
            assert_eq!(render(text, 80), text);
        }
    }

    #[test]
    fn blocks_look_like_what_they_are() {
        let text =
            "# Title\n\n- one\n  - two\n1. three\n> said\n\n---\n```rust\nlet *x* = 1;\n```\nend";
        let out = render(text, 11);
        assert_eq!(
            screen(&out),
            [
                "Title",
                "",
                "• one",
                "  • two",
                "1. three",
                "│ said",
                "",
                "──────────",
                "```rust",
                "let *x* = 1;",
                "```",
                "end"
            ]
        );
        assert!(out.starts_with("\x1b[1m\x1b[4mTitle\x1b[0m\n"), "{out:?}");
        assert!(out.contains("\x1b[36mlet *x* = 1;\x1b[0m\n"), "{out:?}");
    }

    #[test]
    fn broken_lines_stay_under_their_item() {
        assert_eq!(screen(&render("- one two three", 11)), ["• one two ", "  three"]);
        assert_eq!(screen(&render("> > one two", 11)), ["│ │ one ", "│ │ two"]);
    }

    #[test]
    fn escape_sequences_of_the_model_arrive_as_pictures() {
        for text in ["\x1b[31mred", "`\x1b]0;title\x07`", "```\n\x1b[2J\n```", "> \x1b[1m"] {
            let out = render(text, 80);
            assert!(out.contains('␛'), "{out:?}");
            screen(&out);
            for forbidden in ["\x1b[31m", "\x1b]", "\x1b[2J", "\x07"] {
                assert!(!out.contains(forbidden), "{out:?}");
            }
        }
    }

    #[test]
    fn plain_characters_are_shown_at_once() {
        let mut markdown = Markdown::new(80);
        for c in "Plain text, 5 < 6 & more (or less).".chars() {
            let mut out = String::new();
            markdown.push(&c.to_string(), &mut out);
            assert_eq!(out, c.to_string());
        }
    }

    #[test]
    fn an_emphasis_that_never_ends_is_shown_before_the_line_is() {
        let mut out = String::new();
        Markdown::new(80).push(&format!("*{}", "a".repeat(300)), &mut out);
        assert!(out.len() > 290, "{} bytes", out.len());
    }

    fn markdown_like() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "[a-z ]{1,6}",
            "[*_`~#>|\\[\\]()\\\\!+.0-9-]{1,4}",
            Just("\n".to_owned()),
            Just("\n```\n".to_owned()),
            any::<char>().prop_map(String::from),
            prop::collection::vec(any::<u8>(), 1..8)
                .prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        ];
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn any_cut_of_any_text_gives_the_same(text in markdown_like(), columns in 0usize..40,
                                              cuts in prop::collection::vec(0usize..200, 0..6)) {
            let whole = render(&text, columns);
            let (mut markdown, mut out) = (Markdown::new(columns), String::new());
            let mut cuts: Vec<usize> =
                cuts.into_iter().filter(|&cut| text.is_char_boundary(cut)).collect();
            cuts.sort_unstable();
            cuts.push(text.len());
            let mut from = 0;
            for cut in cuts {
                markdown.push(&text[from..cut], &mut out);
                from = cut;
            }
            markdown.finish(&mut out);
            prop_assert_eq!(&out, &whole);
            // Nothing but our own escape sequences, and words arrive in order.
            screen(&out);
        }

        #[test]
        fn letters_are_never_lost(text in "([a-c*_` \\n>#-]|\\*\\*|- ){0,60}") {
            let letters = |text: &str| text.replace(|c| !matches!(c, 'a'..='c'), "");
            prop_assert_eq!(letters(&screen(&render(&text, 30)).concat()), letters(&text));
        }
    }
}
