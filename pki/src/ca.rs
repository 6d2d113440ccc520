//! A certificate authority: issues CA certificates, leaves and CRLs.
//!
//! For the command line, the demo, tests and benches; a gateway issues no certificates while it
//! serves. An [`Authority`] is a root or an intermediate with its key; it issues certificates by
//! [`LeafSpec`]. Serial numbers are random (127 bits), usages are those of RFC 5280 for each kind,
//! subject and authority key identifiers are set. The caller provides the clock: without
//! [`LeafSpec::valid`] a fixed validity applies.
//! Invariant: `cert` parses everything that is issued before it is returned.

use rcgen::{BasicConstraints, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateRevocationListDer, PrivateKeyDer};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::cert::{CertError, Certificate};
use crate::key::{KeyError, PrivateKey};
use crate::pem;

mod crl;
mod spec;
mod v1;

pub use crl::CrlSpec;
pub use spec::{AuthoritySpec, KeyAlgorithm, LeafSpec, Usages};

/// Why nothing was issued.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IssueError {
    /// A name is malformed for its kind.
    #[error("`{name}` cannot be a {place}: only ASCII is allowed there")]
    Name {
        /// The name.
        name: String,
        /// "DNS name", "URI" or "email address".
        place: &'static str,
    },
    /// A date outside the years 0 to 9999, or an end before its start.
    #[error("validity from {from} to {to} (seconds since 1970) is not a period a certificate can express")]
    InvalidValidity {
        /// First second.
        from: i64,
        /// Last second.
        to: i64,
    },
    /// The certificate of an authority and its key do not belong together, or the key cannot be
    /// read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate of an authority cannot be read.
    #[error(transparent)]
    Certificate(#[from] CertError),
    /// The certificate of an authority is not a CA certificate.
    #[error("`{subject}` is not a CA certificate, so it cannot issue anything")]
    NotAnAuthority {
        /// Subject, RFC 2253.
        subject: String,
    },
    /// The encoder or the crypto library failed.
    #[error("cannot make {what}: {cause}")]
    Library {
        /// "a key", "a certificate", ...
        what: &'static str,
        /// The library's message.
        cause: String,
    },
}

impl IssueError {
    fn library(what: &'static str) -> impl Fn(rcgen::Error) -> Self {
        move |error| Self::Library { what, cause: error.to_string() }
    }
}

/// A certificate authority with its key.
pub struct Authority {
    certificate: Certificate,
    key: KeyPair,
    /// This CA and those above it, without the root: the intermediates of its leaves.
    chain: Vec<Certificate>,
}

impl Authority {
    /// Creates a self-signed root.
    ///
    /// # Errors
    /// When the names or dates cannot be encoded.
    pub fn root(spec: &AuthoritySpec) -> Result<Self, IssueError> {
        let key = spec.algorithm.generate()?;
        let certificate =
            spec.params(false)?.self_signed(&key).map_err(IssueError::library("a certificate"))?;
        Ok(Self { certificate: Certificate::from_der(certificate.der())?, key, chain: Vec::new() })
    }

    /// Creates a self-signed X.509 v1 root, as `openssl x509 -req -signkey` does without an
    /// extension file: it has only the names and dates of the specification.
    ///
    /// # Errors
    /// When the names or dates cannot be encoded.
    pub fn root_v1(spec: &AuthoritySpec) -> Result<Self, IssueError> {
        let root = Self::root(spec)?;
        let certificate = v1::to_v1(root.certificate.der(), &root.key)?;
        Ok(Self { certificate, ..root })
    }

    /// Creates an intermediate below this CA.
    ///
    /// # Errors
    /// When the names or dates cannot be encoded.
    pub fn intermediate(&self, spec: &AuthoritySpec) -> Result<Self, IssueError> {
        let key = spec.algorithm.generate()?;
        let certificate = spec
            .params(true)?
            .signed_by(&key, &self.issuer()?)
            .map_err(IssueError::library("a certificate"))?;
        let certificate = Certificate::from_der(certificate.der())?;
        let mut chain = vec![certificate.clone()];
        chain.extend(self.chain.iter().cloned());
        Ok(Self { certificate, key, chain })
    }

