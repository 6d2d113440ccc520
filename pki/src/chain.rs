//! Is this peer accepted? The one verdict for every engine and listener (RFC 5280 6, with the
//! differences below).
//!
//! What a peer sent and what the operator trusts -> `search` for a path -> an [`Identity`] or a
//! [`VerifyError`] that names the certificate and the rule. The path builder is our own, because
//! the rules are the contract's and not webpki's:
//!
//! - anchors are exactly the certificates given; an intermediate among them is an anchor, a leaf
//!   among them is accepted as it is;
//! - `depth` counts the intermediates between leaf and anchor, as OpenSSL does, but without
//!   self-issued ones (RFC 5280 4.2.1.9);
//! - X.509 v1: a leaf and an anchor may be, an intermediate never;
//! - the peer may send intermediates in any order, with strangers among them;
//! - the work is bounded in advance, whatever is sent, because all of it happens before the peer is
//!   authenticated.
//!
//! Invariant: every `Ok` comes from `search::run` or from the comparison with a pinned leaf, and
//! nowhere else; `again` says yes only to a path that one of them said yes to before.

use std::sync::Arc;

use path_builder::ChainOptions;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::cert::fields::Fields;
use crate::cert::general_name::{self, GeneralName};
use crate::cert::{self, Certificate};
use crate::identity::Identity;
use crate::policy::{ClientAuth, TrustAnchors};
use crate::revocation::RevocationStatus;
use crate::signature::{self, PublicKey};

mod diagnostics;
mod error;
mod intermediates;
mod name_constraints;
mod path;
mod path_builder;
mod reverification;
mod server_name;
mod signatures;

pub use diagnostics::{ChainPosition, failing_certificate, required_depth};
pub use error::{VerifyError, VerifyReason};
pub use reverification::reverify;

/// Most certificates a peer may send behind its leaf. TLS limits the bytes; this limits what is
/// parsed.
pub const INTERMEDIATES_MAX: usize = 128;
/// Most intermediates in the chain of an upstream.
const SERVER_DEPTH: u32 = 10;

/// A successful verification.
#[derive(Clone, Debug)]
pub struct VerifiedClient {
    identity: Identity,
    /// The intermediates between, from the leaf upwards; `None` for a pinned leaf, which has no
    /// path.
    path: Option<Arc<[Certificate]>>,
    anchor: Certificate,
    /// Latest notBefore of the path, seconds since 1970.
    from: i64,
    /// Earliest end, seconds since 1970.
    to: i64,
}

impl VerifiedClient {
    /// Who the client is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The trust anchor its path ends in; the leaf itself when it is pinned.
    pub fn anchor(&self) -> &Certificate {
        &self.anchor
    }

    /// First second in which the same question has the same answer: the latest notBefore of the
    /// path.
    pub fn valid_from(&self) -> UnixTime {
        cert::to_unix(self.from)
    }

    /// The intermediates between leaf and anchor, from the leaf upwards: those of the path that was
    /// verified, not all that were sent. None for a pinned leaf.
    pub fn path(&self) -> &[Certificate] {
        self.path.as_deref().unwrap_or_default()
    }

    /// Last second in which the same question has the same answer: the earliest notAfter of the
    /// path and, where the policy requires a known status, nextUpdate of the lists used.
    pub fn valid_until(&self) -> UnixTime {
        cert::to_unix(self.to)
    }

    /// Whether the verdict holds at `now`.
    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        (self.from..=self.to).contains(&seconds(now))
    }
}

/// What a certificate is to be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Client,
    Server,
}

/// A certificate where it lies: an anchor's, or one the peer sent.
#[derive(Clone, Copy)]
pub(crate) struct CertificateRef<'a> {
    pub(crate) der: &'a [u8],
    pub(crate) fields: &'a Fields,
}

impl<'a> CertificateRef<'a> {
    pub(crate) fn of(certificate: &'a Certificate) -> Self {
        Self { der: certificate.der(), fields: certificate.fields() }
    }

    pub(crate) fn subject(&self) -> &'a [u8] {
        self.fields.subject.slice(self.der)
    }

    pub(crate) fn issuer(&self) -> &'a [u8] {
        self.fields.issuer.slice(self.der)
    }

    pub(crate) fn key(&self) -> PublicKey<'a> {
        self.fields.key(self.der)
    }
}

