//! Dial errors: the failing step, the cause, and what to do.
//!
//! The messages contain the words that the contract fixes (9.2): `certificate verify failed`,
//! `certificate host mismatch`, `bad certificate`.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mtls::FileError;
use pki::VerifyError;
use rustls::AlertDescription;

use super::credentials::{PresentedCert, TrustSummary};

/// A failed or ended connection to an endpoint.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{url}: {problem}", url = url.escape_debug())]
pub(crate) struct DialError {
    pub url: String,
    pub problem: Arc<DialFailure>,
}

impl DialError {
    pub(super) fn new(url: &str, problem: DialFailure) -> Self {
        Self { url: url.to_owned(), problem: Arc::new(problem) }
    }
}

/// The steps of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DialStep {
    /// Reading the configuration and its files.
    Settings,
    /// Resolving the host.
    Dns,
    Tcp,
    /// The TLS handshake and the first read, on which TLS 1.3 reports a rejected client
    /// certificate.
    Tls,
    /// Waiting for the server's HTTP/2 settings.
    Http2,
    /// The connection was established.
    Established,
}

impl fmt::Display for DialStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Settings => "settings",
            Self::Dns => "DNS",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Http2 => "HTTP/2",
            Self::Established => "connection",
        })
    }
}

/// The cause of a dial error.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum DialFailure {
    #[error("deployment.etcd.host: {0}")]
    Url(String),
    #[error("{0}")]
    File(#[from] FileError),
    /// rustls rejects the contents of the files.
    #[error("deployment.etcd.tls: {0}")]
    TlsConfig(String),
    #[error(
        "DNS: the host {host:?} cannot be looked up: {cause}. Check the name, and this machine's resolver"
    )]
    Dns { host: String, cause: String },
    #[error("TCP: cannot connect to {}", describe_attempts(.0))]
    Tcp(Vec<(SocketAddr, TcpFailure)>),
    #[error("{step}: no response within {}. {}", format_duration(*.after), timeout_hint(*.step))]
    Timeout { step: DialStep, after: Duration },
    #[error(
        "TLS: certificate verify failed: {why}. Trusted is {trusted}. Give the CA that issued etcd's certificate there, or \
         mend the certificate"
    )]
    Untrusted {
        /// The verification error.
        why: String,
        trusted: TrustSummary,
    },
    /// The server's certificate is trusted, but valid for other names.
    #[error(
        "TLS: certificate host mismatch: {cause}. The name expected is {}; set deployment.etcd.tls.sni to a name of the \
         certificate, or issue one for {expected}",
        if *.by_sni { "deployment.etcd.tls.sni" } else { "the URL's host" }
    )]
    NameMismatch {
        expected: String,
        /// `tls.sni` is set and gives the expected name.
        by_sni: bool,
        cause: VerifyError,
    },
    /// The server rejects the client certificate, or requires one.
    #[error(
        "TLS: bad certificate: etcd {} (alert {}). {presented}",
        if .presented.is_some() { "rejects our client certificate" } else { "requires a client certificate, and none is configured" },
        alert_name(*.alert)
    )]
    ClientCertRejected { alert: AlertDescription, presented: PresentedCert },
    /// The server ended the handshake with another alert.
    #[error("TLS: etcd ended the handshake with the alert {}. {}", alert_name(*.0), alert_hint(*.0))]
    Alert(AlertDescription),
    #[error("TLS: the handshake failed: {0}")]
    Handshake(String),
    /// The endpoint is `https://`, and the server does not use TLS.
    #[error(
        "TLS: the server there does not speak TLS{}. {}",
        if *.http2 { ", but plain HTTP/2" } else { "" },
        if *.http2 { "Write http:// for this endpoint, or give etcd a certificate (--cert-file, --key-file, and an https:// \
                      listen-client-urls)" } else { "Check host and port: etcd's port for clients is 2379 by default" }
    )]
    NotTls {
        /// The server responds with HTTP/2 in clear.
        http2: bool,
    },
    /// The endpoint is `http://`, and the server uses TLS.
    #[error(
        "HTTP/2: the server there speaks TLS, but the URL says http://. Write https:// for this endpoint"
    )]
    UnexpectedTls,
    #[error(
        "HTTP/2: the response is not HTTP/2, it starts with {found:?}. Check host and port: this must be etcd's gRPC port for \
         clients (2379 by default), not its metrics, peer or HTTP-only port"
    )]
    NotHttp2 { found: String },
    #[error("{step}: the connection was closed: {cause}{}", closed_hint(*.step))]
    Closed { step: DialStep, cause: String },
}

