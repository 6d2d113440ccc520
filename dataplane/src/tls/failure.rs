//! A failed handshake: its [`Reason`], and the details for the log. The peer gets an alert only.

use model::HostName;
use pki::VerifyReason;
use rustls::{AlertDescription, Error, PeerIncompatible};

use super::client_hello::ClientHelloError;
use super::handshake::{HandshakeError, TlsHandshake};
use super::handshake_state::RejectedCertificate;
use super::sni_reader::SniError;
use crate::io::buffered::BufferedSocket;
use crate::observability::HasReason;
use crate::reason::Reason;
use crate::runtime::{Reader, Writer};

/// A connection whose handshake failed.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct HandshakeFailure {
    reason: Reason,
    /// The server name, if the ClientHello was read.
    pub sni: Option<HostName>,
    /// What went wrong, for the log.
    pub detail: String,
    /// The client certificate, if it was rejected.
    pub rejected_certificate: Option<RejectedCertificate>,
}

impl HasReason for HandshakeFailure {
    fn reason(&self) -> Reason {
        self.reason
    }
}

impl HandshakeFailure {
    /// Why the client certificate was rejected, if it was.
    pub fn verify_reason(&self) -> Option<VerifyReason> {
        self.rejected_certificate.as_ref().map(|rejected| rejected.error.reason())
    }

    /// No ClientHello was read.
    pub fn from_client_hello(error: ClientHelloError) -> Self {
        let reason = match &error {
            ClientHelloError::PlainHttp => Reason::PlainHttp,
            ClientHelloError::NotTls => Reason::BadHandshake,
            ClientHelloError::Tls(error) => reason_of(error),
            ClientHelloError::Io(_) | ClientHelloError::UnexpectedEof => Reason::HandshakeAbandoned,
        };
        Self { reason, sni: None, detail: error.to_string(), rejected_certificate: None }
    }

    /// The server name of a ClientHello that may be passed on was not read.
    pub fn from_sni(error: &SniError) -> Self {
        let reason = match error {
            SniError::PlainHttp => Reason::PlainHttp,
            SniError::Io(_) | SniError::UnexpectedEof => Reason::HandshakeAbandoned,
            _ => Reason::BadHandshake,
        };
        Self { reason, sni: None, detail: error.to_string(), rejected_certificate: None }
    }

    /// The client sends no name, its name has no site, or the site cannot be served. Queues the
    /// alert `unrecognized_name`.
    pub fn unrecognized_name<R: Reader, W: Writer>(
        socket: &mut BufferedSocket<R, W>,
        sni: Option<HostName>,
        reason: Reason,
    ) -> Self {
        socket.write_buf().extend_from_slice(&UNRECOGNIZED_NAME);
        let detail = match reason {
            Reason::NoSni => {
                "failed to find SNI: please check if the client requests via IP or uses an outdated protocol"
            }
            Reason::NoSite => "failed to match any SSL certificate by SNI",
            _ => "the site cannot be served",
        };
        Self { reason, sni, detail: detail.to_owned(), rejected_certificate: None }
    }

    /// The handshake failed.
    pub fn from_handshake(sni: HostName, handshake: &mut TlsHandshake, error: HandshakeError) -> Self {
        match handshake.take_rejected_certificate() {
            Some(rejected) => Self {
                reason: Reason::BadCertificate,
                sni: Some(sni),
                detail: rejected.error.to_string(),
                rejected_certificate: Some(rejected),
            },
            None => Self::from_error(sni, error),
        }
    }

    /// The handshake failed before the client presented a certificate.
    pub fn from_error(sni: HostName, error: HandshakeError) -> Self {
        let reason = match &error {
            HandshakeError::Rustls(error) => reason_of(error),
            #[cfg(feature = "engine-boring")]
            HandshakeError::Boring(error) => reason_of_boring(error),
            HandshakeError::Io(_) | HandshakeError::UnexpectedEof => Reason::HandshakeAbandoned,
        };
        Self { reason, sni: Some(sni), detail: error.to_string(), rejected_certificate: None }
    }

    /// Replaces the detail for the log.
    pub fn with_detail(self, detail: String) -> Self {
        Self { detail, ..self }
    }

    /// The handshake succeeded, but the site's policy does not accept the client.
    pub fn client_not_verified(sni: HostName) -> Self {
        let detail = "the client's certificate does not hold under the site's policy any more".to_owned();
        Self { reason: Reason::BadCertificate, sni: Some(sni), detail, rejected_certificate: None }
    }

    /// The handshake timeout ended the handshake.
    pub fn timed_out(self) -> Self {
        Self { reason: Reason::HandshakeTimeout, rejected_certificate: None, ..self }
    }
}

/// A fatal alert record, `unrecognized_name` (RFC 6066 section 3).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

fn reason_of(error: &Error) -> Reason {
    match error {
        Error::NoCertificatesPresented => Reason::NoCertificate,
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        )
        | Error::AlertReceived(AlertDescription::ProtocolVersion) => Reason::NoCommonVersion,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Reason::NoCommonParameters,
        Error::AlertReceived(_) => Reason::RejectedByPeer,
        _ => Reason::BadHandshake,
    }
}

#[cfg(feature = "engine-boring")]
fn reason_of_boring(error: &super::boring::BoringError) -> Reason {
    let any = |codes: &[&str]| codes.iter().any(|code| error.is(code));
    if any(&["PEER_DID_NOT_RETURN_A_CERTIFICATE"]) {
        Reason::NoCertificate
    } else if any(&["CERTIFICATE_VERIFY_FAILED", "KEY_USAGE_BIT_INCORRECT"]) {
        Reason::BadCertificate
    } else if any(&["UNSUPPORTED_PROTOCOL", "INAPPROPRIATE_FALLBACK", "TLSV1_ALERT_PROTOCOL_VERSION"]) {
        Reason::NoCommonVersion
    } else if any(&["NO_SHARED_CIPHER", "NO_SHARED_GROUP", "NO_COMMON_SIGNATURE_ALGORITHMS"]) {
        Reason::NoCommonParameters
    } else if error.is_alert() {
        Reason::RejectedByPeer
    } else {
        Reason::BadHandshake
    }
}