/// Verifies a client's certificate against a site's policy.
///
/// `sent` is what came behind the leaf in the client's Certificate message. Costs a few signature
/// checks, and never more than the limits in `search` allow.
///
/// # Errors
/// The most telling reason why no path is good; see [`VerifyError`].
pub fn verify_client(
    policy: &ClientAuth,
    leaf: &CertificateDer<'_>,
    sent: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<VerifiedClient, VerifyError> {
    verify_at_depth(policy, policy.depth(), leaf, sent, now)
}

fn verify_at_depth(
    policy: &ClientAuth,
    depth: u32,
    leaf: &CertificateDer<'_>,
    sent: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<VerifiedClient, VerifyError> {
    let demand = ChainOptions {
        anchors: policy.anchors(),
        depth,
        purpose: Purpose::Client,
        crls: policy.checked_crls(),
        crl_prefer: policy.crl_prefer(),
    };
    let fields = read_leaf(leaf)?;
    let view = CertificateRef { der: leaf, fields: &fields };
    let now = seconds(now);
    check_end_entity(view, Purpose::Client, now)?;
    let (path, anchor, from, to) = match find_pinned(policy.anchors(), view) {
        Some(anchor) => {
            check_pinned_revocation(policy, view, now)?;
            (None, anchor.clone(), fields.not_before, fields.not_after)
        }
        None => {
            let found = path_builder::run(&demand, view, sent, now)?;
            (Some(found.path), found.anchor.clone(), found.from, found.to)
        }
    };
    let identity = Identity::of(Certificate::from_parts(leaf, fields));
    Ok(VerifiedClient { identity, path, anchor, from, to })
}

/// Verifies a server's certificate: for upstreams. `name` is what we dialled or were told to
/// expect.
///
/// # Errors
/// The most telling reason why no path is good, or that the certificate is for another name.
pub fn verify_server(
    anchors: &TrustAnchors,
    name: &ServerName<'_>,
    leaf: &CertificateDer<'_>,
    sent: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), VerifyError> {
    verify_server_at_depth(anchors, SERVER_DEPTH, name, leaf, sent, now)
}

/// As [`verify_server`], with at most `depth` intermediates. The name is judged last: the names of
/// a certificate that nobody we trust issued say nothing.
///
/// # Errors
/// As [`verify_server`].
pub fn verify_server_at_depth(
    anchors: &TrustAnchors,
    depth: u32,
    name: &ServerName<'_>,
    leaf: &CertificateDer<'_>,
    sent: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), VerifyError> {
    let demand = ChainOptions { anchors, depth, purpose: Purpose::Server, crls: None, crl_prefer: false };
    let fields = read_leaf(leaf)?;
    let view = CertificateRef { der: leaf, fields: &fields };
    let now = seconds(now);
    check_end_entity(view, Purpose::Server, now)?;
    if find_pinned(anchors, view).is_none() {
        path_builder::run(&demand, view, sent, now)?;
    }
    server_name::verify_server_name(view, name)
}

fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

fn read_leaf(leaf: &[u8]) -> Result<Fields, VerifyError> {
    let fields = Fields::read(leaf).map_err(|error| VerifyError::Malformed { cause: error.to_string() })?;
    let malformed = |cause: &str| VerifyError::Malformed { cause: cause.to_owned() };
    if fields.issuer.slice(leaf).is_empty() {
        return Err(malformed("the issuer is empty (RFC 5280 4.1.2.4)"));
    }
    // Names nobody can read must not reach a name constraint, a header or a log.
    if let Some(names) = fields.subject_alt_name
        && general_name::parse_list(names.slice(leaf)).any(|name| name.is_err())
    {
        return Err(malformed("the subject alternative name cannot be read"));
    }
    Ok(fields)
}

/// What the leaf must satisfy by itself, on whatever path.
fn check_end_entity(leaf: CertificateRef<'_>, purpose: Purpose, now: i64) -> Result<(), VerifyError> {
    path_builder::check_certificate(leaf, now).map_err(|failure| failure.into_error())?;
    if !signature::is_strong_key(leaf.key()) {
        return Err(VerifyError::WeakKey { subject: error::subject(leaf) });
    }
    let usage_fits = match purpose {
        // As OpenSSL's purpose check: a client signs with its key or agrees on one
        Purpose::Client => leaf.fields.key_usage.is_none_or(|usage| usage.signs_or_agrees_keys()),
        Purpose::Server => {
            leaf.fields.key_usage.is_none_or(|usage| usage.signs_or_agrees_keys() || usage.key_encipherment())
        }
    };
    if !usage_fits || !path_builder::eku_allows(leaf, purpose) {
        return Err(VerifyError::InvalidPurpose {
            subject: error::subject(leaf),
            purpose: error::purpose_name(purpose),
        });
    }
    Ok(())
}

/// The anchor that is this very certificate.
fn find_pinned<'a>(anchors: &'a TrustAnchors, leaf: CertificateRef<'_>) -> Option<&'a Certificate> {
    let subject = leaf.subject();
    anchors
        .with_subject(subject, crate::name::folded_hash(subject))
        .find(|anchor| anchor.der().as_ref() == leaf.der)
}

/// A pinned leaf has no path. When its issuer is an anchor too and one of its lists revokes the
/// leaf, the list wins.
fn check_pinned_revocation(
    policy: &ClientAuth,
    leaf: CertificateRef<'_>,
    now: i64,
) -> Result<(), VerifyError> {
    if policy.crls().is_empty() {
        return Ok(());
    }
    let issuer = leaf.issuer();
    let revoked = policy.anchors().with_subject(issuer, crate::name::folded_hash(issuer)).any(|anchor| {
        let question = path::revocation_query(leaf, CertificateRef::of(anchor));
        policy.crl_set().status(&question, now) == RevocationStatus::Revoked
    });
    if revoked { Err(error::revoked(leaf)) } else { Ok(()) }
}

/// Names of the leaf, for `host`.
fn subject_alt_names<'a>(leaf: CertificateRef<'a>) -> impl Iterator<Item = GeneralName<'a>> {
    let extension = leaf.fields.subject_alt_name.map(|span| span.slice(leaf.der));
    extension.into_iter().flat_map(general_name::parse_list).map_while(Result::ok)
}

#[cfg(test)]
mod tests;
