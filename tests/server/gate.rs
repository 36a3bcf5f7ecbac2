//! Who is let in.

use std::net::SocketAddr;
use std::sync::OnceLock;

use candle_ds4::server::{Access, Keys, Settings};
use serde_json::json;

use crate::client::{request, server, start};

const ASK: &str = r#"{"messages":[{"role":"user","content":"What is 12 + 30?"}],"max_tokens":1,
    "reasoning_effort":"none"}"#;
const CHAT: &str = "/v1/chat/completions";

fn ask(address: SocketAddr, headers: &[(&str, &str)]) -> crate::client::Response {
    request(address, "POST", CHAT, headers, ASK.as_bytes())
}

/// A server with two keys.
fn keyed() -> SocketAddr {
    static SERVER: OnceLock<SocketAddr> = OnceLock::new();
    *SERVER.get_or_init(|| {
        start(Settings { keys: Keys::read("alpha\nbeta\n").unwrap(), ..Settings::default() })
    })
}

#[test]
fn a_key_is_asked_for_where_there_are_keys() {
    for headers in [
        &[("authorization", "Bearer alpha")][..],
        &[("x-api-key", "beta")],
        &[("x-api-key", "wrong"), ("authorization", "Bearer beta")],
    ] {
        assert_eq!(ask(keyed(), headers).status, 200, "{headers:?}");
    }
    for headers in [
        &[][..],
        &[("authorization", "Bearer gamma")],
        &[("authorization", "alpha")],
        &[("x-api-key", "alpha2")],
    ] {
        let response = ask(keyed(), headers);
        assert_eq!(response.status, 401, "{headers:?}");
        assert_eq!(response.json()["error"]["type"], "authentication_error");
        assert_eq!(response.header("www-authenticate"), Some("Bearer"));
        assert!(!response.text().contains("gamma") && !response.text().contains("alpha2"));
    }
    let bare = |path| request(keyed(), "GET", path, &[], b"").status;
    assert_eq!(bare("/health"), 200);
    assert_eq!(bare("/"), 200);
    for path in ["/metrics", "/v1/models", "/version", "/nothing", "/v1/metrics"] {
        assert_eq!(bare(path), 401, "{path}");
    }
    let anthropic = request(keyed(), "POST", "/v1/messages", &[], b"{}");
    assert_eq!((anthropic.status, &anthropic.json()["type"]), (401, &json!("error")));
}

