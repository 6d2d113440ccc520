//! The intermediates that a peer sent behind its leaf, parsed once and indexed for the path
//! builder.
//!
//! None of them is trusted yet. Names are reduced to hashes, which the path builder compares;
//! malformed certificates are ignored. Invariant: at most [`INTERMEDIATES_MAX`] are parsed.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use rustls_pki_types::CertificateDer;

use super::types::{CertificateRef, INTERMEDIATES_MAX};
use crate::cert::fields::Fields;
use crate::name;
use crate::policy::TrustAnchors;

const _: () = assert!(INTERMEDIATES_MAX <= u128::BITS as usize, "each authority sent has a bit of its own");

/// A certificate behind the peer's leaf.
pub(super) struct Intermediate<'a> {
    /// Index among the peer's intermediates.
    pub(super) index: usize,
    der: &'a [u8],
    fields: Fields,
    pub(super) subject_hash: u64,
    pub(super) issuer_hash: u64,
    /// One bit for each pair of subject and key: certificates with the same bit are of the same CA.
    pub(super) ca_bit: u128,
    pub(super) is_self_issued: bool,
    /// By names alone, a path leads from this certificate to an anchor.
    pub(super) reaches_anchor: bool,
}

impl<'a> Intermediate<'a> {
    fn read((place, der): (usize, &'a CertificateDer<'_>), anchors: &TrustAnchors) -> Option<Self> {
        let fields = Fields::read(der).ok()?;
        let subject_hash = name::folded_hash(fields.subject.slice(der));
        let issuer_hash = name::folded_hash(fields.issuer.slice(der));
        Some(Self {
            index: place,
            der,
            subject_hash,
            issuer_hash,
            ca_bit: 0,
            is_self_issued: fields.is_self_issued(der),
            reaches_anchor: anchors.may_have_subject(issuer_hash),
            fields,
        })
    }

    pub(super) fn view(&self) -> CertificateRef<'_> {
        CertificateRef { der: self.der, fields: &self.fields }
    }

    fn ca_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.subject_hash, self.fields.key(self.der).key).hash(&mut hasher);
        hasher.finish()
    }
}

/// Parses the intermediates and drops malformed ones.
pub(super) fn parse_all<'a>(
    intermediates: &'a [CertificateDer<'_>],
    anchors: &TrustAnchors,
) -> Vec<Intermediate<'a>> {
    let numbered = intermediates.iter().take(INTERMEDIATES_MAX).enumerate();
    let mut intermediates: Vec<Intermediate<'a>> =
        numbered.filter_map(|one| Intermediate::read(one, anchors)).collect();
    propagate_reachability(&mut intermediates);
    assign_ca_bits(&mut intermediates);
    intermediates
}

/// Marks each certificate whose issuer reaches an anchor. Each certificate is visited once, so at
/// most the square of [`INTERMEDIATES_MAX`] hashes are compared.
fn propagate_reachability(intermediates: &mut [Intermediate<'_>]) {
    let mut queue: Vec<u64> =
        intermediates.iter().filter(|one| one.reaches_anchor).map(|one| one.subject_hash).collect();
    while let Some(subject_hash) = queue.pop() {
        for one in
            intermediates.iter_mut().filter(|one| !one.reaches_anchor && one.issuer_hash == subject_hash)
        {
            one.reaches_anchor = true;
            queue.push(one.subject_hash);
        }
    }
}

/// Assigns a bit to each pair of subject and key. Certificates that reach no anchor are never used
/// and get none.
fn assign_ca_bits(intermediates: &mut [Intermediate<'_>]) {
    let mut known: Vec<u64> = Vec::with_capacity(intermediates.len());
    for one in intermediates.iter_mut().filter(|one| one.reaches_anchor) {
        let hash = one.ca_hash();
        let number = known.iter().position(|other| *other == hash).unwrap_or_else(|| {
            known.push(hash);
            known.len() - 1
        });
        one.ca_bit = 1_u128 << number; // fewer than 128, see above
    }
}
