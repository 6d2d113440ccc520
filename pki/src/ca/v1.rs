//! X.509 v1 certificates, which rcgen does not support but `openssl x509 -req` still writes.
//!
//! A v3 certificate -> the same without version and extensions, signed again. Tests of APISIX's
//! tutorial need them.

use rcgen::{KeyPair, SigningKey as _};

use super::IssueError;
use crate::cert::{CertError, Certificate};
use crate::der::{self, DerError, Reader};

/// Converts a v3 certificate that `signer` issued.
pub(super) fn to_v1(v3: &[u8], signer: &KeyPair) -> Result<Certificate, IssueError> {
    let (tbs, algorithm) = to_be_signed(v3).map_err(CertError::malformed("a certificate just made"))?;
    let signature = signer.sign(&tbs).map_err(IssueError::library("a signature"))?;
    let mut inside = tbs;
    inside.extend_from_slice(algorithm);
    let mut bits = vec![0]; // no unused bits
    bits.extend_from_slice(&signature);
    der::write(&mut inside, der::BIT_STRING, &bits);
    let mut certificate = Vec::with_capacity(inside.len() + 4);
    der::write(&mut certificate, der::SEQUENCE, &inside);
    Ok(Certificate::from_der(&certificate)?)
}

/// The TBSCertificate without version and extensions, and the AlgorithmIdentifier.
fn to_be_signed(v3: &[u8]) -> Result<(Vec<u8>, &[u8]), DerError> {
    let mut certificate = Reader::new(v3).nested(der::SEQUENCE)?;
    let mut tbs = certificate.nested(der::SEQUENCE)?;
    let algorithm = certificate.expect(der::SEQUENCE)?.outer.slice(v3);
    let mut kept = Vec::with_capacity(v3.len());
    while !tbs.is_empty() {
        let field = tbs.next()?;
        if field.tag != der::context_constructed(0) && field.tag != der::context_constructed(3) {
            kept.extend_from_slice(field.outer.slice(v3));
        }
    }
    let mut out = Vec::with_capacity(kept.len() + 4);
    der::write(&mut out, der::SEQUENCE, &kept);
    Ok((out, algorithm))
}
