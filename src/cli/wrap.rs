//! Styled text onto a terminal as it streams, broken between words.
//!
//! No character waits for the end of its word: a word that turns out not to fit is wiped and
//! written again on the next line. Only words whose width every terminal agrees on are.

use unicode_width::UnicodeWidthChar;

use super::terminal::RESET;

/// Terminals narrower than this are written to as if they were not.
const LEAST_WIDTH: usize = 10;
/// Spaces of a tab.
const TAB: usize = 4;

/// How text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// Heavier.
    pub bold: bool,
    /// Slanted.
    pub italic: bool,
    /// With a line below.
    pub underline: bool,
    /// Fainter.
    pub dim: bool,
    /// In the colour of code.
    pub code: bool,
}

impl Style {
    /// As it comes.
    pub const PLAIN: Self =
        Self { bold: false, italic: false, underline: false, dim: false, code: false };
    /// Fainter.
    pub const DIM: Self = Self { dim: true, ..Self::PLAIN };
    /// In the colour of code.
    pub const CODE: Self = Self { code: true, ..Self::PLAIN };

    fn codes(self) -> impl Iterator<Item = &'static str> {
        let codes = [
            (self.bold, "\x1b[1m"),
            (self.dim, "\x1b[2m"),
            (self.italic, "\x1b[3m"),
            (self.underline, "\x1b[4m"),
            (self.code, "\x1b[36m"),
        ];
        codes.into_iter().filter(|(on, _)| *on).map(|(_, code)| code)
    }
}

/// A place on the terminal, and what was written just before it.
#[derive(Debug, Clone)]
pub struct Wrap {
    /// Columns that are used: one fewer than there are, since terminals disagree about what the
    /// last one does.
    width: usize,
    column: usize,
    /// The style that the terminal is in.
    style: Style,
    /// What a line that was broken goes on with.
    prefix: Vec<(char, Style)>,
    /// The word that is being written.
    word: Vec<(char, Style)>,
}

impl Wrap {
    /// At the beginning of a line of a terminal with so many columns.
    pub fn new(columns: usize) -> Self {
        Self {
            width: columns.saturating_sub(1).max(LEAST_WIDTH),
            column: 0,
            style: Style::PLAIN,
            prefix: Vec::new(),
            word: Vec::new(),
        }
    }

    /// Columns that are used.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Writes `c`, on a new line if it does not fit.
    pub fn put(&mut self, c: char, style: Style, out: &mut String) {
        match c {
            '\n' => self.new_line(out),
            '\t' => (0..TAB).for_each(|_| self.put(' ', style, out)),
            ' ' => {
                self.word.clear();
                // A space that does not fit is what the line is broken at.
                if self.column < self.width {
                    self.emit(' ', style, out);
                }
            }
            _ => {
                let width = c.width().unwrap_or(0);
                if self.column + width > self.width && self.column > self.prefix_width() {
                    self.break_line(out);
                }
                self.emit(c, style, out);
                // Terminals disagree about the width of joined and variant characters, and
                // wide scripts may be broken anywhere.
                if width > 1 || matches!(c, '\u{200d}' | '\u{fe00}'..='\u{fe0f}') {
                    self.word.clear();
                } else {
                    self.word.push((c, style));
                }
            }
        }
    }

    /// Writes `text` as [`put`](Self::put) does.
    pub fn put_str(&mut self, text: &str, style: Style, out: &mut String) {
        text.chars().for_each(|c| self.put(c, style, out));
    }

    /// Writes `c` and leaves it to the terminal where a line is broken.
    pub fn put_unbroken(&mut self, c: char, style: Style, out: &mut String) {
        match c {
            '\n' => self.new_line(out),
            '\t' => (0..TAB).for_each(|_| self.emit(' ', style, out)),
            _ => self.emit(c, style, out),
        }
        self.word.clear();
    }

    /// Lines that are broken from now on go on with this; until the line ends.
    pub fn set_prefix(&mut self, prefix: Vec<(char, Style)>) {
        // A prefix that leaves no room would break every character off.
        let fits = width_of(&prefix) + LEAST_WIDTH / 2 <= self.width;
        self.prefix = if fits { prefix } else { Vec::new() };
    }

    /// Leaves the terminal without a style.
    pub fn reset(&mut self, out: &mut String) {
        self.set_style(Style::PLAIN, out);
    }

    fn new_line(&mut self, out: &mut String) {
        self.reset(out);
        out.push('\n');
        self.column = 0;
        self.prefix.clear();
        self.word.clear();
    }

