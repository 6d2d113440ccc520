//! The path and query of the forwarded request.
//!
//! Invariant: the path is that of the [`RequestTarget`], by which everything was decided, never the
//! raw one (except with `proxy-rewrite.use_real_request_uri_unsafe`, where [`model::raw_path`]
//! allows it); the query is the client's, byte for byte.

use http::uri::{InvalidUri, PathAndQuery};
use model::RequestTarget;

/// The encoded path of the target, with the query of `raw`, the client's path and query.
///
/// # Errors
/// It is longer than 64 KiB.
pub fn forwarded_path(target: &RequestTarget, raw: Option<PathAndQuery>) -> Result<PathAndQuery, InvalidUri> {
    let path = target.forwarded_path();
    match raw {
        // Nearly always; nothing is copied.
        Some(raw) if raw.path() == path => Ok(raw),
        Some(raw) => join(path, raw.query()),
        None => join(path, None),
    }
}

/// Joins an encoded path and an encoded query.
///
/// # Errors
/// They are longer than 64 KiB together, or invalid.
pub(super) fn join(path: &str, query: Option<&str>) -> Result<PathAndQuery, InvalidUri> {
    match query {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Uri, Version, header};
    use model::PathOptions;
    use proptest::prelude::*;

    use super::*;
    use crate::http::request;

    fn target(uri: &Uri) -> Option<RequestTarget> {
        let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("a.com"))]);
        let uri = if uri.authority().is_some() { uri.path().parse().ok()? } else { uri.clone() };
        request::parse_target(Version::HTTP_11, &uri, &headers, PathOptions::default()).ok()
    }

    fn forwarded(uri: &str) -> String {
        let uri: Uri = uri.parse().unwrap();
        let target = target(&uri).unwrap();
        forwarded_path(&target, uri.into_parts().path_and_query).unwrap().to_string()
    }

    #[test]
    fn the_normalized_path_and_the_clients_query_are_forwarded() {
        for (requested, expected) in [
            ("/a/b?x=%2e%2e/&y", "/a/b?x=%2e%2e/&y"),
            ("/secret/../public/x?q", "/public/x?q"),
            ("/a%2fb?", "/a/b?"),
            ("/a%20b", "/a%20b"),
            ("http://a.com", "/"),
            ("http://a.com/x/%2e%2e/y?z=/../", "/y?z=/../"),
        ] {
            assert_eq!(forwarded(requested), expected, "{requested}");
        }
    }

    proptest! {
        /// The forwarded path normalizes to the same path, and its query is the client's.
        #[test]
        fn the_forwarded_path_is_the_normalized_path(path in "(/|[.]{1,2}|%2[efEF]|%5[cC]|;|a|%|\\|é){0,10}", query in "[!-~&&[^#<>`]]{0,8}") {
            let Ok(uri) = format!("/{path}?{query}").parse::<Uri>() else { return Ok(()) };
            let Some(checked) = target(&uri) else { return Ok(()) };
            let sent = forwarded_path(&checked, uri.into_parts().path_and_query).unwrap();
            prop_assert_eq!(sent.query(), Some(&*query));
            let again = target(&Uri::from(sent)).unwrap();
            prop_assert_eq!(again.path, checked.path);
        }
    }
}
