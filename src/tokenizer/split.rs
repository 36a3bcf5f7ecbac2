//! Text to the pieces that merges may not cross: the pre-tokenizer of DeepSeek V4.
//!
//! The published `tokenizer.json` cuts a text three times, each time cutting the pieces of the time
//! before at every match of a pattern, matches and the gaps between them both being pieces:
//!
//! 1. `\p{N}{1,3}`: up to three digits;
//! 2. `[一-龥぀-ゟ゠-ヿ]+`: a run of Han or Kana;
//! 3. the first that matches of
//!    * one ASCII punctuation character and then `[A-Za-z]+`,
//!    * `[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+`: a word, with the space before it,
//!    * ` ?[\p{P}\p{S}]+[\r\n]*`: punctuation, with the space before it and line ends after it,
//!    * `\s*[\r\n]+`: blank up to a last line end,
//!    * `\s+(?!\S)`: blank, but for the last character, which belongs to the word after it,
//!    * `\s+`.
//!
//! GGUF files name it `joyai-llm`. It is written out here as a scanner rather than run by the
//! `tokenizers` crate, which also does the merging: the look-ahead needs a backtracking engine,
//! `fancy-regex`, which gives up at its limit of steps on a run of blanks of about a megabyte, and
//! the crate takes that for the end of the matches: the rest of the text stays one piece and gets
//! other ids, without an error. This takes each character a bounded number of times.

use std::sync::OnceLock;

use regex_syntax::hir::{Class, HirKind};

/// `\p{L}`.
const LETTER: u8 = 1;
/// `\p{M}`.
const MARK: u8 = 2;
/// `\p{P}` or `\p{S}`.
const SIGN: u8 = 4;
/// `\p{N}`.
const NUMBER: u8 = 8;
/// `\s`.
const BLANK: u8 = 16;
/// What stage 2 isolates.
const HAN: u8 = 32;

/// The classes of every character, in pages of 256 that equal pages share.
struct Classes {
    page_of: Vec<u16>,
    pages: Vec<[u8; 256]>,
}

impl Classes {
    fn get() -> &'static Self {
        static CLASSES: OnceLock<Classes> = OnceLock::new();
        CLASSES.get_or_init(Self::new)
    }

    fn new() -> Self {
        let patterns = [
            (r"\p{L}", LETTER),
            (r"\p{M}", MARK),
            (r"[\p{P}\p{S}]", SIGN),
            (r"\p{N}", NUMBER),
            (r"\s", BLANK),
            ("[一-龥぀-ゟ゠-ヿ]", HAN),
        ];
        let mut flat = vec![[0u8; 256]; 0x1100];
        for (pattern, class) in patterns {
            for (first, last) in ranges(pattern) {
                for code in first..=last {
                    flat[(code >> 8) as usize][(code & 0xff) as usize] |= class;
                }
            }
        }
        let mut pages: Vec<[u8; 256]> = Vec::new();
        let page_of = flat
            .into_iter()
            .map(|page| {
                let known = pages.iter().position(|other| *other == page);
                let at = known.unwrap_or_else(|| {
                    pages.push(page);
                    pages.len() - 1
                });
                at as u16
            })
            .collect();
        Self { page_of, pages }
    }

    fn of(&self, character: char) -> u8 {
        let code = character as usize;
        self.pages[usize::from(self.page_of[code >> 8])][code & 0xff]
    }
}

/// The code points of a character class, which is one of the constants above.
fn ranges(pattern: &str) -> Vec<(u32, u32)> {
    match regex_syntax::parse(pattern).map(|hir| hir.into_kind()) {
        Ok(HirKind::Class(Class::Unicode(class))) => {
            class.iter().map(|range| (range.start() as u32, range.end() as u32)).collect()
        }
        other => unreachable!("{pattern} is a class of characters, got {other:?}"),
    }
}

/// Calls `piece` with each piece of `text`, in order; joined, they are `text`.
pub(super) fn pieces<'t>(text: &'t str, mut piece: impl FnMut(&'t str)) {
    let classes = Classes::get();
    let mut rest = text;
    while !rest.is_empty() {
        let (stretch, after) = rest.split_at(stretch(rest, classes));
        words(stretch, classes, &mut piece);
        rest = after;
    }
}

/// Bytes at the beginning of `text` whose characters satisfy `belongs`.
fn run(text: &str, classes: &Classes, belongs: impl Fn(u8) -> bool) -> usize {
    text.find(|character| !belongs(classes.of(character))).unwrap_or(text.len())
}

