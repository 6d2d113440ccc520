//! One line for each refusal, with the same fields everywhere. What the peer sent is shown escaped
//! and clipped, and at most a few lines a second are written about each reason: nobody can forge a
//! line or fill the disk.

use std::borrow::Cow;
use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Instant;

use model::{HostName, Id};
use pki::{CertificateDer, VerifyReason};

use super::log_limiter::LogLimiter;
use crate::filters::identity::text::hex;
use crate::filters::rewrite::RewriteError;
use crate::http::head::HeadError;
use crate::proxy::connection::ConnectionInfo;
use crate::reason::Reason;
use crate::tcp::TcpFailure;
use crate::tls::failure::HandshakeFailure;
use crate::upstream::exchange::ExchangeError;

/// The longest text of a peer's that is shown, in bytes: a certificate may carry names of 16 KiB.
const VALUE_MAX: usize = 256;
/// The longest explanation that is shown, in bytes: it may quote two such names.
const DETAIL_MAX: usize = 1024;

thread_local! {
    static LIMITER: LogLimiter = LogLimiter::default();
}

/// A client that may not make its request, or not go on, for the log.
#[derive(Debug)]
pub(crate) struct ClientDenial<'a> {
    /// Why.
    pub reason: Reason,
    /// The name of the handshake.
    pub sni: &'a HostName,
    /// The name of the request, if it is about one.
    pub host: Option<&'a HostName>,
    /// Which rule the client's certificate breaks, if it is about that.
    pub verify_reason: Option<VerifyReason>,
    /// What the client showed in the handshake.
    pub leaf: Option<&'a CertificateDer<'static>>,
}

/// A handshake that was refused.
pub(crate) fn handshake_rejected(arrival: &ConnectionInfo, refused: &HandshakeFailure) {
    if !is_allowed(refused.reason()) {
        return;
    }
    let shown = CertificateFields::of(refused.rejected_certificate.as_ref().map(|shown| &shown.leaf));
    tracing::info!(
        reason = refused.reason().label(),
        rule = refused.verify_reason().map(VerifyReason::as_str),
        peer = %arrival.peer,
        sni = refused.sni.as_ref().map(HostName::as_str),
        detail = truncated(&refused.detail, DETAIL_MAX).as_ref(),
        subject = shown.subject.as_deref(),
        issuer = shown.issuer.as_deref(),
        serial = shown.serial.as_deref(),
        fingerprint = shown.fingerprint.as_deref(),
        certificate = shown.error.as_deref(),
        "handshake refused"
    );
}

/// A request that cannot be understood.
pub(crate) fn request_rejected(peer: impl Display, reason: Reason, error: &dyn std::error::Error) {
    if is_allowed(reason) {
        tracing::info!(reason = reason.label(), %peer, detail = error_text(error).as_ref(), "request refused");
    }
}

/// A client that was too slow with a head, or took nothing of what was sent to it.
pub(crate) fn client_timed_out(peer: SocketAddr, reason: Reason) {
    if is_allowed(reason) {
        let detail = match reason {
            Reason::HeadTimeout => "the client sent no whole head within client_header_timeout",
            _ => "the client took nothing of an answer for send_timeout",
        };
        tracing::info!(reason = reason.label(), %peer, detail, "client too slow");
    }
}

/// A request its client may not make.
pub(crate) fn request_denied(peer: impl Display, denied: &ClientDenial<'_>) {
    if !is_allowed(denied.reason) {
        return;
    }
    let detail = match denied.reason {
        Reason::Misdirected => "client certificate verified with another SNI than the host's",
        Reason::NoCertificate => "client certificate was not present",
        Reason::BlockedSite => "the site is blocked: another program stored what cannot be honoured",
        _ => "client certificate verification is not passed: FAILED",
    };
    let shown = CertificateFields::of(denied.leaf);
    tracing::info!(
        reason = denied.reason.label(),
        rule = denied.verify_reason.map(VerifyReason::as_str),
        %peer,
        sni = denied.sni.as_str(),
        host = denied.host.map(HostName::as_str),
        detail,
        subject = shown.subject.as_deref(),
        issuer = shown.issuer.as_deref(),
        serial = shown.serial.as_deref(),
        fingerprint = shown.fingerprint.as_deref(),
        certificate = shown.error.as_deref(),
        "request refused"
    );
}

/// A request that leads nowhere.
pub(crate) fn no_destination(peer: impl Display, reason: Reason, host: Option<&HostName>, path: &str) {
    if is_allowed(reason) {
        let (host, path) = (host.map(HostName::as_str), truncated(path, VALUE_MAX));
        tracing::info!(reason = reason.label(), %peer, host, path = path.as_ref(), "request refused");
    }
}

/// A request whose client the route does not name.
pub(crate) fn client_not_allowed(
    peer: impl Display,
    route: &Id,
    leaf: Option<&CertificateDer<'static>>,
    names: &[String],
) {
    let reason = Reason::NotAllowed;
    if !is_allowed(reason) {
        return;
    }
    let detail = match leaf {
        Some(_) => "the route does not name this client",
        None => "the route names its clients, and there is no verified one",
    };
    let (shown, names) = (CertificateFields::of(leaf), names.join(", "));
    tracing::info!(
        reason = reason.label(),
        %peer,
        %route,
        detail,
        subject = shown.subject.as_deref(),
        issuer = shown.issuer.as_deref(),
        serial = shown.serial.as_deref(),
        fingerprint = shown.fingerprint.as_deref(),
        names = truncated(&names, DETAIL_MAX).as_ref(),
        "request refused"
    );
}

