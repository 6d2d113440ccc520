//! Compiles the ssl document (contract 3.1, 4.1): certificates for names, or a client certificate
//! for upstreams.

use std::sync::Arc;

use pki::Keyring;
use serde_json::Value;

use super::client;
use super::fields::{enabled, key_pair, names, string, strings};
use crate::id::Id;
use crate::problem::{Problem, ProblemKind};
use crate::resource::{KeyPair, Ssl, TlsVersion};

/// Checks follow the order of contract 4.1.
pub(super) fn compile(id: &Id, document: &Value, keyring: &Keyring) -> Result<Ssl, Problem> {
    let (cert, key) = (string(document, "cert"), string(document, "key"));
    let first = key_pair(cert.unwrap_or_default(), key.unwrap_or_default(), ["cert", "key"], keyring)?;
    let mut ssl = Ssl {
        client_side: string(document, "type") == Some("client"),
        pairs: vec![first],
        enabled: enabled(document),
        ..Ssl::new(id.clone())
    };
    if ssl.client_side {
        // A client certificate has no names, further pairs, client policy or versions.
        return Ok(ssl);
    }
    more_pairs(document, keyring, &mut ssl.pairs)?;
    if let Some(client) = document.get("client") {
        ssl.client = Some(Arc::new(client::compile(client)?));
    }
    ssl.versions = versions(document)?;
    ssl.names = names(document, "sni", "snis")?;
    Ok(ssl)
}

fn more_pairs(document: &Value, keyring: &Keyring, pairs: &mut Vec<KeyPair>) -> Result<(), Problem> {
    let (certs, keys) = (strings(document, "certs"), strings(document, "keys"));
    if certs.len() != keys.len() {
        let hint = format!("{} certs, {} keys", certs.len(), keys.len());
        return Err(Problem::new("certs", "mismatched number of certs and keys").with_hint(hint));
    }
    for (index, (cert, key)) in (1..).zip(certs.into_iter().zip(keys)) {
        let fields = [format!("certs[{index}]"), format!("keys[{index}]")];
        let pair = key_pair(cert, key, [&fields[0], &fields[1]], keyring).map_err(|problem| {
            let message = format!("failed to handle cert-key pair[{index}]: {}", problem.message);
            Problem { message, ..problem }
        })?;
        pairs.push(pair);
    }
    Ok(())
}

fn versions(document: &Value) -> Result<Option<Vec<TlsVersion>>, Problem> {
    if document.get("ssl_protocols").is_none() {
        return Ok(None);
    }
    let mut versions = Vec::new();
    for name in strings(document, "ssl_protocols") {
        // The schema allows no other.
        let version = match name {
            "TLSv1.2" => TlsVersion::V12,
            "TLSv1.3" => TlsVersion::V13,
            _ => TlsVersion::V11,
        };
        versions.push(require_supported_version(version)?);
    }
    if versions.is_empty() {
        let problem = invalid_protocols("is empty: no client could connect");
        return Err(problem.with_hint("name a version, or remove it"));
    }
    versions.sort();
    Ok(Some(versions))
}

/// Rejects a TLS version that this build lacks an engine for, in documents and on the wire.
pub(crate) fn require_supported_version(version: TlsVersion) -> Result<TlsVersion, Problem> {
    if version.is_served() {
        return Ok(version);
    }
    let problem = invalid_protocols(&format!("has {}, which this build does not serve", version.as_str()));
    Err(problem
        .with_hint("both planes must be built with the cargo feature `engine-boring`")
        .with_kind(ProblemKind::Unsupported))
}

fn invalid_protocols(why: &str) -> Problem {
    Problem::new("ssl_protocols", format!("invalid configuration: ssl_protocols {why}"))
}
