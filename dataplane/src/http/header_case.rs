//! The case of the gateway's own header names, where the settings ask for case to be kept.
//!
//! hyper writes a name as its case map has it, which only its parser can make, and else with a
//! capital after each `-`: nginx's `X-Real-IP` would be `X-Real-Ip`, or whatever the client wrote.
//! So the parser reads our names, without values, in front of the client's fields ([`lines`]), and
//! [`strip`] takes them out of the parsed head again before anything looks at it. Invariant: what
//! stands in a stripped head came from the client; only the case map has more.

use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The fields that requests are forwarded with, as nginx, APISIX and the RFCs write them.
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

/// How many fields [`lines`] has.
pub(super) const FIELDS: usize = OWN_NAMES.len();

static LINES: LazyLock<Bytes> =
    LazyLock::new(|| OWN_NAMES.iter().map(|name| format!("{name}:\r\n")).collect::<String>().into());
static NAMES: LazyLock<Vec<HeaderName>> = LazyLock::new(|| {
    OWN_NAMES.iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect()
});

/// What the parser reads behind the request line.
pub(super) fn prefix_lines() -> Bytes {
    LINES.clone()
}

/// Takes the first value of each of our names out of a head that was parsed with [`lines`].
pub(super) fn strip(headers: &mut HeaderMap) {
    for name in &*NAMES {
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
    fn a_stripped_head_is_the_clients() {
        assert_eq!(NAMES.len(), FIELDS);
        let mut headers = HeaderMap::new();
        for name in &*NAMES {
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
