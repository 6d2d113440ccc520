//! A handshake that did not succeed: the reason, and what the operator needs to understand it.
//!
//! Joins what the stages of a handshake report into one [`Reason`]; the peer gets an alert only.

use model::HostName;
use pki::VerifyReason;
use rustls::{AlertDescription, Error, PeerIncompatible};

use super::client_hello::ClientHelloError;
use super::client_verifier::{self, RejectedCertificate};
use super::handshake::HandshakeError;
use super::transport::TransportError;
use crate::io::buffered::BufferedSocket;
use crate::reason::Reason;
use crate::runtime::{Reader, Writer};

/// A refused connection.
#[derive(Debug)]
pub struct HandshakeFailure {
    reason: Reason,
    /// The name asked for, when it got that far.
    pub sni: Option<HostName>,
    /// What went wrong, for the log.
    pub detail: String,
    /// The client certificate that was refused, if it was that.
    pub rejected_certificate: Option<RejectedCertificate>,
}

impl HandshakeFailure {
    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Which rule the client's certificate breaks, if it is that.
    pub fn verify_reason(&self) -> Option<VerifyReason> {
        self.rejected_certificate.as_ref().map(|refusal| refusal.error.reason())
    }

    /// No ClientHello.
    pub fn from_client_hello(error: ClientHelloError) -> Self {
        let reason = match &error {
            ClientHelloError::PlainHttp => Reason::PlainHttp,
            ClientHelloError::NotTls => Reason::BadHandshake,
            ClientHelloError::Tls(error) => reason_of(error),
            ClientHelloError::Io(_) | ClientHelloError::UnexpectedEof => Reason::HandshakeAbandoned,
        };
        Self { reason, sni: None, detail: error.to_string(), rejected_certificate: None }
    }

    /// A ClientHello that leads to no site: the alert is staged here.
    pub fn no_site<R: Reader, W: Writer>(
        pump: &mut BufferedSocket<R, W>,
        sni: Option<HostName>,
        reason: Reason,
    ) -> Self {
        pump.write_buf().extend_from_slice(&UNRECOGNIZED_NAME);
        let detail = match reason {
            Reason::NoSni => {
                "failed to find SNI: please check if the client requests via IP or uses an outdated protocol"
            }
            Reason::NoSite => "failed to match any SSL certificate by SNI",
            _ => "the site cannot be served",
        };
        Self { reason, sni, detail: detail.to_owned(), rejected_certificate: None }
    }

    /// The handshake itself failed.
    pub fn from_handshake(sni: HostName, error: HandshakeError) -> Self {
        let certificate = client_verifier::take_rejected_certificate();
        let reason = match (&certificate, &error) {
            (Some(_), _) => Reason::BadCertificate,
            (None, HandshakeError::Tls(TransportError::Rustls(error))) => reason_of(error),
            #[cfg(feature = "engine-boring")]
            (None, HandshakeError::Tls(TransportError::Boring(error))) => reason_of_boring(error),
            // Only an established connection has records of its own.
            (None, HandshakeError::Tls(TransportError::RecordLayer(_))) => Reason::BadHandshake,
            (None, HandshakeError::Io(_) | HandshakeError::UnexpectedEof) => Reason::HandshakeAbandoned,
        };
        let detail = match &certificate {
            Some(refusal) => refusal.error.to_string(),
            None => error.to_string(),
        };
        Self { reason, sni: Some(sni), detail, rejected_certificate: certificate }
    }

    /// With more to say in the log.
    pub fn with_detail(self, detail: String) -> Self {
        Self { detail, ..self }
    }

    /// The handshake came to its end, but its client is not one that the site's policy lets in.
    pub fn client_not_verified(sni: HostName) -> Self {
        let detail = "the client's certificate does not hold under the site's policy any more".to_owned();
        Self { reason: Reason::BadCertificate, sni: Some(sni), detail, rejected_certificate: None }
    }

    /// It was the watchdog that ended it.
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
    let any = |reasons: &[&str]| reasons.iter().any(|reason| error.is(reason));
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
