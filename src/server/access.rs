//! Who may ask: keys, hosts and origins.

use std::fmt;
use std::net::IpAddr;

use axum::http::{header, HeaderMap, Uri};
use subtle::{Choice, ConstantTimeEq};

use super::{ApiError, Kind};
use crate::engine::Namespace;

/// What hashes keys and salts to namespaces; another text gives other namespaces.
const NAMESPACE_CONTEXT: &str = "candle-ds4 2026-11-23 cache namespace of an API key";
/// What hashes keys for comparison.
const COMPARE_CONTEXT: &str = "candle-ds4 2026-11-23 API key comparison";

/// The keys that open the server. Their text is not kept.
#[derive(Clone, Default)]
pub struct Keys(Vec<Key>);

#[derive(Clone)]
struct Key {
    /// A hash, so that comparison takes the same time whatever the length.
    hash: [u8; 32],
    namespace: Namespace,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl Keys {
    /// The keys in a text: one a line; blank lines and lines that begin with `#` are passed over.
    ///
    /// # Errors
    /// A key that no header can hold; the error has its line's number, not the key.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut keys = Self::default();
        for (number, line) in text.lines().enumerate() {
            let key = line.trim();
            if key.is_empty() || key.starts_with('#') {
                continue;
            }
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                let number = number + 1;
                return Err(format!(
                    "line {number}: a key is one word of printable ASCII characters"
                ));
            }
            keys.add(key);
        }
        // With one key there is nobody to hide from; its caches outlive a change of the key.
        if let [key] = keys.0.as_mut_slice() {
            key.namespace = Namespace::default();
        }
        Ok(keys)
    }

    fn add(&mut self, key: &str) {
        let hash = blake3::derive_key(COMPARE_CONTEXT, key.as_bytes());
        if self.0.iter().all(|known| known.hash != hash) {
            let namespace = first_half(blake3::derive_key(NAMESPACE_CONTEXT, key.as_bytes()));
            self.0.push(Key { hash, namespace });
        }
    }

    /// Whether there are none, so that everybody may ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whose key came with a request: in `Authorization: Bearer` or in `x-api-key`. If there are
    /// both, one that fits is enough, since some clients send a dummy in the other.
    ///
    /// # Errors
    /// None that fits.
    pub fn admit(&self, headers: &HeaderMap) -> Result<Namespace, ApiError> {
        if self.is_empty() {
            return Ok(Namespace::default());
        }
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
            let value = value.as_bytes();
            let (scheme, key) = value.split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key.trim_ascii())
        });
        let own = headers.get("x-api-key").map(|value| value.as_bytes().trim_ascii());
        let given = [bearer, own];
        let mut given = given.into_iter().flatten().peekable();
        if given.peek().is_none() {
            return Err(ApiError::new(
                Kind::Authentication,
                "no API key: send one as `Authorization: Bearer KEY` or as `x-api-key: KEY`",
            )
            .with_code("missing_api_key"));
        }
        let mut admitted = None;
        for key in given {
            let hash = blake3::derive_key(COMPARE_CONTEXT, key);
            for known in &self.0 {
                let same: Choice = known.hash.ct_eq(&hash);
                if bool::from(same) {
                    admitted = Some(known.namespace);
                }
            }
        }
        admitted.ok_or_else(|| {
            ApiError::new(Kind::Authentication, "this API key is not one of the server's")
                .with_code("invalid_api_key")
        })
    }
}

/// The namespace that a client's own salt makes of its key's.
pub fn salted(namespace: Namespace, salt: &str) -> Namespace {
    let text = [namespace.0.as_slice(), salt.as_bytes()].concat();
    first_half(blake3::derive_key(NAMESPACE_CONTEXT, &text))
}

fn first_half(hash: [u8; 32]) -> Namespace {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    Namespace(half)
}

/// Which names of the server and which web pages are trusted.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Names by which the server may be called besides numbers and `localhost`.
    pub hosts: Vec<String>,
    /// Pages of other origins that may call it; `*` is all of them.
    pub origins: Vec<String>,
    /// Any name will do: callers need a key, which a page that was lured here does not have.
    pub any_host: bool,
}

impl Access {
    /// Refuses a request that calls the server by an unknown name. A web page can make its own
    /// name point to this machine (DNS rebinding); it cannot do that with a number.
    ///
    /// # Errors
    /// The name is not known.
    pub fn check_host(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), ApiError> {
        let Some(host) = host(headers, uri) else {
            return Err(ApiError::new(Kind::Invalid, "the request has no Host header"));
        };
        let name = without_port(&host);
        let number = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
        let local = name == "localhost" || name.ends_with(".localhost");
        let allowed = || self.hosts.iter().any(|host| host.eq_ignore_ascii_case(name));
        if self.any_host || number || local || allowed() {
            return Ok(());
        }
        Err(ApiError::new(
            Kind::Permission,
            "this server does not go by the name in the Host header; its owner can allow it with \
             --allowed-host NAME",
        )
        .with_code("host_not_allowed"))
    }

