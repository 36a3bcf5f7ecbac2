//! Where the hub is, who asks, and where files are kept: Hugging Face's own environment variables.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Error;

/// The public hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A bearer token; its text never appears in debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes the text of a token.
    ///
    /// # Errors
    /// A character that a header cannot carry; `variable` is named in the message.
    pub fn new(text: &str, variable: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.is_empty() || text.bytes().any(|b| !b.is_ascii_graphic()) {
            return Err(Error::Setting {
                variable: variable.to_string(),
                problem: "is not a token (empty, or a space or control character in it); make \
                          one at https://huggingface.co/settings/tokens"
                    .to_string(),
            });
        }
        Ok(Self(text.to_string()))
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// How a file is cut up and how patient the downloader is.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Connections at a time.
    pub connections: usize,
    /// Most bytes that one request asks for.
    pub chunk: u64,
    /// Bytes that the journal records at a time. A kill loses at most one unfinished piece a
    /// connection, so `connections × piece ≤ chunk` keeps that loss within one chunk.
    pub piece: u64,
    /// A connection that brings no byte for this long is given up and opened again.
    pub stall: Duration,
    /// Failures in a row, without a byte between them, before giving up.
    pub attempts: u32,
    /// Wait after the first failure; doubles with each further one.
    pub backoff: Duration,
    /// The longest wait, also the longest `Retry-After` that is obeyed.
    pub longest_wait: Duration,
}

impl Default for Transfer {
    fn default() -> Self {
        Self {
            connections: 8,
            chunk: 32 << 20,
            piece: 2 << 20,
            stall: Duration::from_secs(30),
            attempts: 8,
            backoff: Duration::from_secs(1),
            longest_wait: Duration::from_secs(300),
        }
    }
}

/// Everything a [`super::Hub`] has to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `HF_ENDPOINT`, without a slash at the end.
    pub endpoint: String,
    /// `HF_TOKEN`, else the file `HF_TOKEN_PATH`, else `$HF_HOME/token`.
    pub token: Option<Token>,
    /// `HF_HUB_CACHE`, else `$HF_HOME/hub`.
    pub cache: PathBuf,
    /// `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// Chunks, connections, patience.
    pub transfer: Transfer,
}

impl Settings {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// No home folder and no `HF_HOME`; a token file that cannot be read; a malformed value.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// Reads the variables through `var`, for callers with an environment of their own.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let home = var("HOME").or_else(|| var("USERPROFILE")).map(PathBuf::from);
        let folder = |text: String| match (text.strip_prefix("~/"), &home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(text),
        };
        let hf_home = match var("HF_HOME").or_else(|| {
            var("XDG_CACHE_HOME")
                .map(|cache| format!("{}/huggingface", cache.trim_end_matches('/')))
        }) {
            Some(text) => folder(text),
            None => match &home {
                Some(home) => home.join(".cache/huggingface"),
                None => {
                    return Err(Error::Setting {
                        variable: "HF_HOME".to_string(),
                        problem: "no home folder is known; set HF_HOME to where files may be kept"
                            .to_string(),
                    })
                }
            },
        };
        let cache = var("HF_HUB_CACHE")
            .or_else(|| var("HUGGINGFACE_HUB_CACHE"))
            .map_or_else(|| hf_home.join("hub"), folder);
        let token = if truthy(var("HF_HUB_DISABLE_IMPLICIT_TOKEN")) {
            None
        } else if let Some(text) = var("HF_TOKEN") {
            Some(Token::new(&text, "HF_TOKEN")?)
        } else {
            let named = var("HF_TOKEN_PATH").map(&folder);
            token_file(&named.unwrap_or_else(|| hf_home.join("token")))?
        };
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_string());
        Ok(Self {
            endpoint: endpoint.trim().trim_end_matches('/').to_string(),
            token,
            cache,
            offline: truthy(var("HF_HUB_OFFLINE")),
            transfer: Transfer::default(),
        })
    }
}

fn truthy(value: Option<String>) -> bool {
    value.is_some_and(|v| {
        ["1", "on", "yes", "true"].contains(&v.trim().to_ascii_lowercase().as_str())
    })
}

fn token_file(path: &Path) -> Result<Option<Token>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Token::new(&text, &path.display().to_string()).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read the token file", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(vars: &[(&str, &str)]) -> Settings {
        let vars: Vec<(String, String)> =
            vars.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let find = move |name: &str| vars.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
        Settings::from_vars(find).unwrap()
    }

    #[test]
    fn the_cache_is_where_the_python_library_has_it() {
        let cache = |vars: &[(&str, &str)]| with(vars).cache.to_str().unwrap().to_string();
        assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "~/hf")]), "/h/hf/hub");
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]), "/c");
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "")]), "/hf/hub");
    }

    #[test]
    fn the_token_comes_from_variable_then_named_file_then_home() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(with(&[("HF_HOME", home)]).token, None);
        std::fs::write(folder.path().join("token"), "from_home\n").unwrap();
        let other = folder.path().join("other");
        std::fs::write(&other, "from_path").unwrap();
        let text = |s: Settings| s.token.map(|t| t.text().to_string());
        assert_eq!(text(with(&[("HF_HOME", home)])).as_deref(), Some("from_home"));
        let named = [("HF_HOME", home), ("HF_TOKEN_PATH", other.to_str().unwrap())];
        assert_eq!(text(with(&named)).as_deref(), Some("from_path"));
        let given = [named[0], named[1], ("HF_TOKEN", "given")];
        assert_eq!(text(with(&given)).as_deref(), Some("given"));
        let off = [given[0], given[2], ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")];
        assert_eq!(text(with(&off)), None);
        assert!(!format!("{:?}", with(&given)).contains("given"));
    }

    #[test]
    fn a_token_that_would_break_a_header_is_refused_by_name() {
        let error = Token::new("a\r\nHost: evil", "HF_TOKEN").unwrap_err();
        assert!(error.to_string().starts_with("HF_TOKEN: "), "{error}");
    }

    #[test]
    fn offline_and_endpoint_are_read() {
        let s = with(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "YES"), ("HF_ENDPOINT", "http://m/")]);
        assert!(s.offline && s.endpoint == "http://m");
        let s = with(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0")]);
        assert!(!s.offline && s.endpoint == DEFAULT_ENDPOINT);
    }
}
