//! Constrained decoding: a reply that cannot be anything but what was asked for.
//!
//! [`Guides`] knows a vocabulary; for a [`Wanted`] reply it makes an [`engine::Guide`], which takes
//! away the tokens that may not come next:
//!
//! * **Reasoning** is free until `</think>`. It cannot hold the marker of a tool call, and where
//!   something must follow it the reply cannot end in it.
//! * **Text** is free, or a JSON object, or JSON that follows a schema.
//! * **A block of tool calls** follows a grammar from its marker on, so that it is always whole: the
//!   template's tags, the name of a tool that was declared, each parameter at most once and every
//!   required one, values of the types that the tool's schema gives. Without tools there is no
//!   marker.
//!
//! Grammars run on `llguidance`. Nothing is forced upon a model that is free: until the marker of a
//! block appears, a reply with optional tools costs one comparison a token.
//!
//! [`engine::Guide`]: crate::engine::Guide

mod grammar;
mod reply;
mod schema;

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{InferenceCapabilities, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use crate::engine;
use crate::prompt::Tool;
use crate::tokenizer::Tokenizer;
use reply::{Phase, Reply};

/// Why a reply cannot be constrained as wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuideError {
    /// The vocabulary cannot be indexed.
    #[error("the vocabulary cannot be used for constrained decoding: {0}")]
    Vocabulary(String),
    /// A schema has no grammar.
    #[error("the JSON Schema of {of} cannot be enforced: {reason}")]
    Schema {
        /// What it describes.
        of: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A call is wanted of a tool that was not declared.
    #[error("tool_choice names {0:?}, which is not among the tools")]
    UnknownTool(String),
    /// A call is wanted and there is no tool.
    #[error("a tool call is required, but no tools are given")]
    NoTools,
}

/// Whether a reply may or must call tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Calls<'a> {
    /// It cannot.
    #[default]
    Never,
    /// The model decides.
    Optional,
    /// It must call at least one.
    Required,
    /// It must call this one.
    Named(&'a str),
}

/// What the text of a reply must be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Text<'a> {
    /// Anything.
    #[default]
    Free,
    /// A JSON object.
    Object,
    /// JSON that follows this schema.
    Schema(&'a Value),
}

/// What a reply must be like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Whether the prompt has opened reasoning.
    pub reasoning: bool,
    /// Tools that may be called.
    pub tools: &'a [Tool],
    /// Whether they may or must be.
    pub calls: Calls<'a>,
    /// Whether there may be more than one call.
    pub parallel: bool,
    /// What text must be like, where there is text.
    pub text: Text<'a>,
}

/// A vocabulary, ready to constrain replies in.
pub struct Guides {
    tokenizer: Arc<Tokenizer>,
    factory: ParserFactory,
}

impl Guides {
    /// Indexes a vocabulary.
    ///
    /// # Errors
    /// A vocabulary that cannot be indexed.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Result<Self, GuideError> {
        let vocabulary: Arc<dyn TokenizerEnv + Sync> = Arc::new(Vocabulary::new(tokenizer.clone()));
        // No token is forced from here: the engine asks for one at a time.
        let abilities = InferenceCapabilities::default();
        let factory = ParserFactory::new(&vocabulary, abilities, &schema::slices());
        let mut factory = factory.map_err(|error| GuideError::Vocabulary(error.to_string()))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { tokenizer, factory })
    }

    /// A guide for one reply.
    ///
    /// # Errors
    /// Schemas that cannot be enforced, a tool that is not there.
    pub fn guide(&self, wanted: &Wanted<'_>) -> Result<Box<dyn engine::Guide>, GuideError> {
        let control = *self.tokenizer.control();
        let calls = grammar::Calls::new(wanted, control.dsml, |text| self.compiles(text))?;
        let text = match wanted.text {
            Text::Free => None,
            Text::Object => Some(schema::object()),
            Text::Schema(schema) => Some(schema::response(schema)),
        };
        let start = grammar::start(calls.as_ref(), text.as_ref());
        let begin = match start {
            // The grammar begins with the reply.
            Some(start) => Phase::Grammar(Box::new(self.matcher(&start, "the response format")?)),
            // The grammar begins with a marker, if one appears.
            None => Phase::Text { open: false },
        };
        let block = match &calls {
            Some(calls) if text.is_none() && !calls.required() => {
                Some(Box::new(self.matcher(&calls.block(), "the tools")?))
            }
            _ => None,
        };
        Ok(Box::new(Reply::new(self.tokenizer.clone(), wanted.reasoning, begin, block)))
    }

    /// Whether a grammar is one.
    fn compiles(&self, grammar: &str) -> Result<(), String> {
        let grammar = TopLevelGrammar::from_lark(grammar.to_owned());
        let parser = self.factory.create_parser(grammar);
        parser.map(drop).map_err(|error| first_line(&error.to_string()))
    }

    fn matcher(&self, grammar: &str, of: &str) -> Result<Matcher, GuideError> {
        let parser = self.factory.create_parser(TopLevelGrammar::from_lark(grammar.to_owned()));
        let parser = parser.map_err(|error| GuideError::Schema {
            of: of.to_owned(),
            reason: first_line(&error.to_string()),
        })?;
        Ok(Matcher::new(Ok(parser)))
    }
}

/// Grammar errors go on with the grammar, which is ours and says nothing to a client.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

/// The tokenizer as the grammar engine sees it.
struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
}

impl Vocabulary {
    fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let size = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let words: Vec<Vec<u8>> = (0..size)
            .map(|id| {
                let bytes = tokenizer.token_bytes(id).unwrap_or_default();
                // A control token must not be taken for the text that spells it.
                let marker = tokenizer.is_control(id).then_some(TokTrie::SPECIAL_TOKEN_MARKER);
                marker.into_iter().chain(bytes.iter().copied()).collect()
            })
            .collect();
        let info = TokRxInfo::new(size, tokenizer.control().eos);
        Self { trie: TokTrie::from(&info, &words), tokenizer }
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.tokenizer.encode(text),
            Err(_) => self.trie.greedy_tokenize(bytes),
        }
    }
}

#[cfg(test)]
mod tests;