#[test]
fn what_one_key_has_asked_is_not_in_another_ones_cache() {
    let question = |key: &str, salt: &str| {
        let body = json!({ "messages": [{ "role": "user", "content":
            format!("Namespaces apart. {} What is 12 + 30?", "The sun was shining. ".repeat(20)) }],
            "max_tokens": 1, "reasoning_effort": "none", "cache_salt": salt });
        let headers = [("x-api-key", key)];
        let value = request(keyed(), "POST", CHAT, &headers, body.to_string().as_bytes()).ok();
        value["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(question("alpha", ""), 0);
    assert_eq!(question("beta", ""), 0, "another key sees what was asked");
    assert!(question("alpha", "") > 0, "the same key does not");
    assert_eq!(question("alpha", "salt"), 0, "another salt sees what was asked");
    assert!(question("alpha", "salt") > 0);
}

#[test]
fn the_server_goes_by_numbers_and_localhost_alone() {
    for host in ["localhost:1234", "127.0.0.1", "[::1]:80", "10.1.2.3"] {
        assert_eq!(ask(server(), &[("host", host)]).status, 200, "{host}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example"] {
        let response = ask(server(), &[("host", host)]);
        assert_eq!(response.status, 403, "{host}");
        assert_eq!(response.json()["error"]["code"], "host_not_allowed");
        assert_eq!(request(server(), "GET", "/health", &[("host", host)], b"").status, 403);
    }
    let access = Access { hosts: vec!["gpu.lan".into()], ..Access::default() };
    let named = start(Settings { access, ..Settings::default() });
    assert_eq!(ask(named, &[("host", "gpu.lan:8000")]).status, 200);
    assert_eq!(ask(named, &[("host", "other.lan")]).status, 403);
}

#[test]
fn pages_of_others_are_kept_out_unless_they_are_let_in() {
    for origin in ["https://evil.example", "null", "http://localhost:9"] {
        let response = ask(server(), &[("origin", origin)]);
        assert_eq!(response.status, 403, "{origin}");
        assert_eq!(response.header("access-control-allow-origin"), None);
        assert_eq!(response.json()["error"]["code"], "origin_not_allowed");
        let read = request(server(), "GET", "/v1/models", &[("origin", origin)], b"");
        assert_eq!((read.status, read.header("access-control-allow-origin")), (200, None));
    }
    let own = [("host", "localhost:8000"), ("origin", "http://localhost:8000")];
    assert_eq!(ask(server(), &own).status, 200);

    let access = Access { origins: vec!["https://app.example".into()], ..Access::default() };
    let open = start(Settings { access, ..Settings::default() });
    let response = ask(open, &[("origin", "https://app.example")]);
    assert_eq!(response.status, 200);
    assert_eq!(response.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(response.header("vary"), Some("origin"));
    assert_eq!(response.header("access-control-allow-credentials"), None);
    assert_eq!(ask(open, &[("origin", "https://evil.example")]).status, 403);
}

#[test]
fn browsers_are_answered_when_they_ask_first() {
    let ask_first = |address, origin| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        request(address, "OPTIONS", CHAT, &headers, b"")
    };
    let closed = ask_first(server(), "https://app.example");
    assert_eq!((closed.status, closed.header("access-control-allow-origin")), (204, None));
    let access = Access { origins: vec!["*".into()], ..Access::default() };
    let keys = Keys::read("alpha").unwrap();
    let open = start(Settings { access, keys, ..Settings::default() });
    let response = ask_first(open, "https://app.example");
    assert_eq!((response.status, response.header("access-control-allow-origin")), (204, Some("*")));
    let allowed = response.header("access-control-allow-headers").unwrap();
    assert!(allowed.contains("authorization"), "{allowed}");
    // A refusal can be read, too.
    let refused = ask(open, &[("origin", "https://app.example")]);
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("*")));
}

#[test]
fn only_json_is_read() {
    for kind in ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let response = ask(server(), &[("content-type", kind)]);
        assert_eq!(response.status, 415, "{kind:?}");
        assert!(response.text().contains("content-type: application/json"));
    }
    let kind = "Application/JSON; charset=utf-8";
    assert_eq!(ask(server(), &[("content-type", kind)]).status, 200);
}

#[test]
fn a_request_has_the_id_that_it_came_with_if_logs_can_hold_it() {
    let id = |given: &str| {
        let response = request(server(), "GET", "/health", &[("x-request-id", given)], b"");
        response.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("abc-1.2_3"), "abc-1.2_3");
    for strange in ["a b", "x/y", &"x".repeat(65)] {
        assert!(id(strange).starts_with("req_"), "{strange}");
    }
    assert_ne!(id(""), id(""));
}

#[test]
fn a_model_of_another_name_is_refused_only_by_a_strict_server() {
    let body = |model: &str| {
        json!({ "model": model, "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1 })
            .to_string()
    };
    let lax = request(server(), "POST", CHAT, &[], body("gpt-5").as_bytes()).ok();
    assert_eq!(lax["model"], "gpt-5");
    let strict = start(Settings { strict_model: true, ..Settings::default() });
    let post = |model: &str| request(strict, "POST", CHAT, &[], body(model).as_bytes());
    assert_eq!(post("deepseek-chat").status, 200);
    let response = post("gpt-5");
    assert_eq!((response.status, &response.json()["error"]["param"]), (404, &json!("model")));
}