    /// The value of `Access-Control-Allow-Origin`, if the request is from a page that may read
    /// the answer.
    pub fn shared_with(&self, headers: &HeaderMap) -> Option<String> {
        let origin = headers.get(header::ORIGIN)?.to_str().ok()?;
        if self.origins.iter().any(|allowed| allowed == "*") {
            return Some("*".to_owned());
        }
        let same = |allowed: &&String| allowed.trim_end_matches('/').eq_ignore_ascii_case(origin);
        self.origins.iter().find(same).map(|_| origin.to_owned())
    }

    /// Refuses a request from a page that is neither the server's own nor allowed.
    ///
    /// # Errors
    /// The page's origin.
    pub fn check_origin(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), ApiError> {
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let own = host(headers, uri).is_some_and(|host| {
            let origin = origin.as_bytes();
            let scheme = [b"http://".as_slice(), b"https://"];
            let rest = scheme.iter().find_map(|scheme| origin.strip_prefix(*scheme));
            rest.is_some_and(|rest| rest.eq_ignore_ascii_case(host.as_bytes()))
        });
        if own || self.shared_with(headers).is_some() {
            return Ok(());
        }
        Err(ApiError::new(
            Kind::Permission,
            "this web page may not use the server; its owner can allow it with --cors ORIGIN",
        )
        .with_code("origin_not_allowed"))
    }
}

/// What the request calls the server, in lower case.
fn host(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    // A target in full, as for a proxy, wins over the header.
    let target = uri.authority().map(|authority| authority.as_str().to_owned());
    let header = || headers.get(header::HOST)?.to_str().ok().map(str::to_owned);
    target.or_else(header).map(|host| host.to_ascii_lowercase())
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_key_opens_in_either_header_and_only_the_right_one() {
        let keys = Keys::read("# people\nalpha\n\n  beta  \nalpha\n").unwrap();
        assert_eq!(keys.len(), 2);
        let admit = |pairs: &[(&'static str, &str)]| keys.admit(&headers(pairs));
        let alpha = admit(&[("authorization", "Bearer alpha")]).unwrap();
        assert_eq!(admit(&[("authorization", "bearer  alpha ")]), Ok(alpha));
        assert_eq!(admit(&[("x-api-key", "alpha")]), Ok(alpha));
        assert_eq!(admit(&[("x-api-key", "dummy"), ("authorization", "Bearer alpha")]), Ok(alpha));
        assert_ne!(admit(&[("x-api-key", "beta")]), Ok(alpha));
        let refused: [&[(&str, &str)]; 6] = [
            &[],
            &[("authorization", "Bearer ")],
            &[("authorization", "Bearer alph")],
            &[("authorization", "Bearer alphaa")],
            &[("authorization", "Basic alpha")],
            &[("x-api-key", "")],
        ];
        for pairs in refused {
            let error = admit(pairs).unwrap_err();
            assert_eq!(error.kind, Kind::Authentication, "{pairs:?}");
        }
    }

    #[test]
    fn keys_have_caches_of_their_own_once_there_are_two() {
        let one = Keys::read("alpha").unwrap();
        let alpha = headers(&[("x-api-key", "alpha")]);
        assert_eq!(one.admit(&alpha), Ok(Namespace::default()));
        let two = Keys::read("alpha\nbeta").unwrap();
        let namespace = two.admit(&alpha).unwrap();
        assert_ne!(namespace, Namespace::default());
        assert_ne!(salted(namespace, "x"), salted(namespace, "y"));
        assert_ne!(salted(namespace, ""), namespace);
        assert!(Keys::read("two words").unwrap_err().contains("line 1"));
        assert!(!format!("{two:?}").contains("alpha"));
    }

    #[test]
    fn numbers_and_localhost_are_the_servers_names() {
        let access = Access { hosts: vec!["gpu.lan".into()], ..Access::default() };
        let check = |host: &str| {
            access.check_host(&headers(&[("host", host)]), &Uri::from_static("/")).is_ok()
        };
        for host in ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]"] {
            assert!(check(host), "{host}");
        }
        for host in ["192.168.1.5:80", "api.localhost", "LOCALHOST", "gpu.lan:8000", "GPU.lan"] {
            assert!(check(host), "{host}");
        }
        for host in ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.x"] {
            assert!(!check(host), "{host}");
        }
        assert!(access.check_host(&HeaderMap::new(), &Uri::from_static("/")).is_err());
        let target = Uri::from_static("http://evil.example/v1/models");
        assert!(access.check_host(&headers(&[("host", "localhost")]), &target).is_err());
    }

    #[test]
    fn pages_are_the_servers_own_or_allowed() {
        let access = Access { origins: vec!["https://app.example/".into()], ..Access::default() };
        let check = |origin: &str| {
            let headers = headers(&[("host", "127.0.0.1:8000"), ("origin", origin)]);
            access.check_origin(&headers, &Uri::from_static("/")).is_ok()
        };
        assert!(check("http://127.0.0.1:8000"));
        assert!(check("https://app.example"));
        for origin in ["http://127.0.0.1:8001", "http://localhost:8000", "null", "https://evil"] {
            assert!(!check(origin), "{origin}");
        }
        let page = headers(&[("origin", "https://app.example")]);
        assert_eq!(access.shared_with(&page).as_deref(), Some("https://app.example"));
        let all = Access { origins: vec!["*".into()], ..Access::default() };
        assert_eq!(all.shared_with(&page).as_deref(), Some("*"));
        assert_eq!(Access::default().shared_with(&page), None);
    }
}
