//! The search for a path from a leaf to an anchor.
//!
//! Depth first, anchors before intermediates. First a path is laid by names and the cheap rules,
//! then `proof` checks its signatures from the anchor down, then names and revocation are judged.
//! Intermediates from which no anchor can be reached by name are left out from the start, so a peer
//! that sends a maze without an exit costs microseconds. What remains is bounded by budgets. A
//! failed path does not end the search: what it failed at is remembered, and the most telling
//! failure is the answer when no path is good. Invariant: a path is returned only if every
//! certificate of it passed `judge_common`, every issuer `judge_issuer` and `judge_names`, and
//! every link was proved.

use std::cell::OnceCell;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::error::{Failure, FailureCause, VerifyError};
use super::intermediates::{self, Intermediate};
use super::name_constraints::{self, ComparisonBudget};
use super::signatures::{BudgetExceeded, SignatureChecks};
use super::{CertificateRef, INTERMEDIATES_MAX, Purpose, error, path};
use crate::cert::Certificate;
use crate::der::{self, Reader};
use crate::name;
use crate::policy::TrustAnchors;
use crate::revocation::CrlSet;
use crate::signature::{self, SignatureCheck};

/// Candidates of the right name looked at in one verification. A good chain needs a few; each costs
/// under 2 us.
const CANDIDATES_MAX: u32 = 1024;

/// What is asked for.
pub(super) struct ChainOptions<'a> {
    pub(super) anchors: &'a TrustAnchors,
    /// Most intermediates that are not self-issued.
    pub(super) depth: u32,
    pub(super) purpose: Purpose,
    /// Revocation lists, when revocation is checked.
    pub(super) crls: Option<&'a CrlSet>,
    /// Accept an unknown or stale status.
    pub(super) crl_prefer: bool,
}

/// A good path and the period in which it is good, seconds since 1970.
pub(super) struct VerifiedPath<'a> {
    /// The intermediates, from the leaf upwards.
    pub(super) path: Arc<[Certificate]>,
    pub(super) anchor: &'a Certificate,
    pub(super) from: i64,
    pub(super) to: i64,
}

/// Why the search ended without a path.
enum BranchEnd {
    /// This branch has no more candidates.
    NoCandidate,
    /// The signature of the branch's certificate at this place (0 is the leaf) was not made by the
    /// one above it: nothing further up mends that.
    BrokenLink { link: usize },
    /// A budget is used up: no branch may go on.
    BudgetExceeded,
}

/// Looks for a path for a leaf that `judge_leaf` has passed.
pub(super) fn run<'a>(
    demand: &ChainOptions<'a>,
    leaf: CertificateRef<'_>,
    sent: &[CertificateDer<'_>],
    now: i64,
) -> Result<VerifiedPath<'a>, VerifyError> {
    if sent.len() > INTERMEDIATES_MAX {
        return Err(VerifyError::TooManyCertificates { found: sent.len() });
    }
    let parsed = OnceCell::new();
    let mut search = PathBuilder {
        demand,
        leaf,
        sent,
        parsed: &parsed,
        now,
        path: Vec::new(),
        ca_bits: 0,
        signatures: SignatureChecks::new(demand.anchors.same_subject_max()),
        candidates_left: CANDIDATES_MAX,
        name_budget: ComparisonBudget::default(),
        failure: None,
    };
    search.run()
}

/// The leaf or an intermediate, in the role of the certificate whose issuer is looked for.
#[derive(Clone, Copy)]
struct PathNode<'s> {
    view: CertificateRef<'s>,
    issuer_hash: u64,
    /// None for the leaf.
    intermediate: Option<&'s Intermediate<'s>>,
}

impl<'s> PathNode<'s> {
    fn of(sent: &'s Intermediate<'s>) -> Self {
        Self { view: sent.view(), issuer_hash: sent.issuer_hash, intermediate: Some(sent) }
    }

    /// Place among the certificates sent; none for the leaf.
    fn index(&self) -> Option<usize> {
        self.intermediate.map(|sent| sent.index)
    }

    fn to_certificate(self) -> Certificate {
        Certificate::from_parts(self.view.der, self.view.fields.clone())
    }

    /// Its bit among the authorities; none for the leaf.
    fn ca_bit(&self) -> u128 {
        self.intermediate.map_or(0, |sent| sent.ca_bit)
    }

    /// Self-issued intermediates count neither for `depth` nor for pathLenConstraint (RFC 5280
    /// 4.2.1.9).
    fn is_self_issued(&self) -> bool {
        self.intermediate.is_some_and(|sent| sent.is_self_issued)
    }
}

