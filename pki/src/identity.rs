//! The identity of a verified client or server.
//!
//! `chain` alone makes an [`Identity`], at the end of a successful verification; allow-lists,
//! forwarded headers and logs use it. It is cheap to clone. Invariant: an `Identity` exists only
//! for an accepted certificate; the unverified claim of a client is a [`Certificate`].

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cert::Certificate;
use crate::cert::general_name::{self, GeneralName};

/// A peer whose certificate was verified against a policy or trust anchors.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity(Arc<IdentityInner>);

#[derive(PartialEq, Eq)]
struct IdentityInner {
    certificate: Certificate,
    uris: Vec<String>,
    /// Number of URIs in the certificate, malformed ones included.
    uri_entries: usize,
    dns: Vec<String>,
    emails: Vec<String>,
    ips: Vec<IpAddr>,
}

impl Identity {
    /// Takes the names from a certificate that `chain` accepted.
    pub(crate) fn of(certificate: Certificate) -> Self {
        let (mut uris, mut dns, mut emails, mut ips) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut uri_entries = 0;
        for name in certificate.general_names() {
            match name {
                GeneralName::Uri(text) => {
                    uri_entries += 1;
                    uris.extend(ascii(text));
                }
                GeneralName::Dns(text) => dns.extend(ascii(text)),
                GeneralName::Email(text) => emails.extend(ascii(text)),
                GeneralName::Ip(bytes) => ips.extend(general_name::ip_address(bytes)),
                GeneralName::Directory(_) | GeneralName::Other(_) => {}
            }
        }
        Self(Arc::new(IdentityInner { certificate, uris, uri_entries, dns, emails, ips }))
    }

    /// The leaf certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.0.certificate
    }

    /// Subject, RFC 2253.
    pub fn subject(&self) -> &str {
        self.0.certificate.subject()
    }

    /// Issuer, RFC 2253.
    pub fn issuer(&self) -> &str {
        self.0.certificate.issuer()
    }

    /// Serial number, upper-case hexadecimal.
    pub fn serial_hex(&self) -> String {
        self.0.certificate.serial_hex()
    }

    /// SHA-256 over the certificate's DER.
    pub fn fingerprint_sha256(&self) -> &[u8; 32] {
        self.0.certificate.fingerprint_sha256()
    }

    /// URIs of the subject alternative name, as written: SPIFFE IDs are here.
    pub fn san_uris(&self) -> &[String] {
        &self.0.uris
    }

    /// DNS names of the subject alternative name, as written.
    pub fn san_dns(&self) -> &[String] {
        &self.0.dns
    }

    /// Email addresses of the subject alternative name, as written.
    pub fn san_emails(&self) -> &[String] {
        &self.0.emails
    }

    /// IP addresses of the subject alternative name.
    pub fn san_ips(&self) -> &[IpAddr] {
        &self.0.ips
    }

    /// The SPIFFE ID, when the certificate carries exactly one URI and that is a SPIFFE ID (SPIFFE
    /// X.509-SVID, section 2: a certificate with more than one URI is not an SVID).
    pub fn spiffe_id(&self) -> Option<&str> {
        match self.san_uris() {
            [only] if self.0.uri_entries == 1 && only.starts_with("spiffe://") => Some(only),
            _ => None,
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.subject()).finish()
    }
}

/// An IA5String of printable characters. Other bytes could make two names look alike in a log or
/// header, so such an entry is dropped.
fn ascii(text: &[u8]) -> Option<String> {
    let printable = !text.is_empty() && text.iter().all(|byte| (0x20..0x7f).contains(byte));
    if printable { std::str::from_utf8(text).ok().map(str::to_owned) } else { None }
}
