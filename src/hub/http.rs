//! One request and its answer: redirects followed by hand, the token kept to its own host, and
//! each failure sorted into those that a further try may cure and those that it cannot.

use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, ACCEPT_ENCODING, IF_RANGE, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};

use super::error::Error;
use super::name::RepoId;
use super::settings::Settings;
use super::Event;

/// Hops before a chain of redirects counts as endless.
const MAX_REDIRECTS: usize = 10;

/// Bytes of an error page or listing that are read at most.
const MAX_BODY: usize = 64 << 20;

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// Worth another try, not before the wait that the server asked for.
    Retry { reason: String, wait: Option<Duration> },
    /// The address that a redirect led to is no longer good; the first one may be.
    Stale { reason: String },
    /// The server has other bytes under this address than before.
    Changed,
    /// No further try can help.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Final(error)
    }
}

/// A client for one endpoint.
#[derive(Debug)]
pub(super) struct Http {
    client: reqwest::Client,
    pub endpoint: Url,
    pub settings: Settings,
}

/// One request.
#[derive(Clone, Debug, Default)]
pub(super) struct Ask {
    /// First and last byte.
    pub range: Option<(u64, u64)>,
    /// The validator that the range is bound to.
    pub if_range: Option<String>,
    /// A JSON body, sent by POST.
    pub json: Option<Vec<u8>>,
    /// Only the headers.
    pub head: bool,
}

impl Http {
    /// # Errors
    /// The endpoint is no http address, or the system's certificates cannot be used.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let wrong = |problem: String| Error::Setting { variable: "HF_ENDPOINT".into(), problem };
        let endpoint = Url::parse(&settings.endpoint)
            .map_err(|e| wrong(format!("{}: {e}; write https://HOST", settings.endpoint)))?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host_str().is_none() {
            return Err(wrong(format!("{}: write https://HOST", settings.endpoint)));
        }
        // Fails when the program has installed one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("candle-ds4/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.transfer.stall)
            .tcp_keepalive(Duration::from_secs(30))
            .build()
            .map_err(|e| Error::Setting {
                variable: "the network".into(),
                problem: format!("cannot be set up: {}; look at HTTPS_PROXY", chain(&e)),
            })?;
        Ok(Self { client, endpoint, settings })
    }

    /// The endpoint followed by path parts, each escaped.
    pub fn url<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// Sends `ask`, follows redirects, and returns the answer with the address that gave it.
    ///
    /// A HEAD request stops at the first answer with `x-linked-etag`: that describes the file, the
    /// host behind the redirect does not.
    pub async fn send(&self, url: &Url, ask: &Ask) -> Result<(Response, Url), Failure> {
        let mut at = url.clone();
        let mut seen = vec![at.clone()];
        loop {
            let response = self.send_once(&at, ask).await?;
            let status = response.status();
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
                || ask.head && response.headers().contains_key("x-linked-etag")
            {
                return Ok((response, at));
            }
            let refuse =
                |problem: String| Failure::Final(Error::Redirect { url: shown(url), problem });
            let next = header(response.headers(), LOCATION.as_str())
                .and_then(|location| at.join(location).ok())
                .ok_or_else(|| refuse(format!("status {status} without a usable Location")))?;
            if !matches!(next.scheme(), "http" | "https")
                || at.scheme() == "https" && next.scheme() == "http"
            {
                return Err(refuse(format!(
                    "redirects to {}, which is not safe to follow",
                    shown(&next)
                )));
            }
            if seen.contains(&next) {
                return Err(refuse(format!("redirects in a circle, through {}", shown(&next))));
            }
            if seen.len() > MAX_REDIRECTS {
                return Err(refuse(format!("redirects more than {MAX_REDIRECTS} times")));
            }
            seen.push(next.clone());
            at = next;
        }
    }

    async fn send_once(&self, url: &Url, ask: &Ask) -> Result<Response, Failure> {
        let method = match (ask.head, &ask.json) {
            (true, _) => Method::HEAD,
            (false, Some(_)) => Method::POST,
            (false, None) => Method::GET,
        };
        // Compression would make lengths and ranges speak of other bytes.
        let mut request =
            self.client.request(method, url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(token) = self.settings.token.as_ref().filter(|_| self.is_own(url)) {
            request = request.bearer_auth(token.text());
        }
        if let Some((first, last)) = ask.range {
            request = request.header(RANGE, format!("bytes={first}-{last}"));
            if let Some(validator) = &ask.if_range {
                request = request.header(IF_RANGE, validator);
            }
        }
        if let Some(json) = &ask.json {
            request = request.header("content-type", "application/json").body(json.clone());
        }
        let retry = |reason: String| Failure::Retry { reason, wait: None };
        match tokio::time::timeout(self.settings.transfer.stall, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(retry(chain(&error))),
            Err(_) => Err(retry(format!("no answer for {:?}", self.settings.transfer.stall))),
        }
    }

    /// Whether the token may be sent there: same scheme, host and port as the endpoint.
    pub fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// Sorts an answer that is no success. `what` is the repository or file asked for.
    pub async fn refusal(
        &self,
        mut response: Response,
        url: &Url,
        repo: &RepoId,
        what: &str,
    ) -> Failure {
        let status = response.status();
        let headers = response.headers().clone();
        let code = header(&headers, "x-error-code").unwrap_or_default().to_string();
        let mut message = header(&headers, "x-error-message").unwrap_or_default().to_string();
        if message.is_empty() {
            message = self.words(&mut response).await;
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            let wait = retry_after(&headers, SystemTime::now());
            if let Some(wait) = wait.filter(|w| *w > self.settings.transfer.longest_wait) {
                return Error::RateLimited { url: shown(url), wait }.into();
            }
            return Failure::Retry { reason: "too many requests (429)".into(), wait };
        }
        if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT {
            let wait = retry_after(&headers, SystemTime::now())
                .map(|wait| wait.min(self.settings.transfer.longest_wait));
            return Failure::Retry { reason: format!("HTTP status {status}"), wait };
        }
        let has_token = self.settings.token.is_some();
        let gated = code == "GatedRepo" || message.to_ascii_lowercase().contains("gated");
        Failure::Final(match status.as_u16() {
            401 | 403 if gated => Error::Gated {
                repo: repo.to_string(),
                link: self.url(repo.as_str().split('/')).to_string(),
                has_token,
            },
            401 if has_token && code != "RepoNotFound" => Error::Unauthorized {
                url: shown(url),
                link: self.url(["settings", "tokens"]).to_string(),
            },
            // The hub does not tell strangers which private repositories exist.
            401 | 404 => {
                let what = match code.as_str() {
                    "RepoNotFound" => format!("the repository {repo}"),
                    "RevisionNotFound" => format!("this revision of {repo}"),
                    _ => what.to_string(),
                };
                Error::NotFound { what, url: shown(url) }
            }
            status => Error::Status { url: shown(url), status, message },
        })
    }

    /// The start of an error page, as one printable line.
    async fn words(&self, response: &mut Response) -> String {
        let chunk = tokio::time::timeout(self.settings.transfer.stall, response.chunk()).await;
        let Ok(Ok(Some(bytes))) = chunk else { return String::new() };
        let text = String::from_utf8_lossy(bytes.get(..400).unwrap_or(&bytes)).into_owned();
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The whole body of a short answer.
    pub async fn body(&self, mut response: Response, url: &Url) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        loop {
            let chunk = tokio::time::timeout(self.settings.transfer.stall, response.chunk()).await;
            match chunk {
                Ok(Ok(Some(bytes))) if body.len() + bytes.len() <= MAX_BODY => {
                    body.extend_from_slice(&bytes);
                }
                Ok(Ok(Some(_))) => {
                    return Err(Failure::Final(Error::Protocol {
                        url: shown(url),
                        problem: format!("the answer is longer than {MAX_BODY} bytes"),
                    }));
                }
                Ok(Ok(None)) => return Ok(body),
                Ok(Err(error)) => {
                    return Err(Failure::Retry { reason: chain(&error), wait: None });
                }
                Err(_) => {
                    let reason = format!("no byte for {:?}", self.settings.transfer.stall);
                    return Err(Failure::Retry { reason, wait: None });
                }
            }
        }
    }

    /// Runs `once` until it works, fails for good, or has failed too often.
    pub async fn retrying<T, F: std::future::Future<Output = Result<T, Failure>>>(
        &self,
        url: &Url,
        events: &Sender<Event>,
        mut once: impl FnMut() -> F,
    ) -> Result<T, Error> {
        let mut attempts = Attempts::new(url);
        loop {
            match once().await {
                Ok(value) => return Ok(value),
                Err(failure) => attempts.failed(self, failure, events).await?,
            }
        }
    }
}