/// One verification's search.
struct PathBuilder<'s, 'a, 'd> {
    demand: &'s ChainOptions<'a>,
    leaf: CertificateRef<'s>,
    sent: &'s [CertificateDer<'d>],
    /// Read when the leaf's issuer is no anchor.
    parsed: &'s OnceCell<Vec<Intermediate<'s>>>,
    now: i64,
    /// The intermediates of the branch being tried, from the leaf upwards.
    path: Vec<PathNode<'s>>,
    /// The authorities of the branch, a bit each.
    ca_bits: u128,
    signatures: SignatureChecks<'s>,
    candidates_left: u32,
    name_budget: ComparisonBudget,
    failure: Option<Failure<'s>>,
}

impl<'s, 'a: 's> PathBuilder<'s, 'a, '_> {
    fn run(&mut self) -> Result<VerifiedPath<'a>, VerifyError> {
        let leaf = PathNode {
            view: self.leaf,
            issuer_hash: name::folded_hash(self.leaf.issuer()),
            intermediate: None,
        };
        match self.extend(leaf) {
            Ok(found) => Ok(found),
            Err(BranchEnd::BudgetExceeded) => {
                Err(VerifyError::BudgetExceeded { checks: self.signatures.count() })
            }
            Err(BranchEnd::NoCandidate | BranchEnd::BrokenLink { .. }) => Err(match self.failure {
                Some(failure) => failure.into_error(),
                None => self.unknown_issuer(leaf),
            }),
        }
    }

    /// Looks for an issuer of `child`, the end of the branch so far: first among the anchors, then
    /// among the intermediates.
    fn extend(&mut self, child: PathNode<'s>) -> Result<VerifiedPath<'a>, BranchEnd> {
        let demand = self.demand;
        for hint in KeyIdHint::IN_ORDER {
            for anchor in demand.anchors.with_subject(child.view.issuer(), child.issuer_hash) {
                let issuer = CertificateRef::of(anchor);
                if KeyIdHint::of(child.view, issuer) == hint {
                    let ended = self.try_anchor(child, issuer, anchor);
                    if self.is_final(&ended) {
                        return ended;
                    }
                }
            }
        }
        let parsed = self.parsed();
        for hint in KeyIdHint::IN_ORDER {
            for candidate in parsed {
                let named = candidate.reaches_anchor && candidate.subject_hash == child.issuer_hash;
                // The same CA with the same key below already: going round once more proves nothing new.
                let once_more = self.ca_bits & candidate.ca_bit != 0;
                if !named || once_more || KeyIdHint::of(child.view, candidate.view()) != hint {
                    continue;
                }
                let ended = self.try_intermediate(child, PathNode::of(candidate));
                if self.is_final(&ended) {
                    return ended;
                }
            }
        }
        Err(BranchEnd::NoCandidate)
    }

    /// Whether the next candidate at the end of the branch cannot do better.
    fn is_final(&self, ended: &Result<VerifiedPath<'a>, BranchEnd>) -> bool {
        match ended {
            Err(BranchEnd::NoCandidate) => false,
            Err(BranchEnd::BrokenLink { link }) => *link < self.path.len(),
            Ok(_) | Err(BranchEnd::BudgetExceeded) => true,
        }
    }

    fn try_anchor(
        &mut self,
        child: PathNode<'s>,
        issuer: CertificateRef<'s>,
        anchor: &'a Certificate,
    ) -> Result<VerifiedPath<'a>, BranchEnd> {
        self.spend_step(issuer)?;
        self.check_issuer(child, issuer, true)?;
        self.verify_signatures(issuer)?;
        let judged = self.check_name_constraints(issuer).and_then(|()| self.check_revocation(issuer));
        match judged {
            Ok(until) => {
                let (from, to) = path::validity_period(self.branch_certificates().chain([issuer]));
                let path = self.path.iter().map(|node| node.to_certificate()).collect();
                Ok(VerifiedPath { path, anchor, from, to: to.min(until) })
            }
            Err(_) if self.name_budget.is_exhausted() => Err(BranchEnd::BudgetExceeded),
            Err(failure) => self.fail(failure),
        }
    }

    fn try_intermediate(
        &mut self,
        child: PathNode<'s>,
        issuer: PathNode<'s>,
    ) -> Result<VerifiedPath<'a>, BranchEnd> {
        self.spend_step(issuer.view)?;
        if !name::names_match(issuer.view.subject(), child.view.issuer()) {
            return Err(BranchEnd::NoCandidate);
        }
        let counted = self.counted_depth() + u32::from(!issuer.is_self_issued());
        if counted > self.demand.depth {
            let rule = FailureCause::DepthExceeded { limit: self.demand.depth };
            return self.fail(Failure { certificate: issuer.view, cause: rule });
        }
        if self.leaf.fields.version != 3 {
            // Without extensions nobody limited what the leaf is for; only an operator's own anchor may vouch
            // for it.
            return self
                .fail(Failure { certificate: self.leaf, cause: FailureCause::UnsupportedCertVersion });
        }
        self.check_issuer(child, issuer.view, false)?;
        self.path.push(issuer);
        self.ca_bits |= issuer.ca_bit();
        let ended = self.extend(issuer);
        self.ca_bits &= !issuer.ca_bit();
        self.path.pop();
        ended
    }

    /// What an issuer must satisfy above the branch so far, short of its signature on `child`.
    fn check_issuer(
        &mut self,
        child: PathNode<'s>,
        issuer: CertificateRef<'s>,
        is_anchor: bool,
    ) -> Result<(), BranchEnd> {
        if let Some(problem) = issuer_problem(issuer, is_anchor) {
            return self.fail(Failure { certificate: issuer, cause: FailureCause::IssuerNotCa { problem } });
        }
        if let Err(failure) = check_certificate(issuer, self.now) {
            return self.fail(failure);
        }
        if !eku_allows(issuer, self.demand.purpose) {
            let rule = FailureCause::InvalidPurpose { purpose: self.demand.purpose };
            return self.fail(Failure { certificate: issuer, cause: rule });
        }
        let path_length =
            issuer.fields.basic_constraints.and_then(|constraints| constraints.path_length).map(u32::from);
        if let Some(limit) = path_length.filter(|limit| self.counted_depth() > *limit) {
            return self
                .fail(Failure { certificate: issuer, cause: FailureCause::PathLengthExceeded { limit } });
        }
        if !signature::is_strong_key(issuer.key()) {
            return self.fail(Failure { certificate: issuer, cause: FailureCause::WeakKey });
        }
        if !signature::is_supported(issuer.key(), child.view.fields.signature_algorithm.slice(child.view.der))
        {
            return self.fail(Failure { certificate: child.view, cause: FailureCause::WeakKey });
        }
        match self.signatures.cached(child.index(), issuer.key().key) {
            Some(SignatureCheck::Valid) | None => Ok(()),
            Some(_) => Err(BranchEnd::NoCandidate), // noted when it was found out
        }
    }

    /// Checks the signatures of the branch up to `anchor`, its end.
    fn verify_signatures(&mut self, anchor: CertificateRef<'s>) -> Result<(), BranchEnd> {
        let mut issuer = anchor;
        for link in (0..=self.path.len()).rev() {
            let node = link.checked_sub(1).and_then(|above| self.path.get(above)).copied();
            let (child, place) = node.map_or((self.leaf, None), |node| (node.view, node.index()));
            let rule = match self.signatures.verify(child, place, issuer.key()) {
                Ok(SignatureCheck::Valid) => {
                    issuer = child;
                    continue;
                }
                Ok(SignatureCheck::Invalid) => FailureCause::BadSignature { issuer },
                Ok(SignatureCheck::Unsupported) => FailureCause::WeakKey,
                Err(BudgetExceeded) => return Err(BranchEnd::BudgetExceeded),
            };
            self.note(Failure { certificate: child, cause: rule });
            return Err(BranchEnd::BrokenLink { link });
        }
        Ok(())
    }

    /// Judges the names of a proved path by the name constraints of every issuer in it.
    fn check_name_constraints(&mut self, anchor: CertificateRef<'s>) -> Result<(), Failure<'s>> {
        let authorities = self.path.iter().map(|node| node.view).chain([anchor]);
        for (above, authority) in authorities.enumerate() {
            if authority.fields.name_constraints.is_none() {
                continue;
            }
            // Self-issued certificates are exempt, except as the leaf (RFC 5280 4.2.1.10)
            let below = self.path.iter().take(above).filter(|node| !node.is_self_issued());
            for certificate in std::iter::once(self.leaf).chain(below.map(|node| node.view)) {
                if let Err(problem) =
                    name_constraints::check_name_constraints(authority, certificate, &mut self.name_budget)
                {
                    let rule = FailureCause::NameConstraintViolation { authority, problem };
                    return Err(Failure { certificate, cause: rule });
                }
            }
        }
        Ok(())
    }

    fn check_revocation(&self, anchor: CertificateRef<'s>) -> Result<i64, Failure<'s>> {
        let Some(crls) = self.demand.crls else { return Ok(i64::MAX) };
        path::check_revocation(
            crls,
            self.demand.crl_prefer,
            self.branch_certificates().chain([anchor]),
            self.now,
        )
    }

    /// The leaf and the intermediates of the branch, from the leaf upwards.
    fn branch_certificates(&self) -> impl Iterator<Item = CertificateRef<'s>> + Clone {
        std::iter::once(self.leaf).chain(self.path.iter().map(|node| node.view))
    }

    /// Intermediates of the branch that count: those that are not self-issued.
    fn counted_depth(&self) -> u32 {
        self.path.iter().map(|node| u32::from(!node.is_self_issued())).sum()
    }

    /// Looking at a candidate costs more when its name is long.
    fn spend_step(&mut self, candidate: CertificateRef<'_>) -> Result<(), BranchEnd> {
        let cost = u32::try_from(1 + candidate.subject().len() / 256).unwrap_or(CANDIDATES_MAX);
        self.candidates_left = self.candidates_left.checked_sub(cost).ok_or(BranchEnd::BudgetExceeded)?;
        Ok(())
    }

    /// Remembers the most telling failure.
    fn note(&mut self, failure: Failure<'s>) {
        if self.failure.is_none_or(|known| failure.is_more_specific_than(&known)) {
            self.failure = Some(failure);
        }
    }

    /// Ends this branch with what is wrong with it.
    fn fail<T>(&mut self, failure: Failure<'s>) -> Result<T, BranchEnd> {
        self.note(failure);
        Err(BranchEnd::NoCandidate)
    }

    /// The intermediates, read when first asked for.
    fn parsed(&self) -> &'s [Intermediate<'s>] {
        let (sent, anchors) = (self.sent, self.demand.anchors);
        self.parsed.get_or_init(|| intermediates::parse_all(sent, anchors))
    }

    /// Follows the names upwards from the leaf, to say where the path ends.
    fn unknown_issuer(&self, leaf: PathNode<'s>) -> VerifyError {
        let parsed = self.parsed();
        let (mut last, mut hash) = (leaf.view, leaf.issuer_hash);
        for _ in 0..parsed.len() {
            let next = parsed.iter().find(|sent| sent.subject_hash == hash && sent.issuer_hash != hash);
            let Some(next) = next else { break };
            (last, hash) = (next.view(), next.issuer_hash);
        }
        VerifyError::UnknownIssuer { subject: error::subject(last), issuer: name::to_rfc2253(last.issuer()) }
    }
}

