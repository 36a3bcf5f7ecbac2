//! Texts that end an answer: found wherever the text is cut, and never told.

/// Most texts that a request may give.
pub const MOST_STOPS: usize = 16;
/// Most bytes of one of them.
pub const LONGEST_STOP: usize = 4096;

/// One text that ends an answer, and how much of it the end of what was read matches.
#[derive(Clone, Debug)]
struct Pattern {
    text: Vec<u8>,
    /// For each length of a matched part, the longest shorter part that also matches there
    /// (Knuth, Morris and Pratt's table).
    shorter: Vec<usize>,
    matched: usize,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let text = text.as_bytes().to_vec();
        let mut shorter = vec![0; text.len() + 1];
        let mut matched = 0;
        for end in 1..text.len() {
            while matched > 0 && text[matched] != text[end] {
                matched = shorter[matched];
            }
            matched += usize::from(text[matched] == text[end]);
            shorter[end + 1] = matched;
        }
        Self { text, shorter, matched: 0 }
    }

    /// Whether the text is complete with this byte.
    fn push(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.text[self.matched] != byte {
            self.matched = self.shorter[self.matched];
        }
        self.matched += usize::from(self.text[self.matched] == byte);
        self.matched == self.text.len()
    }
}

/// Watches a text for the first of several stops to be complete.
///
/// The result does not depend on how the text is cut: the stop that is complete first counts, and
/// of two that end together the longer one.
#[derive(Clone, Debug)]
pub struct Stops {
    patterns: Vec<Pattern>,
    /// What may be the beginning of a stop.
    held: String,
}

/// What a [`Stops`] says of a piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// What is certainly no part of a stop.
    pub text: String,
    /// The stop that came after it; nothing may be pushed after that.
    pub stop: Option<String>,
}

impl Stops {
    /// Watches for these; empty ones are passed over.
    pub fn new(texts: &[String]) -> Self {
        let patterns = texts.iter().filter(|text| !text.is_empty());
        Self { patterns: patterns.map(|text| Pattern::new(text)).collect(), held: String::new() }
    }

    /// Takes a piece of text.
    pub fn push(&mut self, text: &str) -> Passed {
        if self.patterns.is_empty() {
            return Passed { text: text.to_owned(), stop: None };
        }
        let start = self.held.len();
        self.held.push_str(text);
        for at in start..self.held.len() {
            let byte = self.held.as_bytes()[at];
            let mut complete: Option<&Pattern> = None;
            for pattern in &mut self.patterns {
                let longest = complete.map_or(0, |pattern| pattern.text.len());
                if pattern.push(byte) && pattern.text.len() > longest {
                    complete = Some(pattern);
                }
            }
            if let Some(pattern) = complete {
                let stop = String::from_utf8_lossy(&pattern.text).into_owned();
                self.held.truncate(at + 1 - pattern.text.len());
                return Passed { text: std::mem::take(&mut self.held), stop: Some(stop) };
            }
        }
        let held = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        // The beginning of a stop begins with a whole character, so this cuts none.
        let text = self.held.drain(..self.held.len() - held).collect();
        Passed { text, stop: None }
    }

    /// What is held back, when something other than text follows; watching starts again.
    pub fn release(&mut self) -> String {
        self.patterns.iter_mut().for_each(|pattern| pattern.matched = 0);
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[String], pieces: &[&str]) -> (String, Option<String>) {
        let mut watch = Stops::new(stops);
        let mut text = String::new();
        for piece in pieces {
            let passed = watch.push(piece);
            text.push_str(&passed.text);
            if passed.stop.is_some() {
                return (text, passed.stop);
            }
        }
        text.push_str(&watch.release());
        (text, None)
    }

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn a_stop_is_found_and_cut_off() {
        let stops = owned(&["END", "\n\n"]);
        assert_eq!(run(&stops, &["a E", "N", "D b"]), ("a ".into(), Some("END".into())));
        assert_eq!(run(&stops, &["a\n", "\nb"]), ("a".into(), Some("\n\n".into())));
        assert_eq!(run(&stops, &["a EN", "", "E"]), ("a ENE".into(), None));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), None));
        assert_eq!(run(&owned(&[""]), &["a"]), ("a".into(), None));
    }

    #[test]
    fn of_two_that_end_together_the_longer_counts() {
        let stops = owned(&["c", "abc"]);
        assert_eq!(run(&stops, &["xab", "c"]), ("x".into(), Some("abc".into())));
        assert_eq!(run(&stops, &["xb", "c"]), ("xb".into(), Some("c".into())));
    }

    #[test]
    fn only_what_may_be_a_stop_is_held_back() {
        let mut watch = Stops::new(&owned(&["aab"]));
        assert_eq!(watch.push("aaa").text, "a");
        assert_eq!(watch.push("c").text, "aac");
        assert_eq!(watch.push("é").text, "é");
    }

    /// The first end of any stop, and of those the longest, by looking at every position.
    fn plain(stops: &[String], text: &str) -> (String, Option<String>) {
        for end in 0..=text.len() {
            let found = stops.iter().filter(|stop| !stop.is_empty());
            let ends = found.filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()));
            if let Some(stop) = ends.max_by_key(|stop| stop.len()) {
                return (text[..end - stop.len()].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
            cut in 1usize..5,
        ) {
            let characters: Vec<String> = text.chars().map(String::from).collect();
            let pieces: Vec<String> = characters.chunks(cut).map(|chunk| chunk.concat()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&stops, &pieces), plain(&stops, &text));
        }
    }
}
