//! The trailers that a gateway forwards (RFC 9110 section 6.5.1).
//!
//! Invariants: no trailer passes that would have framed, routed, authenticated, cached or changed
//! the message had it come in its head: no check of the head covers it, and its reader may merge
//! it. Of a request only those pass that its head has announced, and that were checked there.

use http::{HeaderMap, HeaderName, header};

use super::head::{HeadError, HeadLimits};

/// The most names that a request may announce.
const ANNOUNCED_MAX: usize = 16;
/// The trailers of a request, in bytes.
const REQUEST_LIMITS: HeadLimits = HeadLimits { line: 8 * 1024, head: 8 * 1024 };

/// Fields that have their meaning in a head only. Besides, all whose name begins with `content-`,
/// `proxy-`, `access-control-` or `if-`, or has `cookie` in it.
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

/// The names that `Trailer` lists; none where they are too many.
pub(crate) fn announced(headers: &HeaderMap) -> Vec<HeaderName> {
    let lists = headers.get_all(header::TRAILER).iter();
    let names: Vec<HeaderName> = lists
        .flat_map(|list| list.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .take(ANNOUNCED_MAX + 1)
        .collect();
    if names.len() > ANNOUNCED_MAX { Vec::new() } else { names }
}

/// The trailers that a request may have.
pub(crate) struct AnnouncedTrailers(Vec<HeaderName>);

impl AnnouncedTrailers {
    /// Those of a head whose `Trailer` lists what may pass.
    pub(crate) fn new(headers: &HeaderMap) -> Self {
        Self(announced(headers))
    }

    /// Keeps those that may be forwarded. `None`: there is none.
    ///
    /// # Errors
    /// They are too large.
    pub(crate) fn forwardable(&self, mut trailers: HeaderMap) -> Result<Option<HeaderMap>, HeadError> {
        let others: Vec<HeaderName> =
            trailers.keys().filter(|name| !self.0.contains(name)).cloned().collect();
        for name in others {
            trailers.remove(name);
        }
        forwardable(trailers, REQUEST_LIMITS)
    }
}

/// Whether a field has its meaning in a head only.
pub(crate) fn is_head_only(name: &HeaderName) -> bool {
    let text = name.as_str();
    text.starts_with("content-")
        || text.starts_with("proxy-")
        || text.starts_with("access-control-")
        || text.starts_with("if-")
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
    fn a_request_has_the_trailers_that_it_announced() {
        let head = map(&[("trailer", "X-Sum, ,x-other,"), ("trailer", "x-third, host, \u{e9}")]);
        assert_eq!(announced(&head), ["x-sum", "x-other", "x-third", "host"]);
        let trailers = map(&[("x-sum", "1"), ("x-sum", "2"), ("x-own", "3"), ("host", "a.test")]);
        let kept = AnnouncedTrailers::new(&head).forwardable(trailers.clone());
        assert_eq!(kept, Ok(Some(map(&[("x-sum", "1"), ("x-sum", "2")]))));
        assert_eq!(AnnouncedTrailers::new(&map(&[])).forwardable(trailers), Ok(None));
        let many = (0..=ANNOUNCED_MAX).map(|number| format!("x-{number}")).collect::<Vec<_>>().join(",");
        assert!(announced(&map(&[("trailer", &many)])).is_empty());
        let long = map(&[("x-sum", &"x".repeat(9000))]);
        assert!(AnnouncedTrailers::new(&head).forwardable(long).is_err());
    }

    #[test]
    fn trailers_are_as_large_as_a_head_at_most() {
        let long = map(&[("x-own", &"x".repeat(80))]);
        assert_eq!(forwardable(long, LIMITS), Err(HeadError::FieldTooLong(64)));
    }
}