impl DialFailure {
    /// The step that failed.
    pub(crate) fn step(&self) -> DialStep {
        match self {
            Self::Url(_) | Self::File(_) | Self::TlsConfig(_) => DialStep::Settings,
            Self::Dns { .. } => DialStep::Dns,
            Self::Tcp(_) => DialStep::Tcp,
            Self::Untrusted { .. }
            | Self::NameMismatch { .. }
            | Self::ClientCertRejected { .. }
            | Self::Alert(_)
            | Self::Handshake(_)
            | Self::NotTls { .. } => DialStep::Tls,
            Self::UnexpectedTls | Self::NotHttp2 { .. } => DialStep::Http2,
            Self::Timeout { step, .. } | Self::Closed { step, .. } => *step,
        }
    }
}

/// The failure of one address.
#[derive(Debug, Clone)]
pub(crate) enum TcpFailure {
    System(std::io::ErrorKind, String),
    /// The address did not respond within its share of the time.
    TimedOut(Duration),
}

fn describe_attempts(all: &[(SocketAddr, TcpFailure)]) -> String {
    let attempts: Vec<_> = all
        .iter()
        .map(|(address, failure)| match failure {
            TcpFailure::System(_, text) => format!("{address}: {text}"),
            TcpFailure::TimedOut(after) => {
                format!("{address}: no response within {}", format_duration(*after))
            }
        })
        .collect();
    let refused = |(_, failure): &(_, _)| {
        matches!(failure, TcpFailure::System(std::io::ErrorKind::ConnectionRefused, _))
    };
    let hint = if all.iter().all(refused) {
        "Nothing listens there: is etcd running, and is that its listen-client-urls?"
    } else {
        "Check the address: the machine may be down, or a firewall between may drop what is sent there"
    };
    format!("{}. {hint}", attempts.join("; "))
}

fn timeout_hint(step: DialStep) -> &'static str {
    match step {
        DialStep::Dns => "Check this machine's resolver",
        DialStep::Tls | DialStep::Http2 => {
            "Something accepts connections there and says nothing: is it etcd, and is it stopped or overloaded?"
        }
        DialStep::Settings | DialStep::Tcp | DialStep::Established => {
            "Is the machine, or the disk, overloaded?"
        }
    }
}

fn closed_hint(step: DialStep) -> &'static str {
    match step {
        DialStep::Tls | DialStep::Http2 => ". Is it etcd's port for clients? Its log says why it closed",
        _ => "",
    }
}

/// `30 s`, `1.5 s`
pub(in crate::store::etcd) fn format_duration(time: Duration) -> String {
    let tenths = time.as_millis().saturating_add(50) / 100;
    if tenths.is_multiple_of(10) {
        format!("{} s", tenths / 10)
    } else {
        format!("{}.{} s", tenths / 10, tenths % 10)
    }
}

/// The spelling of RFC 8446: `bad_certificate`.
pub(super) fn alert_name(alert: AlertDescription) -> String {
    let (mut name, mut after_lowercase) = (String::new(), false);
    for letter in format!("{alert:?}").chars() {
        if after_lowercase && letter.is_ascii_uppercase() {
            name.push('_');
        }
        after_lowercase = letter.is_ascii_lowercase();
        name.push(letter.to_ascii_lowercase());
    }
    name
}

fn alert_hint(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnrecognisedName => {
            "It does not serve that name: set deployment.etcd.tls.sni to the one it has"
        }
        AlertDescription::ProtocolVersion => "It speaks neither TLS 1.2 nor TLS 1.3",
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            "No cipher suite in common: see etcd's --cipher-suites"
        }
        AlertDescription::NoApplicationProtocol => "It does not speak HTTP/2: is it etcd's port for clients?",
        _ => "Its log says why",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_rounded() {
        let milliseconds = |n| format_duration(Duration::from_millis(n));
        assert_eq!([0, 300, 1449, 3999, 30_000].map(milliseconds), ["0 s", "0.3 s", "1.4 s", "4 s", "30 s"]);
    }

    #[test]
    fn alert_names_follow_rfc_8446() {
        for (alert, name) in [
            (AlertDescription::BadCertificate, "bad_certificate"),
            (AlertDescription::UnknownCA, "unknown_ca"),
            (AlertDescription::CertificateRequired, "certificate_required"),
        ] {
            assert_eq!(alert_name(alert), name);
        }
    }
}
