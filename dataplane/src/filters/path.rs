//! The path and query of the forwarded request.
//!
//! Invariant: the path comes from the [`Target`] that was judged, never from the request line
//! beside it (`proxy-rewrite.use_real_request_uri_unsafe` apart, and where [`model::raw_path`]
//! allows that); the query is the client's own, byte for byte.

use http::uri::{InvalidUri, PathAndQuery};
use model::RequestTarget;

/// What was judged, encoded, and the query of `own`, which is what the client asked for.
///
/// # Errors
/// Encoded, it is longer than a request line may be (64 KiB).
pub fn forwarded_path(target: &RequestTarget, own: Option<PathAndQuery>) -> Result<PathAndQuery, InvalidUri> {
    let path = target.forwarded_path();
    match own {
        // Nearly always: nothing is copied.
        Some(own) if own.path() == path => Ok(own),
        Some(own) => join(path, own.query()),
        None => join(path, None),
    }
}

/// A path and a query, both encoded.
///
/// # Errors
/// Together they are longer than 64 KiB, or hold what neither may hold.
pub fn join(path: &str, query: Option<&str>) -> Result<PathAndQuery, InvalidUri> {
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

    fn of(uri: &str) -> String {
        let uri: Uri = uri.parse().unwrap();
        let target = target(&uri).unwrap();
        forwarded_path(&target, uri.into_parts().path_and_query).unwrap().to_string()
    }

    #[test]
    fn the_judged_path_and_the_query_as_it_is() {
        for (asked, expected) in [
            ("/a/b?x=%2e%2e/&y", "/a/b?x=%2e%2e/&y"),
            ("/secret/../public/x?q", "/public/x?q"),
            ("/a%2fb?", "/a/b?"),
            ("/a%20b", "/a%20b"),
            ("http://a.com", "/"),
            ("http://a.com/x/%2e%2e/y?z=/../", "/y?z=/../"),
        ] {
            assert_eq!(of(asked), expected, "{asked}");
        }
    }

    proptest! {
        /// Whatever is asked for: what is forwarded reads as what was judged, and has the client's own query.
        #[test]
        fn nothing_is_forwarded_that_was_not_judged(path in "(/|[.]{1,2}|%2[efEF]|%5[cC]|;|a|%|\\|é){0,10}", query in "[!-~&&[^#<>`]]{0,8}") {
            let Ok(uri) = format!("/{path}?{query}").parse::<Uri>() else { return Ok(()) };
            let Some(judged) = target(&uri) else { return Ok(()) };
            let sent = forwarded_path(&judged, uri.into_parts().path_and_query).unwrap();
            prop_assert_eq!(sent.query(), Some(&*query));
            let again = target(&Uri::from(sent)).unwrap();
            prop_assert_eq!(again.path, judged.path);
        }
    }
}
