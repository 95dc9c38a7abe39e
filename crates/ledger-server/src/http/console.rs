//! The console: one page to look at contexts, and the JSON behind it. It reads and never writes.
//!
//! Everything a writer chose (names, keys, metadata, payloads) is hostile: it leaves here as JSON only, the
//! page puts it in place as text only, and the page may load and run nothing but what it carries.
//!
//! | path | query | answers |
//! | --- | --- | --- |
//! | `/` | | the page |
//! | `/api/cluster` | | the nodes, as this one sees them |
//! | `/api/contexts` | `prefix`, `after`, `limit` | a page of the listing |
//! | `/api/context` | `id` | size, Lamport time, epoch, root, signed checkpoint; who owns and who keeps it |
//! | `/api/entries` | `id`, `key`, `after`, `limit` | entries with previews of their payloads |
//! | `/api/tail` | `id`, `key`, `after` | the same, live, as server-sent events |

mod cluster;
mod contexts;
mod digits;
mod entries;
mod entry;
mod live_tail;
mod query;

use std::sync::{Arc, LazyLock};

use axum::{
    Router,
    http::{HeaderName, header},
    response::{Html, IntoResponse},
    routing::get,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use ledger_core::hash::{Hasher as _, Sha256};

use crate::node::Node;

const PAGE: &str = include_str!("console.html");

/// The page may run and show its own inline script and style, known by their hashes, and ask its own server.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |tag: &str| {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        let inline = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
        BASE64_STANDARD.encode(Sha256::digest(inline.map_or("", |(inline, _)| inline).as_bytes()).0)
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style"),
    )
});

/// The console's paths.
pub fn routes() -> Router<Arc<Node>> {
    Router::new()
        .route("/", get(page))
        .route("/api/cluster", get(cluster::cluster))
        .route("/api/contexts", get(contexts::contexts))
        .route("/api/context", get(contexts::context))
        .route("/api/entries", get(entries::entries))
        .route("/api/tail", get(live_tail::tail))
}

async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    (headers, Html(PAGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_carries_one_script_and_one_style_and_loads_nothing() {
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert_eq!(PAGE.matches("<style").count(), 1);
        assert!(PAGE.contains("<script>") && PAGE.contains("<style>"));
        for never in [
            "http://",
            "https://",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            " style=",
            " onclick=",
        ] {
            assert!(!PAGE.contains(never), "{never}");
        }
        assert!(POLICY.starts_with("default-src 'none'; script-src 'sha256-"));
    }
}
