//! rustls' certificate verifiers, which delegate to `pki`.
//!
//! [`ServerVerifier`] verifies upstreams and etcd, [`ClientVerifier`] the clients of a listener by
//! the rules of its [`VerifyClient`]. Invariant: every verifier checks the handshake signature, so
//! a peer always proves that it holds the private key of its certificate, whatever is decided about
//! the certificate.

use std::fmt;
use std::sync::Arc;

use pki::{ClientAuth, Identity, TrustAnchors, VerifyError};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::signature;

/// The methods about the handshake signature, which both verifier traits of rustls declare.
macro_rules! verify_handshake_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            signature::verify_tls12(&self.provider, cert, message, dss)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            signature::verify_tls13(&self.provider, cert, message, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

/// How a [`ServerVerifier`] decides about a server's certificate.
#[derive(Debug)]
pub enum ServerTrust {
    /// Accepts every certificate.
    Unverified,
    /// Verifies up to these anchors.
    Anchors {
        /// The trusted certificates.
        anchors: Arc<TrustAnchors>,
        /// Most intermediates; `None` for the default of [`pki::verify_server`].
        depth: Option<u32>,
        /// What the certificate must be for.
        names: ServerNames,
    },
    /// Rejects every certificate, with this message: verification is required and there are no
    /// anchors.
    NoAnchors(&'static str),
}

/// What a server's certificate must be for, besides being trusted.
#[derive(Debug)]
pub enum ServerNames {
    /// The server name of the handshake.
    InHandshake,
    /// One of these identities, whatever name the handshake has.
    Accepted(Arc<dyn AcceptServer>),
}

/// Decides about servers whose certificates are trusted.
pub trait AcceptServer: fmt::Debug + Send + Sync {
    /// Whether the server is one that is meant.
    fn accepts(&self, server: &Identity) -> bool;

    /// What was expected, for the error.
    fn expected(&self) -> &'static str;
}

/// Verifies servers for rustls.
#[derive(Debug)]
pub struct ServerVerifier {
    trust: ServerTrust,
    provider: Arc<CryptoProvider>,
    /// Chooses the TLS alert, and what the caller sees.
    to_rustls_error: fn(VerifyError) -> Error,
}

impl ServerVerifier {
    /// A verifier that returns `to_rustls_error` of a [`VerifyError`] to rustls.
    pub fn new(
        trust: ServerTrust,
        provider: Arc<CryptoProvider>,
        to_rustls_error: fn(VerifyError) -> Error,
    ) -> Self {
        Self { trust, provider, to_rustls_error }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = match &self.trust {
            ServerTrust::Unverified => Ok(()),
            ServerTrust::Anchors { anchors, depth, names } => {
                let depth = depth.unwrap_or(pki::SERVER_DEPTH);
                match names {
                    ServerNames::InHandshake => pki::verify_server_at_depth(
                        anchors,
                        depth,
                        server_name,
                        end_entity,
                        intermediates,
                        now,
                    ),
                    ServerNames::Accepted(accepted) => {
                        pki::verify_server_chain(anchors, depth, end_entity, intermediates, now).and_then(
                            |server| match accepted.accepts(&server) {
                                true => Ok(()),
                                false => Err(VerifyError::not_accepted(&server, accepted.expected())),
                            },
                        )
                    }
                }
            }
            ServerTrust::NoAnchors(message) => return Err(Error::General((*message).to_owned())),
        };
        verified.map(|()| ServerCertVerified::assertion()).map_err(self.to_rustls_error)
    }

    verify_handshake_signatures!();
}

/// The rules of a listener about the certificates of its clients.
pub trait VerifyClient: fmt::Debug + Send + Sync {
    /// Whether a handshake without a certificate fails.
    fn is_mandatory(&self) -> bool;

    /// Decides about a client's certificate. The handshake signature is checked in any case.
    ///
    /// # Errors
    /// The error that determines the client's TLS alert.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError>;
}

/// Verifies clients for rustls.
#[derive(Debug)]
pub struct ClientVerifier<V> {
    rules: V,
    provider: Arc<CryptoProvider>,
    root_hint_subjects: Box<[DistinguishedName]>,
}

impl<V> ClientVerifier<V> {
    /// A verifier whose CertificateRequest names the anchors of `policy`.
    pub fn new(rules: V, policy: &ClientAuth, provider: Arc<CryptoProvider>) -> Self {
        let subjects = policy.root_hint_subjects();
        let root_hint_subjects =
            subjects.iter().map(|subject| DistinguishedName::from(subject.to_der())).collect();
        Self { rules, provider, root_hint_subjects }
    }
}

impl<V: VerifyClient> ClientCertVerifier for ClientVerifier<V> {
    fn client_auth_mandatory(&self) -> bool {
        self.rules.is_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.root_hint_subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.rules.verify(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    verify_handshake_signatures!();
}

#[cfg(test)]
mod tests;