/// Failures in a row.
#[derive(Debug)]
pub(super) struct Attempts {
    url: String,
    count: u32,
}

impl Attempts {
    pub fn new(url: &Url) -> Self {
        Self { url: shown(url), count: 0 }
    }

    /// Something worked: the next failure is a first one again.
    pub fn progressed(&mut self) {
        self.count = 0;
    }

    /// Waits until it is time for another try, or says that there shall be none.
    pub async fn failed(
        &mut self,
        http: &Http,
        failure: Failure,
        events: &Sender<Event>,
    ) -> Result<(), Error> {
        let transfer = &http.settings.transfer;
        let (reason, asked) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Retry { reason, wait } => (reason, wait),
            Failure::Stale { reason } => (reason, None),
            Failure::Changed => ("the file changed on the server".to_string(), None),
        };
        self.count += 1;
        if self.count >= transfer.attempts {
            return Err(Error::Unreachable { url: self.url.clone(), reason, attempts: self.count });
        }
        let doubled = transfer.backoff.saturating_mul(1 << (self.count - 1).min(16));
        // Connections that failed together should not come back together.
        let spread = doubled.min(Duration::from_secs(60)).mul_f64(rand::random_range(0.75..1.25));
        let wait = asked.unwrap_or_default().max(spread);
        // The receiver may be gone already; then nobody listens.
        let _ = events.send(Event::Retrying { url: self.url.clone(), reason, wait });
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// `Retry-After` in either of its forms.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = header(headers, RETRY_AFTER.as_str())?.trim();
    match text.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).ok(),
    }
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// An address for messages: without its query, which may hold a signature, or a password.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _ = (url.set_username(""), url.set_password(None));
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// An error and its causes in one line, without the address: messages name it already.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut text = match (error.is_connect(), error.is_body() || error.is_decode()) {
        (true, _) => "cannot connect".to_string(),
        (_, true) => "the connection broke off".to_string(),
        _ => "the request failed".to_string(),
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let wait = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:57 GMT"), Some(Duration::from_secs(20)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:17 GMT"), None);
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn messages_hold_no_signature_and_no_password() {
        let url = Url::parse("https://u:p@cdn.example/a?Signature=secret#f").unwrap();
        assert_eq!(shown(&url), "https://cdn.example/a");
    }
}
