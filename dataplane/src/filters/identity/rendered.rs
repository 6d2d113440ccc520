//! The verified client as headers: RFC 9440, Envoy's `X-Forwarded-Client-Cert`, and
//! `X-SSL-Client-*` as nginx is usually configured.
//!
//! Each value is made once a connection; setting it clones a handle. Invariant: a value is
//! printable ASCII of at most [`VALUE_MAX`] bytes, or the header is left out and a line logged; it
//! is never truncated, since half a name is another name.

use std::cell::OnceCell;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName, HeaderValue};
use model::{ForwardedHeaders, Ssl};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use pki::{Certificate, UnixTime, VerifiedClient};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// Escaped are all characters but the unreserved ones of RFC 3986, as in nginx's
/// `$ssl_client_escaped_cert`.
const PEM_ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// OpenSSL's format of a time: `Nov 25 19:49:56 2026 GMT`.
const OPENSSL_DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[month repr:short] [day padding:space] [hour]:[minute]:[second] [year] GMT");

/// The longest value, in bytes: the default limit of upstreams is not much larger.
const VALUE_MAX: usize = 16 * 1024;

const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");
const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const VERIFY: HeaderName = HeaderName::from_static("x-ssl-client-verify");

/// The headers of one client, each made on first use.
#[derive(Debug, Default)]
pub(super) struct IdentityHeaders {
    client_cert: OnceCell<Option<HeaderValue>>,
    client_cert_chain: OnceCell<Option<HeaderValue>>,
    /// With neither, either or both of `Cert` and `Chain`.
    xfcc: [OnceCell<Option<HeaderValue>>; 4],
    x_ssl_client: OnceCell<Vec<(HeaderName, HeaderValue)>>,
}

impl IdentityHeaders {
    /// Sets the headers that a block forwards. A client's own under these names are removed
    /// already.
    pub(super) fn set(
        &self,
        headers: &mut HeaderMap,
        forward: ForwardedHeaders,
        verified: &VerifiedClient,
        site: Option<&Ssl>,
    ) {
        let mut set = |name: HeaderName, value: &Option<HeaderValue>| {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        };
        let leaf = verified.identity().certificate();
        if forward.client_cert {
            let value = || header_value(&CLIENT_CERT, &byte_sequence(leaf.der()));
            set(CLIENT_CERT, self.client_cert.get_or_init(value));
        }
        if forward.client_cert_chain {
            set(CLIENT_CERT_CHAIN, self.client_cert_chain.get_or_init(|| chain(verified.path())));
        }
        if forward.xfcc {
            let [neither, cert, chain, both] = &self.xfcc;
            let cached = match (forward.xfcc_cert, forward.xfcc_chain) {
                (false, false) => neither,
                (true, false) => cert,
                (false, true) => chain,
                (true, true) => both,
            };
            set(XFCC, cached.get_or_init(|| header_value(&XFCC, &xfcc(forward, verified, site))));
        }
        if forward.x_ssl_client {
            for (name, value) in self.x_ssl_client.get_or_init(|| x_ssl_client(leaf)) {
                headers.insert(name, value.clone());
            }
        }
    }
}

/// nginx's value for a client without a verified certificate.
pub(super) fn set_unverified(headers: &mut HeaderMap) {
    headers.insert(VERIFY, HeaderValue::from_static("NONE"));
}

/// A value that every upstream reads as we wrote it.
fn header_value(name: &HeaderName, value: &str) -> Option<HeaderValue> {
    let problem = if value.len() > VALUE_MAX {
        "it is longer than 16 KiB"
    } else if !value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        "it is not printable ASCII"
    } else {
        return HeaderValue::from_str(value).ok();
    };
    tracing::warn!(header = %name, bytes = value.len(), "an identity header is left out: {problem}");
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
    pairs.push(format!("Hash={}", HEXLOWER.encode(leaf.fingerprint_sha256())));
    if forward.xfcc_cert {
        pairs.push(format!("Cert=\"{}\"", escaped_pem(std::iter::once(leaf.to_pem()))));
    }
    if forward.xfcc_chain {
        let blocks = std::iter::once(leaf).chain(verified.path()).map(Certificate::to_pem);
        pairs.push(format!("Chain=\"{}\"", escaped_pem(blocks)));
    }
    pairs.push(format!("Subject=\"{}\"", escape_quoted(leaf.subject())));
    pairs.extend(identity.san_uris().iter().filter_map(|uri| xfcc_pair("URI", uri)));
    pairs.extend(identity.san_dns().iter().filter_map(|name| xfcc_pair("DNS", name)));
    pairs.join(";")
}

