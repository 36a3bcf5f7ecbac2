//! Bytes of one piece to ids: the byte-pair encoding of the `tokenizers` crate, fed from a GGUF
//! file's tables.
//!
//! The crate takes text, so the bytes of a piece reach it in the byte-level alphabet. Its cache of
//! words is switched off: it would hold, in every thread that ever encoded, the first ten thousand
//! pieces seen, up to 8 KiB each, until the thread ends. Without it encoding takes the same time
//! whatever was encoded before.
//!
//! A long piece (a megabyte of one letter) goes through in overlapping windows, since the crate
//! spends fifty bytes and more on each byte and slows down as its heap outgrows the processor's
//! caches. The result is that of the whole piece, because what two neighbouring tokens become
//! depends on nothing beyond them: text may be cut wherever the token before the cut and the token
//! after it are known to stand side by side. The tokens before a cut come from one window, those
//! after it from the next, and the first of the latter has to be the very token that followed the
//! cut in the former; if it is not, the window grows.

use std::collections::HashMap;

use tokenizers::models::bpe::{Vocab, BPE};
use tokenizers::{Model, Token};

use super::{alphabet, Error};

/// Bytes of a window: several times the longest token, and little enough for the crate to be quick.
const WINDOW: usize = 1024;

/// The ordinary tokens and what joins them.
#[derive(Debug, Clone)]
pub(super) struct Merges {
    model: BPE,
}

impl Merges {
    /// Resolves `merges` (strongest first) against the ordinary tokens.
    ///
    /// The crate's builder notices no byte without a token, does not say which merge is at fault,
    /// and panics if one makes more than the longest token, so all of it is checked first.
    pub(super) fn new(ordinary: &HashMap<&str, u32>, merges: &[String]) -> Result<Self, Error> {
        let is_missing = |byte: &u8| {
            let written = alphabet::encode(*byte).to_string();
            !ordinary.contains_key(written.as_str())
        };
        if let Some(byte) = (0..=255).find(is_missing) {
            return Err(Error::MissingByte(byte));
        }
        let mut pairs = Vec::with_capacity(merges.len());
        for (index, merge) in merges.iter().enumerate() {
            let Some((left, right)) = merge.split_once(' ') else {
                return Err(Error::MergeSyntax { index, merge: merge.clone() });
            };
            let joined = format!("{left}{right}");
            for token in [left, right, &joined] {
                if !ordinary.contains_key(token) {
                    return Err(Error::MergeToken { index, token: token.to_owned() });
                }
            }
            pairs.push((left.to_owned(), right.to_owned()));
        }
        let vocabulary: Vocab =
            ordinary.iter().map(|(&token, &id)| (token.to_owned(), id)).collect();
        let builder = BPE::builder().vocab_and_merges(vocabulary, pairs).cache_capacity(0);
        let model = builder.build().map_err(|error| Error::Metadata(error.to_string()))?;
        Ok(Self { model })
    }

    /// Appends the ids of one piece; `written` is a buffer that pieces of one text share.
    pub(super) fn encode(&self, piece: &str, written: &mut String, ids: &mut Vec<u32>) {
        self.encode_by(WINDOW, piece.as_bytes(), written, ids);
    }

    fn encode_by(&self, window: usize, piece: &[u8], written: &mut String, ids: &mut Vec<u32>) {
        let mut window = window;
        let mut rest = piece;
        let mut tokens = self.tokens(first(rest, window), written);
        while rest.len() > window {
            let (kept, length) = before(&tokens, window - window / 8);
            let after = &rest[length..];
            let next = self.tokens(first(after, window), written);
            let id = |token: Option<&Token>| token.map(|token| token.id);
            if kept > 0 && id(next.first()) == id(tokens.get(kept)) {
                ids.extend(tokens.drain(..kept).map(|token| token.id));
                rest = after;
                tokens = next;
            } else {
                window *= 2;
                tokens = self.tokens(first(rest, window), written);
            }
        }
        ids.extend(tokens.into_iter().map(|token| token.id));
    }

    /// The tokens of `bytes` as a piece of their own.
    fn tokens(&self, bytes: &[u8], written: &mut String) -> Vec<Token> {
        written.clear();
        written.extend(bytes.iter().copied().map(alphabet::encode));
        match self.model.tokenize(written) {
            Ok(tokens) => tokens,
            Err(error) => unreachable!("every byte has a token, yet: {error}"),
        }
    }
}

/// At most `length` bytes from the beginning.
fn first(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get(..length).unwrap_or(bytes)
}

/// How many tokens end within the first `limit` bytes, and where the last of them does.
fn before(tokens: &[Token], limit: usize) -> (usize, usize) {
    let (mut kept, mut end) = (0, 0);
    for token in tokens {
        let next = end + token.value.chars().count();
        if next > limit {
            break;
        }
        (kept, end) = (kept + 1, next);
    }
    (kept, end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A vocabulary of the 256 bytes and of what `merges` join, in this order.
    fn vocabulary(merges: &[(String, String)]) -> Merges {
        let mut tokens: Vec<String> =
            (0..=255).map(|byte| alphabet::encode(byte).to_string()).collect();
        tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
        let ordinary = tokens.iter().map(String::as_str).zip(0..).collect();
        let merges: Vec<String> =
            merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        Merges::new(&ordinary, &merges).unwrap()
    }

    /// The definition: join the strongest, leftmost pair until there is none.
    fn by_definition(merges: &[(String, String)], piece: &str) -> Vec<String> {
        let mut tokens: Vec<String> = piece.chars().map(String::from).collect();
        let rank = |pair: &[String]| {
            merges.iter().position(|(left, right)| *left == pair[0] && *right == pair[1])
        };
        loop {
            let pairs = tokens.windows(2).enumerate();
            let strongest = pairs.filter_map(|(at, pair)| Some((rank(pair)?, at))).min();
            let Some((_, at)) = strongest else { return tokens };
            let joined = tokens[at..at + 2].concat();
            tokens.splice(at..at + 2, [joined]);
        }
    }

    /// Merges that build on each other, in any order, the same token in several ways.
    fn any_merges() -> impl Strategy<Value = Vec<(String, String)>> {
        let joins = prop::collection::vec((any::<u16>(), any::<u16>()), 1..24);
        (joins, any::<bool>()).prop_flat_map(|(joins, shuffled)| {
            let mut tokens: Vec<String> = ["a", "b"].map(str::to_owned).into();
            let mut merges = Vec::new();
            for (left, right) in joins {
                let pick = |at: u16| tokens[usize::from(at) % tokens.len()].clone();
                let merge = (pick(left), pick(right));
                if !merges.contains(&merge) {
                    tokens.push(format!("{}{}", merge.0, merge.1));
                    merges.push(merge);
                }
            }
            if shuffled {
                Just(merges).prop_shuffle().boxed()
            } else {
                Just(merges).boxed()
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn windows_of_any_length_merge_by_definition(
            merges in any_merges(),
            piece in "[ab]{2,160}",
            window in 1usize..180,
        ) {
            let model = vocabulary(&merges);
            let mut ids = Vec::new();
            model.encode_by(window, piece.as_bytes(), &mut String::new(), &mut ids);
            let tokens: Vec<String> =
                ids.iter().map(|&id| model.model.id_to_token(id).unwrap()).collect();
            prop_assert_eq!(tokens, by_definition(&merges, &piece));
        }
    }
}
