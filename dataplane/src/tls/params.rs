//! The negotiated parameters of a connection, under the names of nginx's variables.

use model::TlsVersion;
use rustls::NamedGroup;

use super::handshake::TlsHandshake;

/// What client and gateway negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NegotiatedParams {
    /// `TLSv1.3`
    pub protocol: &'static str,
    /// OpenSSL's name of the cipher suite.
    pub cipher: &'static str,
    /// OpenSSL's name of the group.
    pub curve: Option<&'static str>,
    /// `h2` or `http/1.1`; `None` without ALPN.
    pub alpn: Option<&'static str>,
    /// Whether the handshake resumed a session.
    pub resumed: bool,
}

impl NegotiatedParams {
    /// The parameters of a completed handshake.
    pub fn of(handshake: &TlsHandshake) -> Self {
        Self {
            protocol: handshake.version().map_or("", TlsVersion::as_str),
            cipher: handshake.cipher_suite().map_or("", openssl_cipher),
            curve: handshake.group().and_then(openssl_curve),
            alpn: match handshake.alpn() {
                Some(b"h2") => Some("h2"),
                Some(b"http/1.1") => Some("http/1.1"),
                _ => None,
            },
            resumed: handshake.is_resumed(),
        }
    }

    /// IANA's name of the cipher suite.
    pub(crate) fn iana_cipher(&self) -> &'static str {
        CIPHERS.iter().find(|(_, openssl)| *openssl == self.cipher).map_or(self.cipher, |(name, _)| name)
    }

    /// IANA's name of the group.
    pub(crate) fn iana_curve(&self) -> Option<&'static str> {
        self.curve.map(|curve| match curve {
            "X25519" => "x25519",
            "prime256v1" => "secp256r1",
            other => other,
        })
    }
}

/// IANA's and OpenSSL's names of the cipher suites before TLS 1.3; those of TLS 1.3 have one name.
const CIPHERS: [(&str, &str); 10] = [
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-CHACHA20-POLY1305"),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", "ECDHE-ECDSA-AES128-SHA"),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", "ECDHE-ECDSA-AES256-SHA"),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "ECDHE-RSA-AES128-SHA"),
    ("TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", "ECDHE-RSA-AES256-SHA"),
];

fn openssl_cipher(iana: &'static str) -> &'static str {
    CIPHERS.iter().find(|(name, _)| *name == iana).map_or(iana, |(_, openssl)| openssl)
}

/// OpenSSL's name of a group.
fn openssl_curve(group: NamedGroup) -> Option<&'static str> {
    Some(match group {
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "prime256v1",
        NamedGroup::secp384r1 => "secp384r1",
        NamedGroup::secp521r1 => "secp521r1",
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        other => return other.as_str(),
    })
}