/// What every certificate of a path must satisfy by itself.
pub(super) fn check_certificate(certificate: CertificateRef<'_>, now: i64) -> Result<(), Failure<'_>> {
    let fields = certificate.fields;
    let rule = if fields.unknown_critical.is_some() {
        FailureCause::UnsupportedCriticalExtension
    } else if now < fields.not_before {
        FailureCause::NotYetValid
    } else if now > fields.not_after {
        FailureCause::Expired
    } else {
        return Ok(());
    };
    Err(Failure { certificate, cause: rule })
}

/// Which rule of RFC 5280 4.2.1.3 and 4.2.1.9 keeps a certificate from issuing.
fn issuer_problem(issuer: CertificateRef<'_>, is_anchor: bool) -> Option<&'static str> {
    let fields = issuer.fields;
    if fields.version != 3 {
        // It cannot say that it is a CA. An anchor need not, for the operator says so.
        return (!is_anchor)
            .then_some("it is an X.509 v1 certificate, which only a certificate of the CA bundle may be");
    }
    match fields.basic_constraints {
        None => Some("it has no basicConstraints, so it is not a CA"),
        Some(constraints) if !constraints.ca => Some("its basicConstraints say CA:FALSE"),
        Some(_) if fields.key_usage.is_some_and(|usage| !usage.key_cert_sign()) => {
            Some("its keyUsage lacks keyCertSign")
        }
        Some(_) => None,
    }
}

/// An extKeyUsage, when there is one, must name the purpose: in the leaf as in every issuer (as
/// OpenSSL and webpki have it).
pub(super) fn eku_allows(certificate: CertificateRef<'_>, purpose: Purpose) -> bool {
    /// id-kp, 1.3.6.1.5.5.7.3
    const ID_KP: [u8; 7] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03];
    let Some(list) = certificate.fields.extended_key_usage else { return true };
    let last = match purpose {
        Purpose::Server => 1,
        Purpose::Client => 2,
    };
    let mut purposes = Reader::new(list.slice(certificate.der));
    std::iter::from_fn(|| purposes.expect(der::OID).ok())
        .any(|oid| oid.content.split_last().is_some_and(|(end, start)| *end == last && start == ID_KP))
}

/// What the key identifiers say about an issuer. Hints only (RFC 5280 4.2.1.1), so they decide what
/// is tried first and nothing else.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyIdHint {
    Match,
    /// One of the two has none.
    Absent,
    Mismatch,
}

impl KeyIdHint {
    const IN_ORDER: [Self; 3] = [Self::Match, Self::Absent, Self::Mismatch];

    fn of(child: CertificateRef<'_>, issuer: CertificateRef<'_>) -> Self {
        match (child.fields.authority_key_id, issuer.fields.subject_key_id) {
            (Some(wanted), Some(found)) if wanted.slice(child.der) == found.slice(issuer.der) => Self::Match,
            (Some(_), Some(_)) => Self::Mismatch,
            _ => Self::Absent,
        }
    }
}
