//! The head of a request to an HTTP/2 upstream (RFC 9113 section 8.3.1).
//!
//! Invariant: the host is in `:authority` alone, and no field of an HTTP/1 connection is sent.

use http::request::Parts;
use http::{HeaderValue, Request, Uri, Version, header};

const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// The `Host` for an upstream is no authority of a URI.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} cannot be sent as :authority")]
pub(crate) struct AuthorityError(String);

/// Makes the head of an HTTP/2 request from one of HTTP/1.1 in origin form. `host`: for the
/// upstream; `accepts_trailers`: whether to send `TE: trailers`.
///
/// # Errors
/// [`AuthorityError`].
pub(crate) fn http2_head(
    parts: &Parts,
    host: &str,
    scheme: &str,
    accepts_trailers: bool,
) -> Result<Request<()>, AuthorityError> {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = Uri::builder().scheme(scheme).authority(host).path_and_query(path);
    let mut head = Request::new(());
    *head.method_mut() = parts.method.clone();
    *head.uri_mut() = uri.build().map_err(|_| AuthorityError(host.to_owned()))?;
    *head.version_mut() = Version::HTTP_2;
    let headers = head.headers_mut();
    headers.clone_from(&parts.headers);
    headers.remove(header::HOST);
    headers.remove(header::TRANSFER_ENCODING);
    if accepts_trailers {
        headers.insert(header::TE, TRAILERS);
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;

    fn head(host: &str, accepts_trailers: bool) -> Result<Request<()>, AuthorityError> {
        let request = Request::post("/a%20b?c=1")
            .header("host", "client.example")
            .header("transfer-encoding", "chunked")
            .header("x-own", "1");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        http2_head(&parts, host, "https", accepts_trailers)
    }

    #[test]
    fn the_host_is_the_authority_and_framing_is_gone() {
        let head = head("up.example:8443", false).unwrap();
        assert_eq!(head.uri(), "https://up.example:8443/a%20b?c=1");
        assert_eq!((head.method(), head.version()), (&Method::POST, Version::HTTP_2));
        let own = HeaderMap::from_iter([("x-own".parse().unwrap(), "1".parse().unwrap())]);
        assert_eq!(*head.headers(), own);
    }

    #[test]
    fn trailers_are_asked_for_where_they_matter() {
        assert_eq!(head("up.example", true).unwrap().headers()[header::TE], "trailers");
        assert!(head("up.example", false).unwrap().headers().get(header::TE).is_none());
    }

    #[test]
    fn a_host_that_is_no_authority_is_an_error() {
        assert!(head("not a host", false).is_err());
    }
}
