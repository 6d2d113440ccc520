//! The scope of a CRL (issuingDistributionPoint): all certificates of its issuer, or one kind of
//! them. Invariant: a CRL of another scope is rejected, not taken to be complete.

use super::CrlError;
use crate::der::{self, DerError, Reader};

/// Which certificates of its issuer a CRL covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    All,
    UserCertificates,
    CaCertificates,
}

impl Scope {
    /// Whether CA certificates (`true`), or others, are in it.
    pub(super) fn covers(self, are_cas: bool) -> bool {
        self != if are_cas { Scope::UserCertificates } else { Scope::CaCertificates }
    }
}

/// issuingDistributionPoint (RFC 5280 5.2.5). A CRL for one distribution point covers only its
/// certificates, which are not matched here, so it is rejected rather than taken to be complete.
pub(super) fn read_scope(value: &[u8], issuer: &dyn Fn() -> String) -> Result<Scope, CrlError> {
    let malformed = CrlError::malformed("issuingDistributionPoint");
    let mut wrapped = Reader::new(value);
    let mut parts = wrapped.nested(der::SEQUENCE).map_err(&malformed)?;
    wrapped.finish().map_err(&malformed)?;
    let mut scope = Scope::All;
    while !parts.is_empty() {
        let part = parts.next().map_err(&malformed)?;
        let unsupported = match part.tag {
            0xa0 => Some("for one distribution point"),
            0x81 | 0x82 => {
                let set = der::boolean(part.content).map_err(&malformed)?;
                let this = if part.tag == 0x81 { Scope::UserCertificates } else { Scope::CaCertificates };
                match (set, scope) {
                    (false, _) => None,
                    (true, Scope::All) => {
                        scope = this;
                        None
                    }
                    (true, _) => Some("for no certificate at all"),
                }
            }
            0x83 => Some("limited to some reasons"),
            0x84 if der::boolean(part.content).map_err(&malformed)? => Some("indirect"),
            0x85 if der::boolean(part.content).map_err(&malformed)? => Some("for attribute certificates"),
            0x84 | 0x85 => None,
            _ => return Err(malformed(DerError::Tag)),
        };
        if let Some(scope) = unsupported {
            return Err(CrlError::Scope { issuer: issuer(), scope });
        }
    }
    Ok(scope)
}
