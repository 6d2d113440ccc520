//! One line for each refusal, with the same fields everywhere. What the peer sent is shown escaped.

use std::net::SocketAddr;

use model::{Id, Name, admission::Client};

use crate::{connection::Arrival, outcome::Reason, tls::refusal::Refused, upstream::exchange::ExchangeError};

/// A handshake that was refused.
pub fn handshake_refused(arrival: &Arrival, refused: &Refused) {
    let sni = refused.sni.as_ref().map(Name::as_str);
    let reason = refused.reason().label();
    let Some(shown) = &refused.certificate else {
        tracing::info!(reason, peer = %arrival.peer, sni, detail = %refused.detail, "handshake refused");
        return;
    };
    let rule = shown.error.reason().as_str();
    match pki::Certificate::from_der(&shown.leaf) {
        Ok(leaf) => tracing::info!(
            reason, rule, peer = %arrival.peer, sni, detail = %refused.detail,
            subject = leaf.subject(), issuer = leaf.issuer(), serial = leaf.serial_hex(),
            fingerprint = hex(leaf.fingerprint_sha256()), "handshake refused"
        ),
        Err(error) => tracing::info!(
            reason, rule, peer = %arrival.peer, sni, detail = %refused.detail, certificate = %error,
            "handshake refused"
        ),
    }
}

/// A request that cannot be understood.
pub fn request_refused(peer: SocketAddr, reason: Reason, error: &dyn std::error::Error) {
    tracing::info!(reason = reason.label(), %peer, detail = %error, "request refused");
}

/// A request its client may not make.
pub fn client_refused(peer: SocketAddr, reason: Reason, sni: &Name, host: Option<&Name>) {
    let detail = match reason {
        Reason::Misdirected => "client certificate verified with another SNI than the host's",
        Reason::NoCertificate => "client certificate was not present",
        _ => "client certificate verification is not passed: FAILED",
    };
    tracing::info!(reason = reason.label(), %peer, %sni, host = host.map(Name::as_str), detail, "request refused");
}

/// A live connection that is ended because its client is no longer let in.
pub fn connection_ended(peer: SocketAddr, reason: Reason, sni: &Name, client: &Client) {
    let rule = match client {
        Client::Refused(rule) => Some(rule.as_str()),
        Client::NotAsked | Client::Absent | Client::Verified(_) => None,
    };
    tracing::info!(reason = reason.label(), rule, %peer, %sni, "connection ended: the site's policy has moved");
}

/// A request no upstream answered.
pub fn exchange_failed(peer: SocketAddr, reason: Reason, route: &Id, error: &ExchangeError) {
    tracing::warn!(reason = reason.label(), %peer, %route, detail = %error, "no answer from the upstream");
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _writing_to_a_string = write!(text, "{byte:02x}");
        text
    })
}
