//! The types that all modules of `chain` share.

use std::sync::Arc;

use rustls_pki_types::UnixTime;

use crate::cert::Certificate;
use crate::cert::fields::Fields;
use crate::identity::Identity;
use crate::signature::PublicKey;
use crate::unix_time;

/// Most certificates that a peer may send behind its leaf. TLS limits the bytes; this limits the
/// number that is parsed.
pub(crate) const INTERMEDIATES_MAX: usize = 128;

/// A verified client certificate, its path, and the period in which the result holds.
#[derive(Clone, Debug)]
pub struct VerifiedClient {
    pub(super) identity: Identity,
    /// The intermediates of the path, from the leaf upwards; `None` for a pinned leaf.
    pub(super) path: Option<Arc<[Certificate]>>,
    pub(super) anchor: Certificate,
    /// The latest notBefore of the path, seconds since 1970.
    pub(super) from: i64,
    /// The earliest end of validity, seconds since 1970.
    pub(super) to: i64,
}

impl VerifiedClient {
    /// The identity of the client.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The trust anchor of the path; the leaf itself when it is pinned.
    pub fn anchor(&self) -> &Certificate {
        &self.anchor
    }

    /// The intermediates between leaf and anchor, from the leaf upwards: those of the verified path
    /// only. Empty for a pinned leaf.
    pub fn path(&self) -> &[Certificate] {
        self.path.as_deref().unwrap_or_default()
    }

    /// First second of the result's validity: the latest notBefore of the path.
    pub fn valid_from(&self) -> UnixTime {
        unix_time::from_seconds(self.from)
    }

    /// Last second of the result's validity: the earliest notAfter of the path and, where the
    /// policy requires a known revocation status, the nextUpdate of the CRLs used.
    pub fn valid_until(&self) -> UnixTime {
        unix_time::from_seconds(self.to)
    }

    /// Whether the result holds at `now`.
    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        (self.from..=self.to).contains(&unix_time::to_seconds(now))
    }
}

/// The purpose of a certificate (its extKeyUsage).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Client,
    Server,
}

/// A borrowed certificate: an anchor, or one of the peer's.
#[derive(Clone, Copy)]
pub(super) struct CertificateRef<'a> {
    pub(super) der: &'a [u8],
    pub(super) fields: &'a Fields,
}

impl<'a> CertificateRef<'a> {
    pub(super) fn of(certificate: &'a Certificate) -> Self {
        Self { der: certificate.der(), fields: certificate.fields() }
    }

    pub(super) fn subject(&self) -> &'a [u8] {
        self.fields.subject.slice(self.der)
    }

    pub(super) fn issuer(&self) -> &'a [u8] {
        self.fields.issuer.slice(self.der)
    }

    pub(super) fn key(&self) -> PublicKey<'a> {
        self.fields.key(self.der)
    }
}
