//! The case of our own header names on an HTTP/1 connection that preserves case.
//!
//! hyper writes a name as its case map has it, which only its parser can fill, and otherwise with a
//! capital after each `-`: nginx's `X-Real-IP` would become `X-Real-Ip`, or what the client wrote.
//! Therefore the parser reads our names, without values, before the client's fields
//! ([`prefix_lines`]), and [`strip`] removes them from the parsed head. Invariant: a stripped head
//! has the client's fields only; its case map has our names, too.

use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The fields that we add to forwarded requests, as nginx, APISIX and the RFCs write them.
const OWN_NAMES: [&str; 16] = [
    "X-Real-IP",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Client-Cert",
    "X-SSL-Client-Verify",
    "X-SSL-Client-S-DN",
    "X-SSL-Client-I-DN",
    "X-SSL-Client-Serial",
    "X-SSL-Client-Fingerprint",
    "X-SSL-Client-V-Start",
    "X-SSL-Client-V-End",
    "X-SSL-Client-Cert",
    "Client-Cert",
    "Client-Cert-Chain",
];

/// The number of fields in [`prefix_lines`].
pub(super) const FIELDS: usize = OWN_NAMES.len();

static PREFIX_LINES: LazyLock<Bytes> =
    LazyLock::new(|| OWN_NAMES.iter().map(|name| format!("{name}:\r\n")).collect::<String>().into());
static HEADER_NAMES: LazyLock<Vec<HeaderName>> = LazyLock::new(|| {
    OWN_NAMES.iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect()
});

/// The fields that the parser reads behind the request line.
pub(super) fn prefix_lines() -> Bytes {
    PREFIX_LINES.clone()
}

/// Removes the first value of each of our names from a head that was parsed with [`prefix_lines`].
pub(super) fn strip(headers: &mut HeaderMap) {
    for name in &*HEADER_NAMES {
        let clients: Vec<HeaderValue> = headers.get_all(name).iter().skip(1).cloned().collect();
        headers.remove(name);
        for value in clients {
            headers.append(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stripped_head_has_the_clients_fields_only() {
        assert_eq!(HEADER_NAMES.len(), FIELDS);
        let mut headers = HeaderMap::new();
        for name in &*HEADER_NAMES {
            headers.append(name, HeaderValue::from_static(""));
        }
        headers.append("x-real-ip", HeaderValue::from_static("10.0.0.1"));
        headers.append("x-forwarded-for", HeaderValue::from_static(""));
        headers.append("x-forwarded-for", HeaderValue::from_static("10.0.0.2"));
        headers.append("accept", HeaderValue::from_static("*/*"));
        strip(&mut headers);
        let mut left: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        left.sort();
        let clients: [(&str, &[u8]); 4] = [
            ("accept", b"*/*"),
            ("x-forwarded-for", b""),
            ("x-forwarded-for", b"10.0.0.2"),
            ("x-real-ip", b"10.0.0.1"),
        ];
        assert_eq!(left, clients);
    }
}
