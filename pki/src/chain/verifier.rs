//! Verifies a client or server: checks of the leaf, then a pinned leaf or a path to an anchor.
//!
//! Invariant: every `Ok` comes from `path_builder::run` or from the comparison with a pinned leaf;
//! `reverify` accepts only a path that one of them accepted before.

use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::error::{self, VerifyError};
use super::path_builder::{self, ChainOptions};
use super::types::{CertificateRef, Purpose, VerifiedClient};
use super::{path, server_name};
use crate::cert::Certificate;
use crate::cert::fields::Fields;
use crate::cert::general_name;
use crate::identity::Identity;
use crate::policy::{ClientAuth, TrustAnchors};
use crate::revocation::RevocationStatus;
use crate::{name, signature, unix_time};

/// Most intermediates of a server's chain, unless the caller says otherwise.
pub const SERVER_DEPTH: u32 = 10;

/// Verifies a client's certificate under a site's policy.
///
/// `intermediates` are the certificates behind the leaf in the client's Certificate message.
/// Computes a few signatures, and never more than the budgets of `path_builder` and `signatures`
/// allow.
///
/// # Errors
/// The most specific reason why no path is valid; see [`VerifyError`].
pub fn verify_client(
    policy: &ClientAuth,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<VerifiedClient, VerifyError> {
    verify_at_depth(policy, policy.depth(), leaf, intermediates, now)
}

pub(super) fn verify_at_depth(
    policy: &ClientAuth,
    depth: u32,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<VerifiedClient, VerifyError> {
    let options = ChainOptions {
        anchors: policy.anchors(),
        depth,
        purpose: Purpose::Client,
        crls: policy.checked_crls(),
        crl_prefer: policy.crl_prefer(),
    };
    let fields = parse_leaf(leaf)?;
    let end_entity = CertificateRef { der: leaf, fields: &fields };
    let now = unix_time::to_seconds(now);
    check_end_entity(end_entity, Purpose::Client, now)?;
    let (path, anchor, from, to) = match find_pinned(policy.anchors(), end_entity) {
        Some(anchor) => {
            check_pinned_revocation(policy, end_entity, now)?;
            (None, anchor.clone(), fields.not_before, fields.not_after)
        }
        None => {
            let verified = path_builder::run(&options, end_entity, intermediates, now)?;
            (Some(verified.path), verified.anchor.clone(), verified.from, verified.to)
        }
    };
    let identity = Identity::of(Certificate::from_parts(leaf, fields));
    Ok(VerifiedClient { identity, path, anchor, from, to })
}

/// Verifies a server's certificate for `name`, with at most 10 intermediates.
///
/// # Errors
/// The most specific reason why no path is valid, or that the certificate is for another name.
pub fn verify_server(
    anchors: &TrustAnchors,
    name: &ServerName<'_>,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), VerifyError> {
    verify_server_at_depth(anchors, SERVER_DEPTH, name, leaf, intermediates, now)
}

/// Like [`verify_server`], with at most `depth` intermediates. Checks the name last: names in a
/// certificate without a trusted issuer mean nothing.
///
/// # Errors
/// Those of [`verify_server`].
pub fn verify_server_at_depth(
    anchors: &TrustAnchors,
    depth: u32,
    name: &ServerName<'_>,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), VerifyError> {
    let fields = verify_server_path(anchors, depth, leaf, intermediates, now)?;
    server_name::verify_server_name(CertificateRef { der: leaf, fields: &fields }, name)
}

/// Verifies the chain of a server, with at most `depth` intermediates, for whatever name: the
/// caller decides about the returned identity.
///
/// # Errors
/// The most specific reason why no path is valid.
pub fn verify_server_chain(
    anchors: &TrustAnchors,
    depth: u32,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Identity, VerifyError> {
    let fields = verify_server_path(anchors, depth, leaf, intermediates, now)?;
    Ok(Identity::of(Certificate::from_parts(leaf, fields)))
}

fn verify_server_path(
    anchors: &TrustAnchors,
    depth: u32,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Fields, VerifyError> {
    let options = ChainOptions { anchors, depth, purpose: Purpose::Server, crls: None, crl_prefer: false };
    let fields = parse_leaf(leaf)?;
    let end_entity = CertificateRef { der: leaf, fields: &fields };
    let now = unix_time::to_seconds(now);
    check_end_entity(end_entity, Purpose::Server, now)?;
    if find_pinned(anchors, end_entity).is_none() {
        path_builder::run(&options, end_entity, intermediates, now)?;
    }
    Ok(fields)
}

fn parse_leaf(leaf: &[u8]) -> Result<Fields, VerifyError> {
    let fields = Fields::read(leaf).map_err(|error| VerifyError::Malformed { cause: error.to_string() })?;
    let malformed = |cause: &str| VerifyError::Malformed { cause: cause.to_owned() };
    if fields.issuer.slice(leaf).is_empty() {
        return Err(malformed("the issuer is empty (RFC 5280 4.1.2.4)"));
    }
    // Malformed names must not reach a name constraint, a header or a log.
    if let Some(names) = fields.subject_alt_name
        && general_name::parse_list(names.slice(leaf)).any(|name| name.is_err())
    {
        return Err(malformed("the subject alternative name cannot be read"));
    }
    Ok(fields)
}

/// Checks of the leaf that do not depend on the path.
fn check_end_entity(leaf: CertificateRef<'_>, purpose: Purpose, now: i64) -> Result<(), VerifyError> {
    path::check_certificate(leaf, now).map_err(|failure| failure.into_error())?;
    if !signature::is_strong_key(leaf.key()) {
        return Err(VerifyError::WeakKey { subject: error::subject(leaf) });
    }
    let usage_allowed = match purpose {
        // As in OpenSSL's purpose check: a client signs with its key or agrees on one.
        Purpose::Client => leaf.fields.key_usage.is_none_or(|usage| usage.signs_or_agrees_keys()),
        Purpose::Server => {
            leaf.fields.key_usage.is_none_or(|usage| usage.signs_or_agrees_keys() || usage.key_encipherment())
        }
    };
    if !usage_allowed || !path::eku_allows(leaf, purpose) {
        return Err(VerifyError::InvalidPurpose {
            subject: error::subject(leaf),
            purpose: error::purpose_name(purpose),
        });
    }
    Ok(())
}

/// The anchor that equals the leaf.
pub(super) fn find_pinned<'a>(
    anchors: &'a TrustAnchors,
    leaf: CertificateRef<'_>,
) -> Option<&'a Certificate> {
    let subject = leaf.subject();
    anchors.with_subject(subject, name::folded_hash(subject)).find(|anchor| anchor.der().as_ref() == leaf.der)
}

/// A pinned leaf has no path. When its issuer is an anchor too and one of its CRLs revokes the
/// leaf, the CRL wins.
fn check_pinned_revocation(
    policy: &ClientAuth,
    leaf: CertificateRef<'_>,
    now: i64,
) -> Result<(), VerifyError> {
    if policy.crls().is_empty() {
        return Ok(());
    }
    let issuer = leaf.issuer();
    let revoked = policy.anchors().with_subject(issuer, name::folded_hash(issuer)).any(|anchor| {
        let query = path::revocation_query(leaf, CertificateRef::of(anchor));
        policy.crl_set().status(&query, now) == RevocationStatus::Revoked
    });
    if revoked { Err(error::revoked(leaf)) } else { Ok(()) }
}
