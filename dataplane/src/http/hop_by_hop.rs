//! The fields of one connection (RFC 9110 section 7.6.1), which no message takes to another one.

use http::{HeaderMap, HeaderName, header};

use super::trailers;

/// Headers of one connection, not of the message.
pub(crate) static HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    // An expectation that the gateway passes on is set anew (RFC 9110 section 10.1.1).
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What the removed fields say about trailers.
#[derive(Debug, Default)]
pub(crate) struct TrailerFields {
    /// The names that `Trailer` lists.
    pub announced: Vec<HeaderName>,
    /// `TE` is `trailers`: the sender takes those of a response.
    pub accepted: bool,
}

/// Removes the hop-by-hop fields, and every field that `Connection` lists.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) -> TrailerFields {
    let mut accepted = false;
    if headers.contains_key(header::CONNECTION) {
        // `Connection` lists `TE` (RFC 9110 section 10.1.4).
        accepted = takes_trailers(headers);
        let listed: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            // Bytes: a byte that is no text must not hide the names beside it.
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .collect();
        for name in listed {
            // A client must not remove framing or routing.
            if name != header::HOST && name != header::CONTENT_LENGTH {
                headers.remove(name);
            }
        }
    }
    // Most messages have none: one pass over their few headers costs less than ten look-ups.
    if !headers.keys().any(is_hop_by_hop) {
        return TrailerFields { accepted, ..TrailerFields::default() };
    }
    accepted = accepted || takes_trailers(headers);
    let announced = trailers::announced(headers);
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    TrailerFields { announced, accepted }
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"))
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    // A cheap filter: all the names start with one of these letters.
    name.as_str().starts_with(['c', 'e', 'k', 'p', 't', 'u']) && HOP_BY_HOP.contains(name)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn header_map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_connection_header_with_invalid_bytes_is_read() {
        for list in [&b"\xff, x-secret"[..], b"x-secret , \xff", b"close,\tX-Secret"] {
            let mut headers = header_map(&[("x-secret", "1"), ("cookie", "stays")]);
            headers.insert("connection", HeaderValue::from_bytes(list).unwrap());
            remove_hop_by_hop(&mut headers);
            assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["cookie"], "{list:?}");
        }
    }

    #[test]
    fn each_hop_by_hop_header_is_removed_even_alone() {
        for name in &HOP_BY_HOP {
            let mut headers =
                header_map(&[(name.as_str(), "x"), ("cookie", "stays"), ("user-agent", "stays")]);
            remove_hop_by_hop(&mut headers);
            assert!(!headers.contains_key(name), "{name}");
            assert_eq!(headers.len(), 2, "{name}");
        }
    }
}