/// A request that cannot be rewritten as its route says.
pub(crate) fn rewrite_failed(peer: impl Display, route: &Id, error: &RewriteError) {
    if is_allowed(Reason::BadRequest) {
        let detail = error_text(error);
        tracing::info!(reason = Reason::BadRequest.label(), %peer, %route, detail = detail.as_ref(), "request refused");
    }
}

/// An upstream's answer whose head is over the limits.
pub(crate) fn response_rejected(peer: impl Display, route: &Id, error: &HeadError) {
    if is_allowed(Reason::UpstreamInvalid) {
        let detail = error_text(error);
        tracing::info!(
            reason = Reason::UpstreamInvalid.label(), %peer, %route, detail = detail.as_ref(), "answer refused"
        );
    }
}

/// A live connection that is ended because its client is no longer let in.
pub(crate) fn connection_terminated(peer: SocketAddr, denied: &ClientDenial<'_>) {
    if !is_allowed(denied.reason) {
        return;
    }
    let shown = CertificateFields::of(denied.leaf);
    tracing::info!(
        reason = denied.reason.label(),
        rule = denied.verify_reason.map(VerifyReason::as_str),
        %peer,
        sni = denied.sni.as_str(),
        subject = shown.subject.as_deref(),
        issuer = shown.issuer.as_deref(),
        serial = shown.serial.as_deref(),
        fingerprint = shown.fingerprint.as_deref(),
        certificate = shown.error.as_deref(),
        "connection ended: the site's policy has moved"
    );
}

/// A request no upstream answered.
pub(crate) fn upstream_failed(peer: impl Display, reason: Reason, route: &Id, error: &ExchangeError) {
    if is_allowed(reason) {
        let detail = error_text(error);
        tracing::warn!(reason = reason.label(), %peer, %route, detail = detail.as_ref(), "no answer from the upstream");
    }
}

/// Says how many lines were left out since it was last called. Each worker calls it about once a
/// second.
pub(crate) fn log_suppressed() {
    for (reason, lines) in LIMITER.with(LogLimiter::take_suppressed) {
        tracing::warn!(
            reason = reason.label(),
            lines,
            "lines about refusals were left out; the counters have them all"
        );
    }
}

fn is_allowed(reason: Reason) -> bool {
    LIMITER.with(|lines| lines.allow(reason, Instant::now()))
}

/// What a client showed, as the log tells it.
#[derive(Default)]
struct CertificateFields {
    subject: Option<String>,
    issuer: Option<String>,
    serial: Option<String>,
    fingerprint: Option<String>,
    /// Why none of these can be told.
    error: Option<String>,
}

impl CertificateFields {
    fn of(leaf: Option<&CertificateDer<'_>>) -> Self {
        let Some(der) = leaf else { return Self::default() };
        let clip = |text: &str| Some(truncated(text, VALUE_MAX).into_owned());
        match pki::Certificate::from_der(der) {
            Ok(leaf) => Self {
                subject: clip(leaf.subject()),
                issuer: clip(leaf.issuer()),
                serial: clip(&leaf.serial_hex()),
                fingerprint: Some(hex(leaf.fingerprint_sha256())),
                error: None,
            },
            Err(error) => Self { error: clip(&error.to_string()), ..Self::default() },
        }
    }
}

fn error_text(error: &(impl Display + ?Sized)) -> Cow<'static, str> {
    Cow::Owned(truncated(&error.to_string(), DETAIL_MAX).into_owned())
}

/// At most `max` bytes of a text. What is cut is marked.
fn truncated(text: &str, max: usize) -> Cow<'_, str> {
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    let end = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    Cow::Owned(format!("{}...", text.get(..end).unwrap_or_default()))
}

/// A stream that was refused, or that broke off. A client that leaves is nothing to be told about.
pub(crate) fn tcp_failed(arrival: &ConnectionInfo, sni: Option<&HostName>, failed: &TcpFailure) {
    let (peer, listener, sni) = (arrival.peer, arrival.local, sni.map(HostName::as_str));
    let route = failed.route.as_ref().map(Id::as_str);
    match failed.error.reason() {
        Some(reason) if is_allowed(reason) => {
            let (reason, detail) = (reason.label(), error_text(&failed.error));
            let detail = detail.as_ref();
            tracing::info!(reason, %peer, %listener, sni, route, detail, "stream refused or broken off");
        }
        Some(_) => {}
        None => {
            tracing::debug!(%peer, %listener, sni, route, detail = %failed.error, "stream left by its client");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_clipped_between_characters() {
        assert_eq!(truncated("short", 5), "short");
        assert_eq!(truncated("longer", 5), "longe...");
        assert_eq!(truncated("aéé", 2), "a...");
        let shown = CertificateFields::of(Some(&CertificateDer::from(vec![0; 3])));
        assert!(shown.subject.is_none() && shown.error.is_some());
    }
}
