//! Issues CRLs.
//!
//! [`CrlSpec`] -> `Authority::crl` -> DER. The CRLs are complete and direct, with CRLNumber and
//! nextUpdate, as `revocation` requires.

use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use rustls_pki_types::{CertificateRevocationListDer, UnixTime};
use time::OffsetDateTime;

use super::IssueError;
use super::spec::Validity;
use crate::cert::Certificate;

/// The specification of a CRL. Default: empty, number 1, valid 2024 to 2049.
#[derive(Clone, Debug)]
pub struct CrlSpec {
    revoked: Vec<Vec<u8>>,
    number: u64,
    validity: Validity,
}

impl Default for CrlSpec {
    fn default() -> Self {
        Self { revoked: Vec::new(), number: 1, validity: Validity::default() }
    }
}

impl CrlSpec {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Revokes a certificate, which the signer of the CRL must have issued.
    pub fn revoke(self, certificate: &Certificate) -> Self {
        let serial = certificate.fields().serial.slice(certificate.der()).to_vec();
        self.revoke_serial(serial)
    }

    /// Revokes a serial number: the bytes of a positive number, most significant first.
    pub fn revoke_serial(mut self, serial: Vec<u8>) -> Self {
        self.revoked.push(serial);
        self
    }

    /// Sets CRLNumber.
    pub fn number(mut self, number: u64) -> Self {
        self.number = number;
        self
    }

    /// Sets thisUpdate and nextUpdate, both inclusive.
    pub fn between(mut self, this_update: UnixTime, next_update: UnixTime) -> Self {
        self.validity = Validity::between(this_update, next_update);
        self
    }

    pub(super) fn sign(
        &self,
        issuer: &Issuer<'_, &KeyPair>,
    ) -> Result<CertificateRevocationListDer<'static>, IssueError> {
        let (this_update, next_update) = self.validity.dates()?;
        let params = CertificateRevocationListParams {
            this_update,
            next_update,
            crl_number: SerialNumber::from(self.number),
            issuing_distribution_point: None,
            revoked_certs: self.revoked.iter().map(|serial| revoked(serial, this_update)).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let made = params.signed_by(issuer).map_err(IssueError::library("a CRL"))?;
        Ok(made.into())
    }
}

fn revoked(serial: &[u8], revocation_time: OffsetDateTime) -> RevokedCertParams {
    RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time,
        reason_code: None,
        invalidity_date: None,
    }
}
