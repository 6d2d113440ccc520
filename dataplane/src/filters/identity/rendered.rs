//! The verified client as headers: RFC 9440, Envoy's `X-Forwarded-Client-Cert`, nginx's usual
//! `X-SSL-Client-*`.
//!
//! Each form is made once a connection and set by copying a handle. Invariant: a value is printable
//! ASCII of at most [`VALUE_MAX`] bytes, or the header is left out with a line in the log: nothing
//! is cut, for half a name is another name.

use std::cell::OnceCell;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use model::{ForwardedHeaders, Ssl};
use pki::{Certificate, VerifiedClient};

use super::text;

/// Largest value of one header, in bytes: what upstreams take by default is not much more.
const VALUE_MAX: usize = 16 * 1024;

const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");
const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const VERIFY: HeaderName = HeaderName::from_static("x-ssl-client-verify");

/// The forms of one client, each made when first asked for.
#[derive(Debug, Default)]
pub(super) struct IdentityHeaders {
    client_cert: OnceCell<Option<HeaderValue>>,
    client_cert_chain: OnceCell<Option<HeaderValue>>,
    /// By whether `Cert` and `Chain` are in it.
    xfcc: [OnceCell<Option<HeaderValue>>; 4],
    x_ssl_client: OnceCell<Vec<(HeaderName, HeaderValue)>>,
}

impl IdentityHeaders {
    /// Sets the headers of these forms. What came from outside under these names is gone already.
    pub(super) fn set(
        &self,
        headers: &mut HeaderMap,
        forward: ForwardedHeaders,
        verified: &VerifiedClient,
        site: Option<&Ssl>,
    ) {
        let mut put = |name: HeaderName, value: &Option<HeaderValue>| {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        };
        let leaf = verified.identity().certificate();
        if forward.client_cert {
            let made = || header_value(&CLIENT_CERT, &byte_sequence(leaf.der()));
            put(CLIENT_CERT, self.client_cert.get_or_init(made));
        }
        if forward.client_cert_chain {
            put(CLIENT_CERT_CHAIN, self.client_cert_chain.get_or_init(|| chain(verified.path())));
        }
        if forward.xfcc {
            let [plain, cert, chain, both] = &self.xfcc;
            let slot = match (forward.xfcc_cert, forward.xfcc_chain) {
                (false, false) => plain,
                (true, false) => cert,
                (false, true) => chain,
                (true, true) => both,
            };
            put(XFCC, slot.get_or_init(|| header_value(&XFCC, &xfcc(forward, verified, site))));
        }
        if forward.x_ssl_client {
            for (name, value) in self.x_ssl_client.get_or_init(|| x_ssl_client(leaf)) {
                headers.insert(name, value.clone());
            }
        }
    }
}

/// nginx's form of "nobody".
pub(super) fn set_unverified(headers: &mut HeaderMap) {
    headers.insert(VERIFY, HeaderValue::from_static("NONE"));
}

/// A value no upstream can read differently than we wrote it.
fn header_value(name: &HeaderName, value: &str) -> Option<HeaderValue> {
    let why = if value.len() > VALUE_MAX {
        "it is longer than 16 KiB"
    } else if !value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        "it is not printable ASCII"
    } else {
        return HeaderValue::from_str(value).ok();
    };
    tracing::warn!(header = %name, bytes = value.len(), "an identity header is left out: {why}");
    None
}

/// A byte sequence of RFC 8941 section 3.3.5.
fn byte_sequence(der: &[u8]) -> String {
    format!(":{}:", STANDARD.encode(der))
}

fn chain(path: &[Certificate]) -> Option<HeaderValue> {
    if path.is_empty() {
        return None;
    }
    let items: Vec<String> = path.iter().map(|certificate| byte_sequence(certificate.der())).collect();
    header_value(&CLIENT_CERT_CHAIN, &items.join(", "))
}

/// One element, always ours alone (Envoy's SANITIZE_SET).
fn xfcc(forward: ForwardedHeaders, verified: &VerifiedClient, site: Option<&Ssl>) -> String {
    let identity = verified.identity();
    let leaf = identity.certificate();
    let mut pairs: Vec<String> = Vec::new();
    let own = site.and_then(|site| site.pairs.first()).and_then(|pair| pair.leaf());
    for uri in own.map(Certificate::uris).unwrap_or_default() {
        pairs.extend(xfcc_pair("By", uri));
    }
    pairs.push(format!("Hash={}", text::hex(leaf.fingerprint_sha256())));
    if forward.xfcc_cert {
        pairs.push(format!("Cert=\"{}\"", text::escaped_pem(std::iter::once(leaf.to_pem()))));
    }
    if forward.xfcc_chain {
        let blocks = std::iter::once(leaf).chain(verified.path()).map(Certificate::to_pem);
        pairs.push(format!("Chain=\"{}\"", text::escaped_pem(blocks)));
    }
    pairs.push(format!("Subject=\"{}\"", escape_quoted(leaf.subject())));
    pairs.extend(identity.san_uris().iter().filter_map(|uri| xfcc_pair("URI", uri)));
    pairs.extend(identity.san_dns().iter().filter_map(|name| xfcc_pair("DNS", name)));
    pairs.join(";")
}

