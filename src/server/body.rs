//! The body of a request: bounded in size, time and shape before it is read.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{header, HeaderMap};
use axum::response::Response;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::timeout;

use super::app::{App, Caller};
use super::readers::{stopping, Memory};
use super::{ApiError, Kind};

/// Lists and objects within each other at most.
const DEEPEST: usize = 100;
/// Keys of all objects together at most.
const MOST_KEYS: usize = 200_000;
/// Items of all lists together at most; a prompt may be a list of a million ids.
const MOST_ITEMS: usize = 2_000_000;
/// Characters of a number at most.
const LONGEST_NUMBER: usize = 256;
/// Bodies above this are parsed where they hold nobody up.
const LARGE: usize = 256 * 1024;
/// The unit in which memory for bodies is handed out.
pub(super) const UNIT: usize = 4096;

/// A body that is JSON.
pub struct Json {
    /// The value.
    pub value: Value,
    /// The memory that it may take up.
    pub memory: Memory,
}

impl FromRequest<App> for Json {
    type Rejection = Response;

    async fn from_request(request: Request, app: &App) -> Result<Self, Response> {
        let caller = Caller::of(request.extensions());
        read(request, app).await.map_err(|error| error.response(caller.dialect, &caller.request_id))
    }
}

async fn read(request: Request, app: &App) -> Result<Json, ApiError> {
    check_type(request.headers())?;
    let settings = &app.0.settings;
    let limit = settings.body_limit;
    let declared = match request.headers().get(header::CONTENT_LENGTH) {
        Some(length) => length.to_str().ok().and_then(|length| length.parse().ok()),
        None => None,
    };
    if declared.is_some_and(|length: usize| length > limit) {
        return Err(too_large(limit));
    }
    let wanted = declared.unwrap_or(limit).div_ceil(UNIT).max(1);
    let units = u32::try_from(wanted).unwrap_or(u32::MAX);
    let receive = async {
        let memory = app.0.bodies.clone().acquire_many_owned(units);
        let memory = Memory::new(memory.await.map_err(|_| stopping())?);
        collect(request.into_body(), limit).await.map(|bytes| (bytes, memory))
    };
    let late = || {
        let seconds = settings.body_timeout.as_secs();
        ApiError::new(Kind::Timeout, format!("the body has not arrived in {seconds} seconds"))
    };
    let (bytes, memory) = timeout(settings.body_timeout, receive).await.map_err(|_| late())??;
    let value = if bytes.len() > LARGE {
        app.0.readers.read(&memory, move || parse(&bytes)).await??
    } else {
        parse(&bytes)?
    };
    Ok(Json { value, memory })
}

/// A browser asks before it sends JSON across origins, but not before it sends a form.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let found = if essence.is_empty() { "missing" } else { "another" };
    Err(ApiError::new(
        Kind::MediaType,
        format!("the content type is {found}: send the header `content-type: application/json`"),
    ))
}

fn too_large(limit: usize) -> ApiError {
    let limit = limit / (1024 * 1024);
    ApiError::new(
        Kind::TooLarge,
        format!(
            "the body is larger than {limit} MiB; the server's owner can raise --body-limit-mb"
        ),
    )
    .with_code("request_too_large")
}

async fn collect(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| ApiError::new(Kind::Invalid, "the body is cut short"))?;
        if bytes.len() + chunk.len() > limit {
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The value of a JSON text of bounded shape.
///
/// # Errors
/// It is no JSON, or has more nesting, keys, items or digits than any request needs.
pub fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    check_shape(bytes)?;
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::new(Kind::Invalid, format!("the body is not JSON: {error}")))
}

/// Counts what takes memory, before any is taken. It need not know whether the text is JSON.
fn check_shape(bytes: &[u8]) -> Result<(), ApiError> {
    let (mut depth, mut keys, mut items, mut digits) = (0usize, 0usize, 0usize, 0usize);
    let (mut in_string, mut escaped) = (false, false);
    let within = |count: usize, most: usize, what: &str| {
        if count <= most {
            return Ok(());
        }
        let message = format!("the body's JSON: {what}, at most {most} are read");
        Err(ApiError::new(Kind::Invalid, message))
    };
    for &byte in bytes {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        if matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E') {
            digits += 1;
            within(digits, LONGEST_NUMBER, "too many digits")?;
            continue;
        }
        digits = 0;
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                within(depth, DEEPEST, "too many levels")?;
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b':' => {
                keys += 1;
                within(keys, MOST_KEYS, "too many keys")?;
            }
            b',' => {
                items += 1;
                within(items, MOST_ITEMS, "too many items")?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8]) -> String {
        parse(bytes).unwrap_err().message
    }

    #[test]
    fn what_would_take_too_much_is_refused_unread() {
        let deep = "[".repeat(100_000);
        assert!(refused(deep.as_bytes()).contains("levels"));
        let keys: String = (0..1_000_000).map(|key| format!("\"{key}\":0,")).collect();
        assert!(refused(format!("{{{keys}\"x\":0}}").as_bytes()).contains("keys"));
        let number = "1".repeat(1_000_000);
        assert!(refused(number.as_bytes()).contains("digits"));
        let items = "[],".repeat(MOST_ITEMS + 1);
        assert!(refused(format!("[{items}0]").as_bytes()).contains("items"));
    }

    #[test]
    fn strings_may_hold_what_looks_like_structure() {
        let text = r#"{"a": "[[[[,,,,::::\"[[[", "b": "\\"}"#;
        let repeated = "[".repeat(1000);
        assert_eq!(parse(text.as_bytes()).unwrap()["b"], "\\");
        assert!(parse(format!("[\"{repeated}\"]").as_bytes()).is_ok());
    }

    #[test]
    fn half_characters_are_no_json() {
        for text in [&br#"{"a": "\ud800"}"#[..], br#"{"a": "\udc00\ud800"}"#, b"{\"a\": \"\xff\"}"]
        {
            assert!(refused(text).contains("not JSON"));
        }
        assert!(parse(br#"{"a": "\ud83d\ude00"}"#).is_ok());
        for text in [&b"{\"a\": NaN}"[..], b"{\"a\": 1e999}", b"", b"{} x", b"{\"a\": Infinity}"] {
            assert!(refused(text).contains("not JSON"), "{text:?}");
        }
    }
}
