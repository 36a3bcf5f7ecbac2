//! The vocabulary's place in a GGUF file: `tokenizer.ggml.*`.

use super::{Error, Tokenizer, TokenizerParts};
use crate::gguf::{Gguf, Metadata, Optional, Strings};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const BOS_ID: &str = "tokenizer.ggml.bos_token_id";
const EOS_ID: &str = "tokenizer.ggml.eos_token_id";

/// Names that converters give the same pre-tokenizer: DeepSeek has not changed it since V3.
const PRES: [&str; 3] = ["joyai-llm", "deepseek-v3", "deepseek-v4"];

impl Tokenizer {
    /// The tokenizer of a GGUF file.
    ///
    /// # Errors
    /// As [`Tokenizer::new`]; also a missing or mistyped metadata key, and a tokenizer of another
    /// family.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, Error> {
        Self::from_metadata(gguf.metadata())
    }

    /// As [`from_gguf`](Self::from_gguf), from the metadata alone.
    ///
    /// # Errors
    /// As [`from_gguf`](Self::from_gguf).
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, Error> {
        Self::new(TokenizerParts::from_metadata(metadata)?)
    }
}

impl TokenizerParts {
    /// Copies the vocabulary out of a GGUF file's metadata.
    ///
    /// # Errors
    /// A missing or mistyped key, text that is not UTF-8, and a tokenizer of another family.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, Error> {
        let found = metadata.str(MODEL).map_err(unreadable)?;
        if found != "gpt2" {
            return Err(Error::Model { found: found.to_owned() });
        }
        if let Some(found) = metadata.str(PRE).optional().map_err(unreadable)? {
            if !PRES.contains(&found) {
                return Err(Error::Pre { found: found.to_owned() });
            }
        }
        let types = metadata.i64s(TOKEN_TYPE).optional().map_err(unreadable)?.unwrap_or_default();
        Ok(Self {
            tokens: texts(TOKENS, metadata.strings(TOKENS).map_err(unreadable)?)?,
            merges: texts(MERGES, metadata.strings(MERGES).map_err(unreadable)?)?,
            // A type too large for ggml's enumeration is an unknown one, as 0 is.
            token_types: types.into_iter().map(|kind| i32::try_from(kind).unwrap_or(0)).collect(),
            bos: metadata.u32(BOS_ID).optional().map_err(unreadable)?,
            eos: metadata.u32(EOS_ID).optional().map_err(unreadable)?,
        })
    }
}

fn unreadable(error: crate::gguf::Error) -> Error {
    Error::Metadata(error.to_string())
}

fn texts(key: &'static str, strings: &Strings) -> Result<Vec<String>, Error> {
    let text = |(index, bytes): (usize, &[u8])| {
        let not_utf8 = |_| Error::Metadata(format!("{key}[{index}] is not UTF-8"));
        std::str::from_utf8(bytes).map(str::to_owned).map_err(not_utf8)
    };
    strings.iter().enumerate().map(text).collect()
}
