//! Text to ids and back: the byte-level BPE of DeepSeek V4, built from a GGUF file's own vocabulary.
//!
//! Text goes through two steps. A scanner cuts it into pieces that no token may cross; then the
//! `tokenizers` crate joins the bytes of each piece by the vocabulary's merges, in their order. Both
//! take time in proportion to the text, whatever the text is, and both are exact: ids equal those
//! of the published `tokenizer.json`. The way back is a table of bytes
//! ([`Tokenizer::token_bytes`]) and a [`Decoder`] that never cuts a character in two.
//!
//! **Plain text never becomes a control token.** The published tokenizer replaces `<｜User｜>` or
//! `</think>` wherever they appear in text, so that whoever controls a message controls the turn
//! structure. [`Tokenizer::encode`] has no such step: the spelling of a control token in text comes
//! out as the ordinary tokens of its characters. Control ids are placed by the prompt template
//! alone, through [`Tokenizer::control_id`] and [`Control`].

#![forbid(unsafe_code)]

mod alphabet;
mod decode;
mod gguf;
mod merge;
mod split;

pub use decode::Decoder;

use std::collections::HashMap;

use merge::Merges;

/// GGUF `tokenizer.ggml.token_type` of an ordinary token.
const NORMAL: i32 = 1;
/// GGUF `tokenizer.ggml.token_type` of a control token.
const CONTROL: i32 = 3;
/// GGUF `tokenizer.ggml.token_type` of a token that a converter added to the vocabulary.
const USER_DEFINED: i32 = 4;

/// Begin of sentence: opens every prompt.
pub const BOS: &str = "<｜begin▁of▁sentence｜>";
/// End of sentence: closes every assistant turn; generation stops on it.
pub const EOS: &str = "<｜end▁of▁sentence｜>";
/// Opens a user turn.
pub const USER: &str = "<｜User｜>";
/// Opens an assistant turn.
pub const ASSISTANT: &str = "<｜Assistant｜>";
/// Opens reasoning.
pub const THINK: &str = "<think>";
/// Closes reasoning, or says that there is none.
pub const END_THINK: &str = "</think>";
/// The marker in every tag of a tool call: `<｜DSML｜invoke …>`.
pub const DSML: &str = "｜DSML｜";
/// Opens a reminder that holds for the next reply.
pub const LATEST_REMINDER: &str = "<｜latest_reminder｜>";

/// The spellings that are control tokens whatever type the file gives them.
const SPELLINGS: [&str; 8] = [BOS, EOS, USER, ASSISTANT, THINK, END_THINK, DSML, LATEST_REMINDER];

/// Why a vocabulary cannot be used.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// A metadata key that the tokenizer needs is absent, of another type, or not UTF-8.
    #[error("the file's vocabulary: {0}")]
    Metadata(String),
    /// A tokenizer of another family.
    #[error(
        "tokenizer.ggml.model is {found:?}, only \"gpt2\" (byte-level BPE) is supported: \
         this file does not hold a DeepSeek V4 vocabulary"
    )]
    Model {
        /// What the file says.
        found: String,
    },
    /// Another pre-tokenizer than DeepSeek V4's, which would give other ids.
    #[error(
        "tokenizer.ggml.pre is {found:?}, only \"joyai-llm\" (DeepSeek V4) and its other names are \
         supported: this file does not hold a DeepSeek V4 vocabulary"
    )]
    Pre {
        /// What the file says.
        found: String,
    },
    /// The two arrays that describe tokens disagree.
    #[error("tokenizer.ggml.token_type has {types} entries for {tokens} tokens")]
    TypeCount {
        /// Entries of `tokenizer.ggml.token_type`.
        types: usize,
        /// Entries of `tokenizer.ggml.tokens`.
        tokens: usize,
    },
    /// More tokens than an id can number.
    #[error("tokenizer.ggml.tokens has {0} entries, more than 2^31")]
    TooManyTokens(usize),
    /// A byte that no token stands for, so that some text could not be encoded.
    #[error("tokenizer.ggml.tokens has no token for byte 0x{0:02x}")]
    MissingByte(u8),
    /// A merge that is not two tokens separated by a space.
    #[error("tokenizer.ggml.merges[{index}] is {merge:?}, not two tokens separated by a space")]
    MergeSyntax {
        /// Position in `tokenizer.ggml.merges`.
        index: usize,
        /// The entry.
        merge: String,
    },
    /// A merge of, or into, something that is not an ordinary token.
    #[error("tokenizer.ggml.merges[{index}] needs {token:?}, which is no ordinary token")]
    MergeToken {
        /// Position in `tokenizer.ggml.merges`.
        index: usize,
        /// The missing token, in the byte-level alphabet.
        token: String,
    },
    /// A control token that the prompt template places is not in the vocabulary.
    #[error(
        "the vocabulary has no control token {0:?}, which the DeepSeek V4 prompt template needs"
    )]
    MissingControl(String),
    /// `bos_token_id` or `eos_token_id` points outside the vocabulary.
    #[error("tokenizer.ggml.{key} is {id}, outside a vocabulary of {tokens} tokens")]
    IdOutOfRange {
        /// The metadata key.
        key: &'static str,
        /// Its value.
        id: u32,
        /// Size of the vocabulary.
        tokens: usize,
    },
}

/// A vocabulary as a GGUF file stores it, before any check.
#[derive(Debug, Clone, Default)]
pub struct TokenizerParts {
    /// `tokenizer.ggml.tokens`: ordinary tokens in the byte-level alphabet, others as spelled.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.merges`: two tokens separated by a space, strongest first.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.token_type`, one a token; empty when the file has none.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
}

