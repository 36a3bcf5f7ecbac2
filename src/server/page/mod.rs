//! The chat page: one document, with nothing from elsewhere.

use std::sync::OnceLock;

use base64::prelude::{Engine as _, BASE64_STANDARD};

const DOCUMENT: &str = include_str!("index.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page.
pub fn html() -> &'static str {
    static PAGE: OnceLock<String> = OnceLock::new();
    PAGE.get_or_init(|| DOCUMENT.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT))
}

/// What the page may do, as the value of `Content-Security-Policy`.
pub fn policy() -> &'static str {
    static POLICY: OnceLock<String> = OnceLock::new();
    POLICY.get_or_init(|| policy_of(SCRIPT, STYLE))
}

/// The policy of a page that may run this script of its own, have this style, and talk to where it
/// came from.
pub fn policy_of(script: &str, style: &str) -> String {
    let hash = |text: &str| {
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        format!("'sha256-{}'", BASE64_STANDARD.encode(digest))
    };
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(script),
        hash(style),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_loads_nothing_from_elsewhere() {
        let page = html();
        assert!(page.contains(STYLE) && page.contains(SCRIPT) && !page.contains("/*SCRIPT*/"));
        for outside in ["src=", "@import", "url(", "innerHTML", "insertAdjacentHTML", "eval("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
