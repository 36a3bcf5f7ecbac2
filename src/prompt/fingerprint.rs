//! What a prompt said so far, in 32 bytes.

use super::Rendered;

/// Identifies the beginning of a prompt: its text, its control tokens and its recorded ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// Hashes a prompt as it grows, each byte once.
///
/// Text, control tokens and recorded ids go into hashes of their own, so that the result depends
/// on what was rendered and not on where it was looked at in between.
#[derive(Default)]
pub(super) struct Fingerprinter {
    text: blake3::Hasher,
    control: blake3::Hasher,
    recorded: blake3::Hasher,
    seen: (usize, usize, usize),
}

impl Fingerprinter {
    /// The fingerprint of `prompt`, which has only been appended to since the last call.
    pub fn of(&mut self, prompt: &Rendered) -> Fingerprint {
        let (text, control, recorded) = self.seen;
        self.text.update(&prompt.text().as_bytes()[text..]);
        for range in &prompt.control()[control..] {
            number(&mut self.control, range.start);
            number(&mut self.control, range.end);
        }
        for span in &prompt.recorded()[recorded..] {
            number(&mut self.recorded, span.at);
            number(&mut self.recorded, span.control);
            number(&mut self.recorded, span.ids.len());
            for id in span.ids.iter() {
                self.recorded.update(&id.to_le_bytes());
            }
        }
        self.seen = (prompt.text().len(), prompt.control().len(), prompt.recorded().len());
        let mut all = blake3::Hasher::new();
        for part in [&self.text, &self.control, &self.recorded] {
            all.update(part.finalize().as_bytes());
        }
        Fingerprint(*all.finalize().as_bytes())
    }
}

fn number(hash: &mut blake3::Hasher, number: usize) {
    hash.update(&(number as u64).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{EOS, USER};

    #[test]
    fn it_depends_on_what_is_there_and_not_on_where_one_looked() {
        let mut prompt = Rendered::new();
        let mut often = Fingerprinter::default();
        let mut seen = vec![often.of(&prompt)];
        prompt.push_control(USER);
        seen.push(often.of(&prompt));
        prompt.push("a");
        seen.push(often.of(&prompt));
        prompt.push("b");
        prompt.push_ids([1, 2].into());
        seen.push(often.of(&prompt));
        prompt.push_control(EOS);
        let last = often.of(&prompt);
        assert_eq!(last, Fingerprinter::default().of(&prompt));
        seen.push(last);
        for (index, one) in seen.iter().enumerate() {
            assert!(!seen[..index].contains(one), "{index}");
        }
    }

    #[test]
    fn spelling_is_not_structure() {
        let (mut text, mut control) = (Rendered::new(), Rendered::new());
        text.push(EOS);
        control.push_control(EOS);
        let of = |prompt| Fingerprinter::default().of(prompt);
        assert_ne!(of(&text), of(&control));

        let (mut one, mut two) = (Rendered::new(), Rendered::new());
        one.push_ids([1, 2].into());
        two.push_ids([1].into());
        two.push_ids([2].into());
        assert_ne!(of(&one), of(&two));
    }
}