    /// Loads an existing CA. The text may hold the chain of an intermediate: the CA first, then
    /// those above it.
    ///
    /// # Errors
    /// When a text is malformed, the two do not match, or the certificate is not a CA's.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, IssueError> {
        let certificates = crate::cert::certificates_from_pem(certificate)?;
        let own = certificates.first().cloned().ok_or(CertError::NoCertificate { found: None })?;
        if !own.is_ca() {
            return Err(IssueError::NotAnAuthority { subject: own.subject().to_owned() });
        }
        let key = PrivateKey::from_pem(key)?;
        key.matches(&own)?;
        let key = KeyPair::try_from(&key.der()).map_err(IssueError::library("a signing key"))?;
        let chain = certificates.into_iter().filter(|certificate| !certificate.is_self_issued()).collect();
        Ok(Self { certificate: own, key, chain })
    }

    /// Certifies another CA's key under the name of `spec`. With the other CA's own name this gives
    /// a second path for its leaves, as when a new root is introduced.
    ///
    /// # Errors
    /// When the names or dates cannot be encoded.
    pub fn cross_sign(&self, other: &Self, spec: &AuthoritySpec) -> Result<Certificate, IssueError> {
        let params = spec.params(true)?;
        let certificate =
            params.signed_by(&other.key, &self.issuer()?).map_err(IssueError::library("a certificate"))?;
        Ok(Certificate::from_der(certificate.der())?)
    }

    /// Issues a leaf with a new key.
    ///
    /// # Errors
    /// When the names or dates cannot be encoded.
    pub fn issue(&self, spec: &LeafSpec) -> Result<IssuedCertificate, IssueError> {
        let key = spec.algorithm.generate()?;
        let certificate =
            spec.params()?.signed_by(&key, &self.issuer()?).map_err(IssueError::library("a certificate"))?;
        let certificate = if spec.v1 {
            v1::to_v1(certificate.der(), &self.key)?
        } else {
            Certificate::from_der(certificate.der())?
        };
        IssuedCertificate::new(certificate, &self.chain, &key)
    }

    /// Signs a CRL.
    ///
    /// # Errors
    /// When a serial number or date cannot be encoded.
    pub fn crl(&self, spec: &CrlSpec) -> Result<CertificateRevocationListDer<'static>, IssueError> {
        spec.sign(&self.issuer()?)
    }

    /// Like [`Authority::crl`], as one PEM block for `client.crl`.
    ///
    /// # Errors
    /// Those of [`Authority::crl`].
    pub fn crl_pem(&self, spec: &CrlSpec) -> Result<String, IssueError> {
        Ok(pem::encode("X509 CRL", &self.crl(spec)?).to_string())
    }

    /// The CA's certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The CA's certificate as PEM.
    pub fn certificate_pem(&self) -> String {
        self.certificate.to_pem()
    }

    /// The CA's private key as PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        key_to_pem(&self.key)
    }

    /// Makes an authority of any certificate and key, as an attacker would of a leaf. For tests.
    ///
    /// # Errors
    /// When the key is malformed.
    pub fn from_certificate_unchecked(certificate: Certificate, key: &str) -> Result<Self, IssueError> {
        let key = PrivateKey::from_pem(key)?;
        let key = KeyPair::try_from(&key.der()).map_err(IssueError::library("a signing key"))?;
        Ok(Self { certificate, key, chain: Vec::new() })
    }

    fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, IssueError> {
        Issuer::from_ca_cert_der(self.certificate.der(), &self.key).map_err(IssueError::library("an issuer"))
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Authority").field(&self.certificate.subject()).finish()
    }
}

/// Issues a self-signed certificate with CA:TRUE and the names of `spec`, as `openssl req -x509`
/// does. Users put such a certificate into `client.ca` for a single client.
///
/// # Errors
/// When the names or dates cannot be encoded.
pub fn self_signed(spec: &LeafSpec) -> Result<IssuedCertificate, IssueError> {
    let key = spec.algorithm.generate()?;
    let mut params = spec.params()?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages.clear();
    params.use_authority_key_identifier_extension = false;
    let certificate = params.self_signed(&key).map_err(IssueError::library("a certificate"))?;
    IssuedCertificate::new(Certificate::from_der(certificate.der())?, &[], &key)
}

/// A leaf, its chain and its key.
pub struct IssuedCertificate {
    /// The leaf.
    pub certificate: Certificate,
    /// The leaf and its intermediates, as a peer sends them.
    pub chain: Vec<Certificate>,
    /// The leaf as PEM.
    pub certificate_pem: String,
    /// [`Self::chain`] as PEM.
    pub chain_pem: String,
    /// The private key, PKCS#8 PEM.
    pub key_pem: Zeroizing<String>,
}

impl IssuedCertificate {
    fn new(certificate: Certificate, above: &[Certificate], key: &KeyPair) -> Result<Self, IssueError> {
        let mut chain = vec![certificate.clone()];
        chain.extend(above.iter().cloned());
        Ok(Self {
            certificate_pem: certificate.to_pem(),
            chain_pem: chain.iter().map(Certificate::to_pem).collect(),
            key_pem: key_to_pem(key),
            certificate,
            chain,
        })
    }

    /// The private key.
    ///
    /// # Errors
    /// None in practice: the key was just generated.
    pub fn key(&self) -> Result<PrivateKey, KeyError> {
        PrivateKey::from_pem(&self.key_pem)
    }
}

impl std::fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("IssuedCertificate").field(&self.certificate.subject()).finish()
    }
}

/// rcgen keeps generated RSA keys as PKCS#1 or PKCS#8, depending on its backend.
fn key_to_pem(key: &KeyPair) -> Zeroizing<String> {
    let der = Zeroizing::new(key.serialize_der());
    let label = match PrivateKeyDer::try_from(der.as_slice()) {
        Ok(PrivateKeyDer::Pkcs1(_)) => "RSA PRIVATE KEY",
        Ok(PrivateKeyDer::Sec1(_)) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    pem::encode(label, &der)
}

#[cfg(test)]
mod tests;
