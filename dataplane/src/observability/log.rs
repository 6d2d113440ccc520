//! One log line for each connection or request that is rejected, denied or fails, with the same
//! fields everywhere.
//!
//! Invariants: text from a peer is escaped and truncated, so that it forges no line; [`LogLimiter`]
//! bounds the lines of each reason, so that a flood does not fill the disk.

use std::error::Error;
use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Instant;

use data_encoding::HEXLOWER;
use model::{HostName, Id, truncated};
use pki::{CertificateDer, VerifyReason};

use super::HasReason;
use super::log_limiter::LogLimiter;
use crate::reason::Reason;

/// The longest text of a peer in a line, in bytes: a certificate may carry names of 16 KiB.
const VALUE_MAX: usize = 256;
/// The longest `detail`, in bytes: it may quote two such names.
const DETAIL_MAX: usize = 1024;

thread_local! {
    static LIMITER: LogLimiter = LogLimiter::default();
}

/// A client that may not connect, make its request, or stay connected.
#[derive(Debug)]
pub(crate) struct ClientDenial<'a> {
    pub(crate) reason: Reason,
    /// The name in the ClientHello.
    pub(crate) sni: Option<&'a HostName>,
    /// The name in the request.
    pub(crate) host: Option<&'a HostName>,
    /// Why the client's certificate was rejected.
    pub(crate) verify_reason: Option<VerifyReason>,
    /// The client's certificate.
    pub(crate) leaf: Option<&'a CertificateDer<'static>>,
}

/// A handshake that failed.
pub(crate) fn handshake_rejected(peer: impl Display, denial: &ClientDenial<'_>, detail: &str) {
    client_denied("handshake rejected", &peer, denial, Some(&truncated(detail, DETAIL_MAX)));
}

/// A request that its client may not make.
pub(crate) fn request_denied(peer: impl Display, denial: &ClientDenial<'_>) {
    let detail = match denial.reason {
        Reason::Misdirected => "client certificate verified with another SNI than the host's",
        Reason::NoCertificate => "client certificate was not present",
        Reason::BlockedSite => "the site is blocked: another program stored what cannot be honoured",
        _ => "client certificate verification is not passed: FAILED",
    };
    client_denied("request denied", &peer, denial, Some(detail));
}

/// A connection that is closed because its client is no longer valid under the site's policy.
pub(crate) fn connection_terminated(peer: SocketAddr, denial: &ClientDenial<'_>) {
    client_denied("connection closed: the site's policy has changed", &peer, denial, None);
}

fn client_denied(message: &str, peer: &dyn Display, denial: &ClientDenial<'_>, detail: Option<&str>) {
    if !is_allowed(denial.reason) {
        return;
    }
    let certificate = CertificateFields::new(denial.leaf);
    tracing::info!(
        reason = denial.reason.label(),
        verify_reason = denial.verify_reason.map(VerifyReason::as_str),
        %peer,
        sni = denial.sni.map(HostName::as_str),
        host = denial.host.map(HostName::as_str),
        detail,
        subject = certificate.subject.as_deref(),
        issuer = certificate.issuer.as_deref(),
        serial = certificate.serial.as_deref(),
        fingerprint = certificate.fingerprint.as_deref(),
        certificate_error = certificate.error.as_deref(),
        "{message}"
    );
}

/// A connection without the PROXY protocol header that its listener reads. `peer`: the proxy.
pub(crate) fn proxy_header_rejected(
    peer: SocketAddr,
    listener: SocketAddr,
    reason: Reason,
    error: &dyn Error,
) {
    if is_allowed(reason) {
        let detail = error_text(error);
        tracing::info!(reason = reason.label(), %peer, %listener, detail, "connection rejected");
    }
}

/// A malformed request, or one above a limit.
pub(crate) fn request_rejected(peer: impl Display, error: &dyn HasReason) {
    let reason = error.reason();
    if is_allowed(reason) {
        tracing::info!(reason = reason.label(), %peer, detail = error_text(error), "request rejected");
    }
}

/// A client that was too slow to send a head, or to read a response.
pub(crate) fn client_timed_out(peer: impl Display, reason: Reason) {
    if is_allowed(reason) {
        let detail = match reason {
            Reason::HeadTimeout => "the client sent no whole head within client_header_timeout",
            _ => "the client read nothing of a response for send_timeout",
        };
        tracing::info!(reason = reason.label(), %peer, detail, "client timed out");
    }
}

/// A request without a route, service or upstream.
pub(crate) fn no_destination(peer: impl Display, reason: Reason, host: Option<&HostName>, path: &str) {
    if is_allowed(reason) {
        let (host, path) = (host.map(HostName::as_str), truncated(path, VALUE_MAX));
        tracing::info!(reason = reason.label(), %peer, host, path = path.as_ref(), "request denied");
    }
}

