//! The trailers of a response that a gateway forwards (RFC 9110 section 6.5.1).
//!
//! Invariant: no trailer passes that would have framed, routed, authenticated, cached or changed
//! the response had it come in its head: no check of the head covers it, and a client may merge it.

use http::{HeaderMap, HeaderName, header};

use super::head::{HeadError, HeadLimits};

/// Fields that have their meaning in a head only. Besides, all whose name begins with `content-`,
/// `proxy-` or `access-control-`, or has `cookie` in it.
static HEAD_ONLY: [HeaderName; 28] = [
    header::ACCEPT_RANGES,
    header::AGE,
    header::ALLOW,
    header::ALT_SVC,
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONNECTION,
    header::DATE,
    header::ETAG,
    header::EXPECT,
    header::EXPIRES,
    header::HOST,
    HeaderName::from_static("keep-alive"),
    header::LAST_MODIFIED,
    header::LOCATION,
    header::MAX_FORWARDS,
    header::PRAGMA,
    header::RANGE,
    header::REFRESH,
    header::RETRY_AFTER,
    header::SERVER,
    header::STRICT_TRANSPORT_SECURITY,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::VARY,
    header::WWW_AUTHENTICATE,
];

/// Keeps the trailers that may be forwarded. `None`: there is none.
///
/// # Errors
/// They are larger than the head of a response may be.
pub(crate) fn forwardable(
    mut trailers: HeaderMap,
    limits: HeadLimits,
) -> Result<Option<HeaderMap>, HeadError> {
    limits.check_fields(0, &trailers)?;
    let dropped: Vec<HeaderName> = trailers.keys().filter(|name| is_head_only(name)).cloned().collect();
    for name in dropped {
        trailers.remove(name);
    }
    Ok(if trailers.is_empty() { None } else { Some(trailers) })
}

fn is_head_only(name: &HeaderName) -> bool {
    let text = name.as_str();
    text.starts_with("content-")
        || text.starts_with("proxy-")
        || text.starts_with("access-control-")
        || text.contains("cookie")
        || HEAD_ONLY.contains(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { line: 64, head: 256 };

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn fields_of_a_head_are_no_trailers() {
        let status = map(&[("grpc-status", "0"), ("grpc-message", "fine"), ("x-checksum", "1")]);
        assert_eq!(forwardable(status.clone(), LIMITS), Ok(Some(status)));
        for name in [
            "content-length",
            "content-type",
            "Transfer-Encoding",
            "set-cookie",
            "set-cookie2",
            "connection",
            "upgrade",
            "proxy-status",
            "host",
            "location",
            "access-control-allow-origin",
            "server",
        ] {
            assert_eq!(forwardable(map(&[(name, "1")]), LIMITS), Ok(None), "{name}");
            let both = forwardable(map(&[(name, "1"), (name, "2"), ("x-own", "1")]), LIMITS);
            assert_eq!(both, Ok(Some(map(&[("x-own", "1")]))), "{name}");
        }
    }

    #[test]
    fn trailers_are_as_large_as_a_head_at_most() {
        let long = map(&[("x-own", &"x".repeat(80))]);
        assert_eq!(forwardable(long, LIMITS), Err(HeadError::FieldTooLong(64)));
    }
}
