//! `/openapi.json`, which describes every path, and `/docs`, which shows it to people; neither
//! needs anything from elsewhere.

use std::sync::OnceLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::app::Route;
use super::page;

const DOCUMENT: &str = include_str!("openapi.json");
const PAGE: &str = include_str!("docs.html");
const STYLE: &str = include_str!("docs.css");
const SCRIPT: &str = include_str!("docs.js");

/// Adds the paths.
pub(super) fn routes(route: &mut Route<'_>) {
    route("/openapi.json", get(document));
    route("/docs", get(docs));
}

async fn document() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| DOCUMENT.replace("VERSION", env!("CARGO_PKG_VERSION")));
    ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

async fn docs() -> Response {
    static HTML: OnceLock<String> = OnceLock::new();
    static POLICY: OnceLock<String> = OnceLock::new();
    let html = HTML.get_or_init(|| PAGE.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT));
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.get_or_init(|| page::policy_of(SCRIPT, STYLE))),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, html.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::App;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn read() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    #[test]
    fn every_path_is_described_and_no_other() {
        let mut paths = BTreeSet::from(["/".to_owned()]);
        App::routes(&mut |path, _| {
            paths.insert(path.replace("{*", "{"));
        });
        let described = read()["paths"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(paths, described);
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_referred_to() {
        fn walk<'v>(value: &'v Value, seen: &mut BTreeSet<&'v str>) {
            match value {
                Value::Object(members) => {
                    seen.extend(members.get("$ref").and_then(Value::as_str));
                    members.values().for_each(|value| walk(value, seen));
                }
                Value::Array(values) => values.iter().for_each(|value| walk(value, seen)),
                _ => {}
            }
        }
        let document = read();
        let mut seen = BTreeSet::new();
        walk(&document, &mut seen);
        for reference in &seen {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        for name in document["components"]["schemas"].as_object().unwrap().keys() {
            let reference = format!("#/components/schemas/{name}");
            assert!(seen.contains(reference.as_str()), "{name} is not used");
        }
    }

    #[test]
    fn the_page_is_whole_and_loads_nothing_from_elsewhere() {
        let page = PAGE.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT);
        assert!(page.contains(STYLE) && page.contains(SCRIPT));
        for outside in ["src=", "@import", "url(", "innerHTML", "insertAdjacentHTML", "eval("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
