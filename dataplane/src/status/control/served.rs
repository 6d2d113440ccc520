//! What this node serves: the certificates of sites and upstreams, and the keys of session tickets.

use std::time::SystemTime;

use model::{Kind, Resource, Snapshot, Ssl, Upstream, UpstreamIdentity};
use pki::{Certificate, UnixTime, format_utc};
use serde_json::{Value, json};
use telemetry::status::PageReply;

use super::json_reply;
use super::paging::PageQuery;
use crate::lifecycle::handles::TicketRingHandle;

/// `/v1/certificates`: those of sites, of client certificates for upstreams, and of upstreams.
pub(super) fn certificates(snapshot: &Snapshot, page: &PageQuery) -> PageReply {
    let resources = || {
        let kinds = [Kind::Ssl, Kind::Upstream, Kind::Service, Kind::Route, Kind::StreamRoute];
        kinds
            .into_iter()
            .flat_map(|kind| snapshot.resources_of_kind(kind))
            .filter(|one| has_certificates(one))
    };
    page.reply(resources().count(), resources().filter_map(shown))
}

fn has_certificates(resource: &Resource) -> bool {
    let of_upstream = |upstream: &std::sync::Arc<Upstream>| {
        upstream.tls.anchors.is_some() || matches!(upstream.tls.identity, Some(UpstreamIdentity::Inline(_)))
    };
    matches!(resource, Resource::Ssl(_)) || resource.own_upstream().is_some_and(of_upstream)
}

fn shown(resource: &Resource) -> Option<Value> {
    let mut entry = match resource {
        Resource::Ssl(ssl) => of_ssl(ssl),
        other => of_upstream(other.own_upstream()?),
    };
    let members = entry.as_object_mut()?;
    members.insert("key".to_owned(), format!("/{}/{}", resource.kind().plural(), resource.id()).into());
    if let Some(blocked) = resource.blocked() {
        members.insert("blocked".to_owned(), blocked.reason().into());
    }
    Some(entry)
}

fn of_ssl(ssl: &Ssl) -> Value {
    let snis: Vec<String> = ssl.names.iter().map(ToString::to_string).collect();
    let own: Vec<Value> = ssl.pairs.iter().filter_map(|pair| pair.leaf()).map(certificate).collect();
    let client = ssl.client.as_deref().map(|client| {
        let crls: Vec<Value> = client
            .crls()
            .iter()
            .map(|crl| json!({"issuer": crl.issuer(), "next_update": time(crl.next_update()), "entries": crl.entries()}))
            .collect();
        json!({
            "depth": client.depth(),
            "ca": all(client.anchors().certificates()),
            "crls": crls,
        })
    });
    json!({
        "type": if ssl.client_side { "client" } else { "server" },
        "snis": snis,
        "enabled": ssl.enabled,
        "certificates": own,
        "client": client,
    })
}

fn of_upstream(upstream: &Upstream) -> Value {
    let own = match &upstream.tls.identity {
        Some(UpstreamIdentity::Inline(pair)) => pair.leaf().map(certificate),
        _ => None,
    };
    let ca = upstream.tls.anchors.as_deref().map(|anchors| all(anchors.certificates()));
    json!({"type": "upstream", "certificates": own.into_iter().collect::<Vec<_>>(), "ca": ca})
}

fn all(certificates: &[Certificate]) -> Vec<Value> {
    certificates.iter().map(certificate).collect()
}

fn certificate(certificate: &Certificate) -> Value {
    json!({
        "fingerprint_sha256": data_encoding::HEXLOWER.encode(certificate.fingerprint_sha256()),
        "subject": certificate.subject(),
        "issuer": certificate.issuer(),
        "serial": certificate.serial_hex(),
        "not_before": time(certificate.not_before()),
        "not_after": time(certificate.not_after()),
        "not_after_timestamp": certificate.not_after().as_secs(),
    })
}

fn time(time: UnixTime) -> String {
    format_utc(time)
}

/// `/v1/tickets`: the age of each secret of the ring. The newest active one seals tickets.
pub(super) fn tickets(ring: Option<&TicketRingHandle>) -> PageReply {
    let Some(ring) = ring.map(TicketRingHandle::load) else {
        return json_reply(&json!({"enabled": false, "secrets": []}));
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let newest = ring.secrets.iter().map(|secret| secret.active_from()).filter(|from| *from <= now).max();
    let secrets: Vec<Value> = ring
        .secrets
        .iter()
        .map(|secret| {
            let from = secret.active_from();
            json!({
                "active_from": time(UnixTime::since_unix_epoch(std::time::Duration::from_secs(from))),
                "age_seconds": now.checked_sub(from),
                "seals": Some(from) == newest,
            })
        })
        .collect();
    json_reply(&json!({"enabled": true, "lifetime_seconds": ring.lifetime, "secrets": secrets}))
}