/// A key with its value, quoted where Envoy's rules require it. `"` and `\` are valid in neither a
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
    let is_quoted = value.contains([',', ';', '=', ' ']);
    Some(if is_quoted { format!("{key}=\"{value}\"") } else { format!("{key}={value}") })
}

/// A distinguished name (RFC 2253) without quotation marks and doubled backslashes: both have
/// another spelling (`\22`, `\5C`) that no parser of quoted text takes for its end.
fn escape_quoted(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut characters = name.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('"') => out.push_str("\\22"),
                Some('\\') | None => out.push_str("\\5C"),
                Some(' ') => out.push_str("\\20"),
                Some(other) => out.extend(['\\', other]),
            },
            '"' => out.push_str("\\22"),
            other => out.push(other),
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
        (HeaderName::from_static("x-ssl-client-fingerprint"), HEXLOWER.encode(&leaf.fingerprint_sha1())),
        (HeaderName::from_static("x-ssl-client-v-start"), openssl_date(leaf.not_before())),
        (HeaderName::from_static("x-ssl-client-v-end"), openssl_date(leaf.not_after())),
        (HeaderName::from_static("x-ssl-client-cert"), escaped_pem(std::iter::once(leaf.to_pem()))),
    ];
    let valid = |(name, value): (HeaderName, String)| header_value(&name, &value).map(|value| (name, value));
    values.into_iter().filter_map(valid).collect()
}

/// A time in OpenSSL's format.
pub(in crate::filters) fn openssl_date(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(OPENSSL_DATE).ok())
        .unwrap_or_default()
}

/// PEM blocks, one after another, escaped for a header.
pub(in crate::filters) fn escaped_pem(blocks: impl Iterator<Item = String>) -> String {
    blocks.fold(String::new(), |mut text, block| {
        text.extend(utf8_percent_encode(&block, PEM_ESCAPED));
        text
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    proptest! {
        /// An escaped name has no quotation mark, no doubled backslash, and none at the end.
        #[test]
        fn escaped_names_have_nothing_that_parsers_disagree_on(
            pieces in vec(select(vec!["a", "=", "\\\"", "\\\\", "\\,", "\\;", "\\ ", "\\0A", "URI="]), 0..12)
        ) {
            let text = escape_quoted(&pieces.concat());
            prop_assert!(!text.contains('"') && !text.contains("\\\\") && !text.ends_with('\\'), "{}", text);
        }
    }

    #[test]
    fn no_text_of_a_name_ends_its_quotes() {
        assert_eq!(escape_quoted("CN=a,O=b"), "CN=a,O=b");
        // The subject `a";URI=spiffe://evil` in RFC 2253, and one that ends in a backslash.
        assert_eq!(escape_quoted("CN=a\\\"\\;URI=spiffe://evil"), "CN=a\\22\\;URI=spiffe://evil");
        assert_eq!(escape_quoted("CN=a\\\\"), "CN=a\\5C");
        assert_eq!(escape_quoted("CN=a\\ "), "CN=a\\20");
    }

    #[test]
    fn xfcc_values_are_quoted_or_left_out() {
        assert_eq!(xfcc_pair("URI", "spiffe://a/b").as_deref(), Some("URI=spiffe://a/b"));
        assert_eq!(xfcc_pair("URI", "http://a/?x=1;y,z").as_deref(), Some("URI=\"http://a/?x=1;y,z\""));
        for bad in ["a\"b", "a\\b", "a\r\nb", "é"] {
            assert_eq!(xfcc_pair("URI", bad), None, "{bad}");
        }
    }

    #[test]
    fn long_and_unprintable_values_are_left_out() {
        let name = CLIENT_CERT;
        assert!(header_value(&name, &"a".repeat(VALUE_MAX)).is_some());
        for bad in ["a".repeat(VALUE_MAX + 1), "a\nb".to_owned(), "é".to_owned(), "\u{7f}".to_owned()] {
            assert!(header_value(&name, &bad).is_none());
        }
    }

    #[test]
    fn dates_have_openssls_format() {
        let at = |seconds| openssl_date(UnixTime::since_unix_epoch(Duration::from_secs(seconds)));
        assert_eq!(at(0), "Jan  1 00:00:00 1970 GMT");
        assert_eq!(at(1_795_636_196), "Nov 25 19:49:56 2026 GMT");
        assert_eq!(at(253_402_300_799), "Dec 31 23:59:59 9999 GMT");
    }
}