/// A request whose client is not on the route's allow-list.
pub(crate) fn client_not_allowed(
    peer: impl Display,
    route: &Id,
    leaf: Option<&CertificateDer<'static>>,
    san_uris: &[String],
) {
    let reason = Reason::NotAllowed;
    if !is_allowed(reason) {
        return;
    }
    let detail = match leaf {
        Some(_) => "the client is not on the route's allow-list",
        None => "the route has an allow-list, and the request has no verified client",
    };
    let (certificate, san_uris) = (CertificateFields::new(leaf), san_uris.join(", "));
    tracing::info!(
        reason = reason.label(),
        %peer,
        %route,
        detail,
        subject = certificate.subject.as_deref(),
        issuer = certificate.issuer.as_deref(),
        serial = certificate.serial.as_deref(),
        fingerprint = certificate.fingerprint.as_deref(),
        san_uris = truncated(&san_uris, DETAIL_MAX).as_ref(),
        "request denied"
    );
}

/// A request that `proxy-rewrite` cannot rewrite.
pub(crate) fn rewrite_failed(peer: impl Display, route: &Id, error: &dyn HasReason) {
    let reason = error.reason();
    if is_allowed(reason) {
        tracing::info!(reason = reason.label(), %peer, %route, detail = error_text(error), "request rejected");
    }
}

/// An upstream's response whose head is above the limits.
pub(crate) fn response_rejected(peer: impl Display, route: &Id, error: &dyn Error) {
    let reason = Reason::UpstreamInvalid;
    if is_allowed(reason) {
        tracing::info!(reason = reason.label(), %peer, %route, detail = error_text(error), "response rejected");
    }
}

/// A request without a response from an upstream.
pub(crate) fn upstream_failed(peer: impl Display, route: &Id, error: &dyn HasReason) {
    let reason = error.reason();
    if is_allowed(reason) {
        let detail = error_text(error);
        tracing::warn!(reason = reason.label(), %peer, %route, detail, "no response from the upstream");
    }
}

/// A response whose head has gone out and whose body the upstream did not complete.
pub(crate) fn response_broken(peer: impl Display, error: &dyn HasReason) {
    let reason = error.reason();
    if is_allowed(reason) {
        let detail = error_text(error);
        tracing::warn!(reason = reason.label(), %peer, detail, "the upstream's response broke off");
    }
}

/// A TCP connection that was denied or failed. Without a reason its client closed it.
pub(crate) fn tcp_failed(
    peer: impl Display,
    listener: SocketAddr,
    sni: Option<&HostName>,
    route: Option<&Id>,
    reason: Option<Reason>,
    error: &dyn Error,
) {
    let (sni, route) = (sni.map(HostName::as_str), route.map(Id::as_str));
    match reason {
        Some(reason) if is_allowed(reason) => {
            let (reason, detail) = (reason.label(), error_text(error));
            tracing::info!(reason, %peer, %listener, sni, route, detail, "TCP connection denied or failed");
        }
        Some(_) => {}
        None => {
            tracing::debug!(%peer, %listener, sni, route, detail = %error, "TCP connection closed by its client");
        }
    }
}

/// A WebSocket that did not end by both sides' close. Without a reason its client broke off.
pub(crate) fn web_socket_failed(peer: impl Display, route: &Id, reason: Option<Reason>, error: &dyn Error) {
    let route = route.as_str();
    match reason {
        Some(reason) if is_allowed(reason) => {
            let (reason, detail) = (reason.label(), error_text(error));
            tracing::info!(reason, %peer, route, detail, "WebSocket ended");
        }
        Some(_) => {}
        None => tracing::debug!(%peer, route, detail = %error, "WebSocket ended by its client"),
    }
}

/// Logs how many lines were suppressed since the last call. Each worker calls it about once a
/// second.
pub(crate) fn log_suppressed() {
    for (reason, suppressed) in LIMITER.with(LogLimiter::take_suppressed) {
        tracing::warn!(
            reason = reason.label(),
            suppressed,
            "log lines were suppressed; the metrics count all events"
        );
    }
}

fn is_allowed(reason: Reason) -> bool {
    LIMITER.with(|limiter| limiter.allow(reason, Instant::now()))
}

/// A client's certificate as log fields.
#[derive(Default)]
struct CertificateFields {
    subject: Option<String>,
    issuer: Option<String>,
    serial: Option<String>,
    fingerprint: Option<String>,
    /// Why it cannot be parsed.
    error: Option<String>,
}

impl CertificateFields {
    fn new(leaf: Option<&CertificateDer<'_>>) -> Self {
        let Some(der) = leaf else { return Self::default() };
        let value = |text: &str| Some(truncated(text, VALUE_MAX).into_owned());
        match pki::Certificate::from_der(der) {
            Ok(leaf) => Self {
                subject: value(leaf.subject()),
                issuer: value(leaf.issuer()),
                serial: value(&leaf.serial_hex()),
                fingerprint: Some(HEXLOWER.encode(leaf.fingerprint_sha256())),
                error: None,
            },
            Err(error) => Self { error: value(&error.to_string()), ..Self::default() },
        }
    }
}

fn error_text(error: &dyn Error) -> String {
    truncated(&error.to_string(), DETAIL_MAX).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_certificate_is_logged_as_an_error() {
        let fields = CertificateFields::new(Some(&CertificateDer::from(vec![0; 3])));
        assert!(fields.subject.is_none() && fields.error.is_some());
    }
}