/// Stages 1 and 2: bytes of the first stretch, which is digits, or Han and Kana, or neither.
fn stretch(text: &str, classes: &Classes) -> usize {
    let class = text.chars().next().map_or(0, |character| classes.of(character));
    if class & NUMBER != 0 {
        let digits = text.chars().take(3).take_while(|&digit| classes.of(digit) & NUMBER != 0);
        digits.map(char::len_utf8).sum()
    } else if class & HAN != 0 {
        run(text, classes, |class| class & HAN != 0)
    } else {
        run(text, classes, |class| class & (NUMBER | HAN) == 0)
    }
}

/// Stage 3: the words of one stretch and the gaps between them.
fn words<'t>(text: &'t str, classes: &Classes, piece: &mut impl FnMut(&'t str)) {
    let mut rest = text;
    let mut gap = 0;
    while let Some(first) = rest[gap..].chars().next() {
        let length = word(&rest[gap..], classes);
        if length == 0 {
            gap += first.len_utf8();
            continue;
        }
        if gap > 0 {
            piece(&rest[..gap]);
        }
        let (found, after) = rest[gap..].split_at(length);
        piece(found);
        rest = after;
        gap = 0;
    }
    if !rest.is_empty() {
        piece(rest);
    }
}

/// Bytes of the word that `text` begins with; 0 if it begins with none.
fn word(text: &str, classes: &Classes) -> usize {
    let letters = |text: &str| run(text, classes, |class| class & (LETTER | MARK) != 0);
    let signs = |text: &str| run(text, classes, |class| class & SIGN != 0);
    let mut characters = text.chars();
    let Some(first) = characters.next() else { return 0 };
    let rest = characters.as_str();
    let class = classes.of(first);

    if first.is_ascii_punctuation() {
        let ascii = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        if ascii > 0 {
            return 1 + ascii;
        }
    }
    if class & (LETTER | MARK) != 0 {
        return letters(text);
    }
    if class & SIGN == 0 && !matches!(first, '\r' | '\n') {
        let length = letters(rest);
        if length > 0 {
            return first.len_utf8() + length;
        }
    }
    let spaces = usize::from(first == ' ');
    let length = signs(&text[spaces..]);
    if length > 0 {
        let end = spaces + length;
        let is_line_end = |character| matches!(character, '\r' | '\n');
        return text[end..].find(|character| !is_line_end(character)).unwrap_or(text.len() - end)
            + end;
    }
    if class & BLANK == 0 {
        return 0;
    }
    blank(&text[..run(text, classes, |class| class & BLANK != 0)], text.len())
}

/// Bytes that the last three patterns take from a run of blanks at the beginning of a text of
/// `length` bytes.
fn blank(blanks: &str, length: usize) -> usize {
    if let Some(line_end) = blanks.rfind(['\r', '\n']) {
        return line_end + 1;
    }
    match blanks.char_indices().next_back() {
        Some((last, _)) if last > 0 && blanks.len() < length => last,
        _ => blanks.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(text: &str) -> Vec<&str> {
        let mut found = Vec::new();
        pieces(text, |piece| found.push(piece));
        found
    }

    #[test]
    fn each_pattern_cuts_as_published() {
        let cases: [(&str, &[&str]); 16] = [
            ("1234567", &["123", "456", "7"]),
            ("x12y", &["x", "12", "y"]),
            ("日本語テキスト abc", &["日本語テキスト", " abc"]),
            ("中・国", &["中", "・", "国"]),
            ("x.foo(bar)", &["x", ".foo", "(bar", ")"]),
            ("!!foo", &["!!", "foo"]),
            ("\tfoo  bar", &["\tfoo", " ", " bar"]),
            ("perché", &["perché"]),
            ("e\u{301}\u{302}z", &["e\u{301}\u{302}z"]),
            ("a ?!\r\n\r\nb", &["a", " ?!\r\n\r\n", "b"]),
            ("a \n \n  b", &["a", " \n \n", " ", " b"]),
            ("a   ", &["a", "   "]),
            ("a  1", &["a", "  ", "1"]),
            ("a  \u{1}", &["a", " ", " ", "\u{1}"]),
            ("\u{1}\u{2}abc", &["\u{1}", "\u{2}abc"]),
            ("<｜User｜>", &["<｜", "User", "｜>"]),
        ];
        for (text, expected) in cases {
            assert_eq!(cut(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_text(text in r"[a-zé0-9 \n\r\t.!<>｜中ー\u{1}\u{301}]{0,40}|\PC{0,20}") {
            prop_assert_eq!(cut(&text).concat(), text.clone());
            prop_assert!(cut(&text).iter().all(|piece| !piece.is_empty()));
        }
    }
}