    fn break_line(&mut self, out: &mut String) {
        let word = std::mem::take(&mut self.word);
        let width = width_of(&word);
        let moves = width > 0 && self.column.saturating_sub(width) > self.prefix_width();
        if moves {
            self.reset(out);
            out.push_str(&format!("\x1b[{width}D\x1b[K"));
        }
        self.reset(out);
        out.push('\n');
        self.column = 0;
        for (c, style) in self.prefix.clone() {
            self.emit(c, style, out);
        }
        if moves {
            for &(c, style) in &word {
                self.emit(c, style, out);
            }
            self.word = word;
        }
    }

    fn emit(&mut self, c: char, style: Style, out: &mut String) {
        self.set_style(style, out);
        out.push(c);
        self.column += c.width().unwrap_or(0);
    }

    fn set_style(&mut self, style: Style, out: &mut String) {
        if style != self.style {
            if self.style != Style::PLAIN {
                out.push_str(RESET);
            }
            out.extend(style.codes());
            self.style = style;
        }
    }

    fn prefix_width(&self) -> usize {
        width_of(&self.prefix)
    }
}

fn width_of(text: &[(char, Style)]) -> usize {
    text.iter().map(|(c, _)| c.width().unwrap_or(0)).sum()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a terminal shows after `output`: text, styles left out.
    pub fn screen(output: &str) -> Vec<String> {
        let mut lines: Vec<Vec<char>> = vec![Vec::new()];
        let mut chars = output.chars();
        while let Some(c) = chars.next() {
            let line = lines.last_mut().unwrap();
            match c {
                '\n' => lines.push(Vec::new()),
                '\x1b' => {
                    assert_eq!(chars.next(), Some('['));
                    let code: String =
                        chars.by_ref().take_while_inclusive(|c| !c.is_ascii_alphabetic());
                    if let Some(n) = code.strip_suffix('D') {
                        let n: usize = n.parse().unwrap();
                        assert!(n <= line.len(), "the cursor left the line");
                        line.truncate(line.len() - n);
                    } else {
                        assert!(code.ends_with('m') || code == "K", "{code:?}");
                    }
                }
                c => line.push(c),
            }
        }
        lines.into_iter().map(|line| line.into_iter().collect()).collect()
    }

    trait TakeWhileInclusive: Iterator<Item = char> {
        fn take_while_inclusive(&mut self, go_on: impl Fn(&char) -> bool) -> String {
            let mut taken = String::new();
            for c in self {
                taken.push(c);
                if !go_on(&c) {
                    break;
                }
            }
            taken
        }
    }

    impl<I: Iterator<Item = char>> TakeWhileInclusive for I {}

    fn wrapped(text: &str, columns: usize) -> String {
        let (mut wrap, mut out) = (Wrap::new(columns), String::new());
        wrap.put_str(text, Style::PLAIN, &mut out);
        out
    }

    #[test]
    fn words_are_not_cut_and_every_character_is_out_at_once() {
        let out = wrapped("one two three four", 12);
        assert_eq!(screen(&out), ["one two ", "three four"]);
        let (mut wrap, mut out) = (Wrap::new(12), String::new());
        for c in "one two thr".chars() {
            wrap.put(c, Style::PLAIN, &mut out);
            assert!(out.ends_with(c), "{c} is held back");
        }
    }

    #[test]
    fn a_word_longer_than_the_line_is_cut() {
        assert_eq!(screen(&wrapped("abcdefghijklmno", 11)), ["abcdefghij", "klmno"]);
    }

    #[test]
    fn wide_characters_count_twice_and_break_anywhere() {
        assert_eq!(screen(&wrapped("一二三四五六七", 11)), ["一二三四五", "六七"]);
    }

    #[test]
    fn a_broken_line_goes_on_with_its_prefix_in_its_style() {
        let (mut wrap, mut out) = (Wrap::new(12), String::new());
        wrap.put_str("│ ", Style::DIM, &mut out);
        wrap.set_prefix("│ ".chars().map(|c| (c, Style::DIM)).collect());
        let bold = Style { bold: true, ..Style::PLAIN };
        wrap.put_str("one two three", bold, &mut out);
        wrap.put_str("\nx", Style::PLAIN, &mut out);
        assert_eq!(screen(&out), ["│ one two ", "│ three", "x"]);
        assert!(out.contains("\x1b[1mthree\x1b[0m\n"), "{out:?}");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_overflows(text in "[a-z ]{0,80}", columns in 0usize..30) {
            let lines = screen(&wrapped(&text, columns));
            let width = columns.saturating_sub(1).max(LEAST_WIDTH);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= width));
            let letters = |text: &str| text.replace(' ', "");
            prop_assert_eq!(letters(&lines.concat()), letters(&text));
        }
    }
}
