//! Matches the names of a server's certificate (RFC 9525).
//!
//! Only the subject alternative name counts, never the common name. A wildcard is the whole
//! leftmost label and matches exactly one label. Invariant: a DNS name never matches an IP entry,
//! nor an address a DNS entry.

use rustls_pki_types::{IpAddr, ServerName};

use super::error::{self, VerifyError};
use super::name_constraints::DisplayGeneralName;
use super::types::CertificateRef;
use crate::cert::general_name::{self, GeneralName};

/// Most names in an error message.
const QUOTED_MAX: usize = 8;

pub(super) fn verify_server_name(
    leaf: CertificateRef<'_>,
    expected: &ServerName<'_>,
) -> Result<(), VerifyError> {
    let fits = |name: GeneralName<'_>| match (expected, name) {
        (ServerName::DnsName(expected), GeneralName::Dns(name)) => {
            matches_dns_name(name, expected.as_ref().as_bytes())
        }
        (ServerName::IpAddress(IpAddr::V4(expected)), GeneralName::Ip(name)) => name == expected.as_ref(),
        (ServerName::IpAddress(IpAddr::V6(expected)), GeneralName::Ip(name)) => name == expected.as_ref(),
        _ => false,
    };
    if subject_alt_names(leaf).any(fits) {
        return Ok(());
    }
    let quoted: Vec<String> =
        subject_alt_names(leaf).take(QUOTED_MAX).map(|name| DisplayGeneralName(&name).to_string()).collect();
    let found = if quoted.is_empty() {
        "none (it has no subject alternative name)".to_owned()
    } else {
        quoted.join(", ")
    };
    Err(VerifyError::NotValidForName {
        subject: error::subject(leaf),
        expected: expected.to_str().into_owned(),
        found,
    })
}

/// The readable subject alternative names of the leaf.
fn subject_alt_names(leaf: CertificateRef<'_>) -> impl Iterator<Item = GeneralName<'_>> {
    let extension = leaf.fields.subject_alt_name.map(|span| span.slice(leaf.der));
    extension.into_iter().flat_map(general_name::parse_list).map_while(Result::ok)
}

/// Whether an entry of the certificate matches a host. One trailing dot of the host is ignored.
fn matches_dns_name(entry: &[u8], host: &[u8]) -> bool {
    let host = host.strip_suffix(b".").unwrap_or(host);
    match entry.strip_prefix(b"*.") {
        Some(parent) => {
            // The wildcard needs two labels behind it: no certificate may cover all of `.com`.
            let rest = host.iter().position(|byte| *byte == b'.').and_then(|dot| host.get(dot + 1..));
            parent.contains(&b'.') && rest.is_some_and(|rest| rest.eq_ignore_ascii_case(parent))
        }
        None => !entry.is_empty() && entry.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use super::matches_dns_name;

    #[test]
    fn a_wildcard_matches_one_label() {
        for (entry, host, expected) in [
            ("a.example.com", "A.example.COM", true),
            ("a.example.com", "a.example.com.", true),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "a.b.example.com", false),
            ("*.com", "example.com", false),
            ("*", "localhost", false),
            ("a*.example.com", "ab.example.com", false),
            ("*.example.com", "*.example.com", true),
            ("", "", false),
        ] {
            assert_eq!(matches_dns_name(entry.as_bytes(), host.as_bytes()), expected, "{entry} {host}");
        }
    }
}
