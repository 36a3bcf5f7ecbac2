//! What a client is told when it gets no answer: one error, in the words of each dialect.

use axum::http::{header, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{json, Value};

use super::AnswerError;
use crate::engine::{EngineError, Refused};
use crate::sample::SampleError;

/// Whose shapes a client expects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's: `{"error": {"message", "type", "param", "code"}}`.
    #[default]
    OpenAi,
    /// Anthropic's: `{"type": "error", "error": {"type", "message"}, "request_id"}`.
    Anthropic,
}

/// What kind of error it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request makes no sense.
    Invalid,
    /// No key, or a wrong one.
    Authentication,
    /// A host or an origin that is not allowed.
    Permission,
    /// No such path, model or object.
    NotFound,
    /// The path has other methods.
    Method,
    /// The request took too long to arrive.
    Timeout,
    /// The body is too large.
    TooLarge,
    /// The body is not JSON by its own account.
    MediaType,
    /// It went wrong here.
    Server,
    /// Too much to do, or shutting down: later it may work.
    Overloaded,
}

impl Kind {
    /// The status and the name of the type.
    fn words(self, dialect: Dialect) -> (StatusCode, &'static str) {
        use Dialect::Anthropic;
        let anthropic = dialect == Anthropic;
        match self {
            Self::Invalid => (StatusCode::BAD_REQUEST, "invalid_request_error"),
            Self::Authentication => (StatusCode::UNAUTHORIZED, "authentication_error"),
            Self::Permission => (StatusCode::FORBIDDEN, "permission_error"),
            Self::NotFound if anthropic => (StatusCode::NOT_FOUND, "not_found_error"),
            Self::NotFound => (StatusCode::NOT_FOUND, "invalid_request_error"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error"),
            Self::Timeout => (StatusCode::REQUEST_TIMEOUT, "invalid_request_error"),
            Self::TooLarge if anthropic => (StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error"),
            Self::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error"),
            Self::Server if anthropic => (StatusCode::INTERNAL_SERVER_ERROR, "api_error"),
            Self::Server => (StatusCode::INTERNAL_SERVER_ERROR, "server_error"),
            Self::Overloaded if anthropic => {
                (StatusCode::from_u16(529).unwrap_or(StatusCode::SERVICE_UNAVAILABLE), OVERLOADED)
            }
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, OVERLOADED),
        }
    }
}

const OVERLOADED: &str = "overloaded_error";

/// Seconds after which a client may try again.
const RETRY_AFTER: u64 = 2;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of error it is.
    pub kind: Kind,
    /// What, and what to do about it.
    pub message: String,
    /// The field of the request that is to blame.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
    /// Tokens of the prompt and of the context, if the one does not fit the other.
    pub tokens: Option<(usize, usize)>,
    /// The same request will fail again.
    pub final_word: bool,
}

impl ApiError {
    /// An error of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        let final_word = !matches!(kind, Kind::Server | Kind::Overloaded | Kind::Timeout);
        let mut message = message.into();
        // Where it went wrong is for the log, not for a client (RUST_BACKTRACE adds it).
        if let Some(trace) = message.find("\n   0: ") {
            message.truncate(trace);
        }
        Self { kind, message, param: None, code: None, tokens: None, final_word }
    }

    /// A request with a field that makes no sense.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(Kind::Invalid, message) }
    }

    /// The same with a word for programs.
    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// A prompt that does not fit.
    pub fn context(tokens: usize, exact: bool, context: usize, most: usize) -> Self {
        let least = if exact { "" } else { "at least " };
        let raise = if context < most {
            format!(", or start the server with a larger --ctx (this model allows {most})")
        } else {
            String::new()
        };
        Self {
            tokens: Some((tokens, context)),
            code: Some("context_length_exceeded"),
            ..Self::field(
                "messages",
                format!(
                    "the prompt has {least}{tokens} tokens, the context holds {context} including \
                     the answer: shorten the conversation{raise}"
                ),
            )
        }
    }

    /// The status in a dialect.
    pub fn status(&self, dialect: Dialect) -> StatusCode {
        self.kind.words(dialect).0
    }

    /// The body in a dialect.
    pub fn body(&self, dialect: Dialect, request_id: &str) -> Value {
        let (_, kind) = self.kind.words(dialect);
        let mut error = match dialect {
            Dialect::OpenAi => json!({
                "message": self.message, "type": kind, "param": self.param, "code": self.code,
            }),
            Dialect::Anthropic => json!({ "type": kind, "message": self.message }),
        };
        if let Some((prompt, context)) = self.tokens {
            error["n_prompt_tokens"] = prompt.into();
            error["n_ctx"] = context.into();
        }
        match dialect {
            Dialect::OpenAi => json!({ "error": error }),
            Dialect::Anthropic => {
                json!({ "type": "error", "error": error, "request_id": request_id })
            }
        }
    }

    /// The whole response in a dialect.
    pub fn response(&self, dialect: Dialect, request_id: &str) -> Response {
        let body = self.body(dialect, request_id).to_string();
        let json = [(header::CONTENT_TYPE, "application/json")];
        let mut response = (self.status(dialect), json, body).into_response();
        let headers = response.headers_mut();
        if self.kind == Kind::Overloaded {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER.into());
        } else if self.final_word {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.kind == Kind::Authentication {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // What the log says; the client has it from the body.
        response.extensions_mut().insert(self.clone());
        response
    }
}

impl From<AnswerError> for ApiError {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Engine(error) => Self::from(&*error),
            AnswerError::Call(_) => Self::new(Kind::Server, error.to_string()),
            AnswerError::Stopped => Self::new(Kind::Overloaded, error.to_string()),
        }
    }
}

impl From<&EngineError> for ApiError {
    fn from(error: &EngineError) -> Self {
        match error {
            EngineError::PromptTooLong { tokens, context, most } => {
                Self::context(*tokens, true, *context, *most)
            }
            EngineError::Memory { .. } => {
                Self::field("max_tokens", error.to_string()).with_code("memory_exceeded")
            }
            EngineError::Stopping | EngineError::OutOfMemory(_) => {
                Self::new(Kind::Overloaded, error.to_string())
            }
            EngineError::EmptyPrompt => Self::field("messages", error.to_string()),
            EngineError::Sample(SampleError::Setting { name, .. }) => {
                Self::field(*name, error.to_string())
            }
            EngineError::Sample(SampleError::Bias { .. }) => {
                Self::field("logit_bias", error.to_string())
            }
            // A request cannot help it; the text says which of the machine's parts failed.
            _ => Self::new(Kind::Server, error.to_string()),
        }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Memory { .. } => {
                Self::field("max_tokens", refused.to_string()).with_code("memory_exceeded")
            }
            _ => Self::new(Kind::Overloaded, refused.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_of_the_place_stays_here() {
        let traced = "no memory\n   0: candle_core::error::Error::bt\n   1: main\n";
        assert_eq!(ApiError::new(Kind::Server, traced).message, "no memory");
        assert_eq!(ApiError::new(Kind::Invalid, "two\nlines").message, "two\nlines");
    }
}