/// A key with its value, quoted where Envoy's rules ask for it. `"` and `\` are legal in neither a
/// URI nor a DNS name, and parsers disagree about them: such a value is left out.
fn xfcc_pair(key: &'static str, value: &str) -> Option<String> {
    if value.contains(['"', '\\']) || !value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        tracing::warn!(
            key,
            value = value.escape_debug().to_string(),
            "left out of X-Forwarded-Client-Cert: no parser agrees on it"
        );
        return None;
    }
    let quoted = value.contains([',', ';', '=', ' ']);
    Some(if quoted { format!("{key}=\"{value}\"") } else { format!("{key}={value}") })
}

/// RFC 2253 text without quotation marks and doubled backslashes: both have another spelling
/// (`\22`, `\5C`) that no parser of quoted text can take for the end of it.
fn escape_quoted(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut characters = name.chars();
    while let Some(character) = characters.next() {
        match (character, character == '\\') {
            (_, true) => match characters.next() {
                Some('"') => out.push_str("\\22"),
                Some('\\') => out.push_str("\\5C"),
                Some(' ') => out.push_str("\\20"),
                Some(other) => out.extend(['\\', other]),
                None => out.push_str("\\5C"),
            },
            ('"', _) => out.push_str("\\22"),
            (other, _) => out.push(other),
        }
    }
    out
}

fn x_ssl_client(leaf: &Certificate) -> Vec<(HeaderName, HeaderValue)> {
    let values = [
        (VERIFY, "SUCCESS".to_owned()),
        (HeaderName::from_static("x-ssl-client-s-dn"), leaf.subject().to_owned()),
        (HeaderName::from_static("x-ssl-client-i-dn"), leaf.issuer().to_owned()),
        (HeaderName::from_static("x-ssl-client-serial"), leaf.serial_hex()),
        (HeaderName::from_static("x-ssl-client-fingerprint"), text::hex(&leaf.fingerprint_sha1())),
        (HeaderName::from_static("x-ssl-client-v-start"), text::date(leaf.not_before())),
        (HeaderName::from_static("x-ssl-client-v-end"), text::date(leaf.not_after())),
        (HeaderName::from_static("x-ssl-client-cert"), text::escaped_pem(std::iter::once(leaf.to_pem()))),
    ];
    values
        .into_iter()
        .filter_map(|(name, value)| header_value(&name, &value).map(|value| (name, value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    proptest! {
        /// Whatever RFC 2253 text a subject comes to: no quotation mark, no doubled backslash, none at the end.
        #[test]
        fn quoted_names_hold_nothing_that_parsers_disagree_about(
            pieces in vec(select(vec!["a", "=", "\\\"", "\\\\", "\\,", "\\;", "\\ ", "\\0A", "URI="]), 0..12)
        ) {
            let text = escape_quoted(&pieces.concat());
            prop_assert!(!text.contains('"') && !text.contains("\\\\") && !text.ends_with('\\'), "{}", text);
        }
    }

    #[test]
    fn no_text_of_a_name_ends_its_quotation() {
        assert_eq!(escape_quoted("CN=a,O=b"), "CN=a,O=b");
        // The subject `a";URI=spiffe://evil` in RFC 2253, and one that ends in a backslash.
        assert_eq!(escape_quoted("CN=a\\\"\\;URI=spiffe://evil"), "CN=a\\22\\;URI=spiffe://evil");
        assert_eq!(escape_quoted("CN=a\\\\"), "CN=a\\5C");
        assert_eq!(escape_quoted("CN=a\\ "), "CN=a\\20");
    }

    #[test]
    fn values_are_quoted_or_left_out() {
        assert_eq!(xfcc_pair("URI", "spiffe://a/b").as_deref(), Some("URI=spiffe://a/b"));
        assert_eq!(xfcc_pair("URI", "http://a/?x=1;y,z").as_deref(), Some("URI=\"http://a/?x=1;y,z\""));
        for bad in ["a\"b", "a\\b", "a\r\nb", "é"] {
            assert_eq!(xfcc_pair("URI", bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_too_long_or_not_printable_is_left_out_whole() {
        let name = CLIENT_CERT;
        assert!(header_value(&name, &"a".repeat(VALUE_MAX)).is_some());
        for bad in ["a".repeat(VALUE_MAX + 1), "a\nb".to_owned(), "é".to_owned(), "\u{7f}".to_owned()] {
            assert!(header_value(&name, &bad).is_none());
        }
    }
}
