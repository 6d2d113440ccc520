//! The ssl that an SNI or Host selects, by which entry, and what it serves.

use data_encoding::HEXLOWER;
use model::{Blocked, HostName, Resource, SiteLookup, Snapshot, Ssl, TlsVersion};
use pki::{Certificate, ClientAuth, format_utc};
use serde_json::{Value, json};

use super::put;
use crate::current_snapshot::ListenerSettings;

/// The site of a name.
pub(super) fn match_json(snapshot: &Snapshot, name: &HostName) -> Value {
    let (matched, entry) = match snapshot.lookup_site(name) {
        SiteLookup::Exact(_) => ("exact", Some(name.to_string())),
        SiteLookup::Wildcard { star, .. } => ("wildcard", Some(wildcard_entry(name, star))),
        SiteLookup::Any(_) => ("any", Some("*".to_owned())),
        SiteLookup::TooManyLabels { .. } | SiteLookup::NotFound => ("none", None),
    };
    let ssl = snapshot.site(name).map(|ssl| ssl.id.as_str());
    json!({"ssl": ssl, "matched": matched, "entry": entry, "message": match_message(snapshot, name)})
}

/// The site of a name with its certificates, versions and policy.
pub(super) fn site_json(snapshot: &Snapshot, name: &HostName, listeners: &ListenerSettings) -> Value {
    let mut json = match_json(snapshot, name);
    if let Some(ssl) = snapshot.site(name) {
        let versions = ssl.versions.as_ref().unwrap_or(&listeners.versions);
        let leaves = ssl.pairs.iter().filter_map(model::KeyPair::leaf);
        if let Some(blocked) = &ssl.blocked {
            put(&mut json, "blocked", blocked.reason());
            return json;
        }
        put(&mut json, "certificates", leaves.map(certificate_json).collect::<Value>());
        put(&mut json, "ssl_protocols", versions.iter().copied().map(TlsVersion::as_str).collect::<Value>());
        put(
            &mut json,
            "client",
            ssl.client.as_deref().map_or_else(|| json!({"requested": false}), policy_json),
        );
    }
    json
}

/// Why the look-up selects this ssl, or none.
pub(super) fn match_message(snapshot: &Snapshot, name: &HostName) -> String {
    match snapshot.lookup_site(name) {
        SiteLookup::Exact(ssl) => format!("{name} is an entry of ssl {}", ssl.id),
        SiteLookup::Wildcard { ssl, star } => {
            format!(
                "no entry is {name}; the longest wildcard that covers it is {} of ssl {}",
                wildcard_entry(name, star),
                ssl.id
            )
        }
        SiteLookup::Any(ssl) => {
            format!("no entry is {name} and no wildcard ends it; ssl {} takes the rest with *", ssl.id)
        }
        SiteLookup::TooManyLabels { ssl, star } => format!(
            "the longest wildcard that ends {name} is {} of ssl {}, but a wildcard covers one label and \"{}\" is more",
            wildcard_entry(name, star),
            ssl.id,
            name.as_str().get(..star).unwrap_or_default()
        ),
        SiteLookup::NotFound => match inactive_ssl(snapshot, name) {
            Some(ssl) if ssl.client_side => {
                format!(
                    "the only entry that covers {name} is of ssl {}, whose type is client: it serves no connection",
                    ssl.id
                )
            }
            Some(ssl) => format!(
                "the only entry that covers {name} is of ssl {}, which is switched off (status: 0)",
                ssl.id
            ),
            None => format!("no ssl object has an entry that covers {name}"),
        },
    }
}

/// Why a blocked site accepts no connection.
pub(super) fn blocked_message(ssl: &Ssl, blocked: &Blocked) -> String {
    format!("ssl {} is blocked: another program stored what cannot be honoured: {}", ssl.id, blocked.reason())
}

/// An ssl with a matching name that serves no connection.
fn inactive_ssl<'a>(snapshot: &'a Snapshot, name: &HostName) -> Option<&'a Ssl> {
    snapshot.resources().find_map(|held| match &held.resource {
        Resource::Ssl(ssl) if ssl.names.iter().any(|entry| entry.matches(name)) => Some(&**ssl),
        _ => None,
    })
}

fn wildcard_entry(name: &HostName, star: usize) -> String {
    format!("*{}", name.as_str().get(star..).unwrap_or_default())
}

/// The client policy of a site.
fn policy_json(policy: &ClientAuth) -> Value {
    let crls = policy.crls().iter().map(|crl| {
        json!({"issuer": crl.issuer(), "this_update": format_utc(crl.this_update()), "next_update": format_utc(crl.next_update()),
            "revoked": crl.entries()})
    });
    json!({
        "requested": true,
        "required": policy.requires_client_cert(),
        "ca": policy.anchors().certificates().iter().map(Certificate::subject).collect::<Vec<_>>(),
        "depth": policy.depth(),
        "crl": crls.collect::<Vec<_>>(),
        "crl_policy": if policy.crl_prefer() { "prefer" } else { "require" },
        "skip_mtls_uri_regex": policy.skip_patterns(),
    })
}

/// The fields by which an operator finds a certificate's file.
pub(super) fn certificate_json(certificate: &Certificate) -> Value {
    json!({
        "subject": certificate.subject(),
        "issuer": certificate.issuer(),
        "serial": certificate.serial_hex(),
        "fingerprint": HEXLOWER.encode(certificate.fingerprint_sha256()),
        "not_before": format_utc(certificate.not_before()),
        "not_after": format_utc(certificate.not_after()),
    })
}
