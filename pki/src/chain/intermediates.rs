//! The certificates a peer sent behind its leaf, read once and made ready for the search.
//!
//! Everything here is the peer's choice and nothing is believed yet. Names are reduced to numbers,
//! so that the search compares numbers; what cannot be read is a stranger and left out. Invariant:
//! at most [`SENT_CERTIFICATES_MAX`] are read.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use rustls_pki_types::CertificateDer;

use super::{CertificateRef, INTERMEDIATES_MAX};
use crate::cert::fields::Fields;
use crate::name;
use crate::policy::TrustAnchors;

const _: () = assert!(INTERMEDIATES_MAX <= u128::BITS as usize, "each authority sent has a bit of its own");

/// A certificate the peer sent behind its leaf.
pub(super) struct Intermediate<'a> {
    /// Among those sent.
    pub(super) index: usize,
    der: &'a [u8],
    fields: Fields,
    pub(super) subject_hash: u64,
    pub(super) issuer_hash: u64,
    /// One bit for each subject and key: certificates with the same one speak for the same CA.
    pub(super) ca_bit: u128,
    pub(super) is_self_issued: bool,
    /// By names alone, a path leads from here to an anchor.
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

/// Reads what can be read.
pub(super) fn parse_all<'a>(sent: &'a [CertificateDer<'_>], anchors: &TrustAnchors) -> Vec<Intermediate<'a>> {
    let numbered = sent.iter().take(INTERMEDIATES_MAX).enumerate();
    let mut parsed: Vec<Intermediate<'a>> =
        numbered.filter_map(|one| Intermediate::read(one, anchors)).collect();
    propagate_reachability(&mut parsed);
    assign_ca_bits(&mut parsed);
    parsed
}

/// Whoever is issued by one that reaches an anchor reaches it too. Each certificate is taken up
/// once, so the work is quadratic in at most [`SENT_CERTIFICATES_MAX`] comparisons of numbers.
fn propagate_reachability(parsed: &mut [Intermediate<'_>]) {
    let mut fresh: Vec<u64> =
        parsed.iter().filter(|sent| sent.reaches_anchor).map(|sent| sent.subject_hash).collect();
    while let Some(subject_hash) = fresh.pop() {
        for sent in parsed.iter_mut().filter(|sent| !sent.reaches_anchor && sent.issuer_hash == subject_hash)
        {
            sent.reaches_anchor = true;
            fresh.push(sent.subject_hash);
        }
    }
}

/// Gives each pair of subject and key a bit. Those that reach no anchor are never looked at and
/// need none.
fn assign_ca_bits(parsed: &mut [Intermediate<'_>]) {
    let mut known: Vec<u64> = Vec::with_capacity(parsed.len());
    for sent in parsed.iter_mut().filter(|sent| sent.reaches_anchor) {
        let hash = sent.ca_hash();
        let number = known.iter().position(|other| *other == hash).unwrap_or_else(|| {
            known.push(hash);
            known.len() - 1
        });
        sent.ca_bit = 1_u128 << number; // fewer than 128, see above
    }
}
