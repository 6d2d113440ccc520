//! `apisix.ssl`: TLS listeners, versions, cipher suites, and trusted CAs (contract 1.3).

use std::path::PathBuf;

use model::TlsVersion;

use super::Reader;
use crate::ciphers::{self, Ciphers, ParsedCiphers};
use crate::settings::SslSettings;
use crate::tree::YamlNode;
use crate::value::{self, ValueError};

/// The paths of the system's CA bundle for `system` (contract 1.3), in this order.
const SYSTEM_BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl Reader<'_> {
    pub(super) fn ssl(&mut self, enable_ipv6: bool) -> SslSettings {
        let enable = self.flag("apisix.ssl.enable");
        let listen = self.required("apisix.ssl.listen", |node| {
            value::list(node, |entry| value::listener(entry, 9443, enable_ipv6))
        });
        if enable && listen.is_empty() {
            self.problem(
                "apisix.ssl.listen",
                "at least one entry is needed, or set apisix.ssl.enable: false".into(),
            );
        }
        let protocols = self.required("apisix.ssl.ssl_protocols", value::protocols);
        if protocols.contains(&TlsVersion::V11) {
            let text = "TLSv1.1 is old and weak, and needs a data plane built with the second TLS engine";
            self.warn("apisix.ssl.ssl_protocols", text);
        }
        SslSettings {
            enable,
            listen: listen.concat(),
            ciphers: self.ciphers(protocols.contains(&TlsVersion::V11)),
            protocols,
            session_tickets: self.flag("apisix.ssl.ssl_session_tickets"),
            fallback_sni: self
                .optional("apisix.ssl.fallback_sni", value::text)
                .filter(|name| !name.is_empty()),
            trusted_certificate: self.trusted_certificate(),
            upstream_verify_default: self.flag("apisix.ssl.upstream_verify_default"),
        }
    }

    fn ciphers(&mut self, old: bool) -> Option<Ciphers> {
        let field = "apisix.ssl.ssl_ciphers";
        let read = |node: &YamlNode| {
            ciphers::parse(&value::text(node)?, old)
                .map_err(|problem| ValueError::new(&problem).on_line(node.line))
        };
        let ParsedCiphers { ciphers, unsupported: left_out } = self.optional(field, read)?;
        let text = self.merged.get_path(field).and_then(|node| value::text(node).ok()).unwrap_or_default();
        let word = |word: &str| word.trim_start_matches(['!', '-', '+']).starts_with("TLS_");
        if text.split([':', ' ', ',', ';']).any(word) {
            self.warn(
                field,
                "the suites of TLS 1.3 (TLS_...) are not governed by it, as in nginx: all of them are served",
            );
        }
        if !left_out.is_empty() {
            self.warn(field, &format!("{} cannot be served, left out", left_out.join(", ")));
        }
        Some(ciphers)
    }

    fn trusted_certificate(&mut self) -> Option<PathBuf> {
        let field = "apisix.ssl.ssl_trusted_certificate";
        let text = self.optional(field, value::text)?;
        if text == "system" {
            return SYSTEM_BUNDLES.iter().map(PathBuf::from).find(|path| path.exists());
        }
        let path = self.working.join(text);
        if !path.exists() {
            let message = format!(
                "certificate path {} doesn't exist; relative paths of this key start at the working directory",
                path.display()
            );
            self.problem(field, message);
        }
        Some(path)
    }
}
