//! Is this server our etcd? `pki`'s verdict, for the TLS library.
//!
//! The error keeps its type on its way through the library, so that `stream` can tell a wrong name
//! from a stranger.

use std::sync::Arc;

use pki::TrustAnchors;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, SignatureScheme};

use crate::proof;

/// Intermediates between etcd's certificate and a CA (contract 1.2).
const DEPTH: u32 = 5;

/// Whom we believe.
#[derive(Debug)]
pub(super) enum Trust {
    /// `verify: false`: whoever answers.
    Anyone,
    /// Whom these CAs vouch for.
    Anchors(TrustAnchors),
}

/// Verifies servers.
#[derive(Debug)]
pub(super) struct Servers {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Servers {
    pub(super) fn new(trust: Trust, provider: &CryptoProvider) -> Self {
        Self { trust, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Trust::Anchors(anchors) = &self.trust {
            pki::verify_server_at_depth(anchors, DEPTH, server_name, end_entity, intermediates, now)
                .map_err(|error| CertificateError::Other(OtherError(Arc::new(error))))?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        proof::verify_tls12(&self.algorithms, message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        proof::verify_tls13(&self.algorithms, message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