/// Ids of the control tokens that the prompt template places and the output parser recognises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// [`BOS`].
    pub bos: u32,
    /// [`EOS`].
    pub eos: u32,
    /// [`USER`].
    pub user: u32,
    /// [`ASSISTANT`].
    pub assistant: u32,
    /// [`THINK`].
    pub think: u32,
    /// [`END_THINK`].
    pub end_think: u32,
    /// [`DSML`].
    pub dsml: u32,
    /// [`LATEST_REMINDER`]; small vocabularies lack it, and only reminders need it.
    pub latest_reminder: Option<u32>,
}

/// Where a token's bytes are, and whether text can yield it.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
    control: bool,
}

/// The token of a single byte.
pub(crate) fn byte_token(byte: u8) -> String {
    alphabet::encode(byte).to_string()
}

/// Text to ids and back. Immutable, so that one serves any number of threads.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    merges: Merges,
    control_ids: HashMap<String, u32>,
    control: Control,
}

impl Tokenizer {
    /// Checks a vocabulary and builds the tables.
    ///
    /// A token is a control token if its type is CONTROL or USER_DEFINED, if it is not written in
    /// the byte-level alphabet, or if it is one of the template's spellings. Control tokens take no
    /// part in merges, which is what keeps them out of [`encode`](Self::encode).
    ///
    /// # Errors
    /// Any [`Error`] but those about metadata keys.
    pub fn new(parts: TokenizerParts) -> Result<Self, Error> {
        let TokenizerParts { tokens, merges, token_types, bos, eos } = parts;
        if !token_types.is_empty() && token_types.len() != tokens.len() {
            return Err(Error::TypeCount { types: token_types.len(), tokens: tokens.len() });
        }
        if i32::try_from(tokens.len()).is_err() {
            return Err(Error::TooManyTokens(tokens.len()));
        }
        let mut bytes = Vec::with_capacity(tokens.iter().map(String::len).sum());
        let mut spans = Vec::with_capacity(tokens.len());
        let mut ordinary = HashMap::with_capacity(tokens.len());
        let mut control_ids = HashMap::new();
        let types = token_types.iter().copied().chain(std::iter::repeat(NORMAL));
        for ((id, token), kind) in (0u32..).zip(&tokens).zip(types) {
            let start = bytes.len();
            let written = kind == NORMAL && alphabet::decode_into(token, &mut bytes);
            if !written {
                bytes.extend_from_slice(token.as_bytes());
            }
            let control = matches!(kind, CONTROL | USER_DEFINED)
                || (kind == NORMAL && !written)
                || SPELLINGS.contains(&token.as_str());
            if control {
                control_ids.entry(token.clone()).or_insert(id);
            } else if written {
                ordinary.entry(token.as_str()).or_insert(id);
            }
            spans.push(Span { start, end: bytes.len(), control });
        }
        let merges = Merges::new(&ordinary, &merges)?;
        let control = resolve_control(&control_ids, bos, eos, spans.len())?;
        Ok(Self { bytes, spans, merges, control_ids, control })
    }

    /// Ids of `text`, none of them a control token.
    ///
    /// Nothing is added: no BOS, no EOS.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        self.encode_into(text, &mut ids);
        ids
    }

    /// As [`encode`](Self::encode), appending to `ids`.
    pub fn encode_into(&self, text: &str, ids: &mut Vec<u32>) {
        let mut written = String::new();
        split::pieces(text, |piece| self.merges.encode(piece, &mut written, ids));
    }

    /// Text of `ids`; control tokens give their spelling, ids outside the vocabulary nothing, and
    /// bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut decoder = Decoder::new();
        let mut text: String = ids.iter().map(|&id| decoder.push(self, id)).collect();
        text.push_str(&decoder.finish());
        text
    }

    /// Bytes that a token stands for; a control token's are its spelling. `None` outside the
    /// vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let span = self.spans.get(usize::try_from(id).ok()?)?;
        self.bytes.get(span.start..span.end)
    }

    /// Number of tokens, control tokens included.
    pub fn vocab_size(&self) -> usize {
        self.spans.len()
    }

    /// Whether `id` is a control token; ids outside the vocabulary are not.
    pub fn is_control(&self, id: u32) -> bool {
        usize::try_from(id).is_ok_and(|id| self.spans.get(id).is_some_and(|span| span.control))
    }

    /// Id of the control token with this spelling.
    pub fn control_id(&self, spelling: &str) -> Option<u32> {
        self.control_ids.get(spelling).copied()
    }

    /// The spelling and id of every control token, in no particular order.
    pub fn control_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.control_ids.iter().map(|(spelling, &id)| (spelling.as_str(), id))
    }

    /// Ids of the template's control tokens.
    pub fn control(&self) -> &Control {
        &self.control
    }
}

/// Looks up what the template needs. The file's own BOS and EOS ids win over the spellings, since
/// they are what its maker says generation starts with and stops on.
fn resolve_control(
    ids: &HashMap<String, u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    tokens: usize,
) -> Result<Control, Error> {
    let spelled = |spelling: &str| {
        ids.get(spelling).copied().ok_or_else(|| Error::MissingControl(spelling.to_owned()))
    };
    let given = |key, id: Option<u32>, spelling| match id {
        Some(id) if usize::try_from(id).is_ok_and(|id| id < tokens) => Ok(id),
        Some(id) => Err(Error::IdOutOfRange { key, id, tokens }),
        None => spelled(spelling),
    };
    Ok(Control {
        bos: given("bos_token_id", bos, BOS)?,
        eos: given("eos_token_id", eos, EOS)?,
        user: spelled(USER)?,
        assistant: spelled(ASSISTANT)?,
        think: spelled(THINK)?,
        end_think: spelled(END_THINK)?,
        dsml: spelled(DSML)?,
        latest_reminder: ids.get(LATEST_REMINDER).copied(),
    })
}
