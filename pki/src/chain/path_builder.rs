//! Builds a path from a leaf to a trust anchor.
//!
//! Depth first, anchors before intermediates. A candidate path is built by names and the cheap
//! rules, then `signatures` checks its signatures from the anchor down, then names and revocation
//! are checked. Intermediates from which no anchor can be reached by name are ignored from the
//! start, so an adversarial set of certificates costs microseconds. Budgets bound the rest. A
//! failed path does not end the search; the most specific failure is reported when no path is
//! valid. Invariant: a path is returned only if every certificate of it passed `check_certificate`,
//! every issuer `check_issuer` and `check_name_constraints`, and every link has a valid signature.

use std::cell::OnceCell;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::error::{Failure, FailureCause, VerifyError};
use super::intermediates::{self, Intermediate};
use super::name_constraints::{self, ComparisonBudget};
use super::signatures::{BudgetExceeded, SignatureChecks};
use super::types::{CertificateRef, INTERMEDIATES_MAX, Purpose};
use super::{error, path};
use crate::cert::Certificate;
use crate::name;
use crate::policy::TrustAnchors;
use crate::revocation::CrlSet;
use crate::signature::{self, SignatureCheck};

/// Candidates of the right name that one verification may try. A good chain needs a few; each costs
/// under 2 us.
const CANDIDATES_MAX: u32 = 1024;

/// The requirements on the path.
pub(super) struct ChainOptions<'a> {
    pub(super) anchors: &'a TrustAnchors,
    /// Most intermediates, self-issued ones not counted.
    pub(super) depth: u32,
    pub(super) purpose: Purpose,
    /// The CRLs, when revocation is checked.
    pub(super) crls: Option<&'a CrlSet>,
    /// Accept an unknown or stale status.
    pub(super) crl_prefer: bool,
}

/// A valid path and its validity period, seconds since 1970.
pub(super) struct VerifiedPath<'a> {
    /// The intermediates, from the leaf upwards.
    pub(super) path: Arc<[Certificate]>,
    pub(super) anchor: &'a Certificate,
    pub(super) from: i64,
    pub(super) to: i64,
}

/// Why a branch of the search ended without a path.
enum BranchEnd {
    /// The branch has no more candidates.
    NoCandidate,
    /// The certificate at this index of the branch (0 is the leaf) was not signed by the one above
    /// it: no other certificate further up can repair the branch.
    BrokenLink { link: usize },
    /// A budget is exhausted: the whole search ends.
    BudgetExceeded,
}

/// Builds a path for a leaf that passed `check_end_entity`.
pub(super) fn run<'a>(
    options: &ChainOptions<'a>,
    leaf: CertificateRef<'_>,
    intermediates: &[CertificateDer<'_>],
    now: i64,
) -> Result<VerifiedPath<'a>, VerifyError> {
    if intermediates.len() > INTERMEDIATES_MAX {
        return Err(VerifyError::TooManyCertificates { found: intermediates.len() });
    }
    let parsed = OnceCell::new();
    let mut search = PathBuilder {
        options,
        leaf,
        intermediates,
        parsed: &parsed,
        now,
        path: Vec::new(),
        ca_bits: 0,
        signatures: SignatureChecks::new(options.anchors.same_subject_max()),
        candidates_left: CANDIDATES_MAX,
        name_budget: ComparisonBudget::default(),
        failure: None,
    };
    search.run()
}

/// The leaf or an intermediate of the branch.
#[derive(Clone, Copy)]
struct PathNode<'s> {
    view: CertificateRef<'s>,
    issuer_hash: u64,
    /// `None` for the leaf.
    intermediate: Option<&'s Intermediate<'s>>,
}

impl<'s> PathNode<'s> {
    fn of(intermediate: &'s Intermediate<'s>) -> Self {
        Self {
            view: intermediate.view(),
            issuer_hash: intermediate.issuer_hash,
            intermediate: Some(intermediate),
        }
    }

    /// Index among the peer's intermediates; `None` for the leaf.
    fn index(&self) -> Option<usize> {
        self.intermediate.map(|one| one.index)
    }

    fn to_certificate(self) -> Certificate {
        Certificate::from_parts(self.view.der, self.view.fields.clone())
    }

    /// The bit of its subject and key; none for the leaf.
    fn ca_bit(&self) -> u128 {
        self.intermediate.map_or(0, |one| one.ca_bit)
    }

    /// Self-issued intermediates count neither for `depth` nor for pathLenConstraint (RFC 5280
    /// 4.2.1.9).
    fn is_self_issued(&self) -> bool {
        self.intermediate.is_some_and(|one| one.is_self_issued)
    }
}

/// The state of one search.
struct PathBuilder<'s, 'a, 'd> {
    options: &'s ChainOptions<'a>,
    leaf: CertificateRef<'s>,
    intermediates: &'s [CertificateDer<'d>],
    /// Parsed when no anchor issued the leaf.
    parsed: &'s OnceCell<Vec<Intermediate<'s>>>,
    now: i64,
    /// The intermediates of the current branch, from the leaf upwards.
    path: Vec<PathNode<'s>>,
    /// The bits of the CAs of the branch.
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
            Ok(path) => Ok(path),
            Err(BranchEnd::BudgetExceeded) => {
                Err(VerifyError::BudgetExceeded { checks: self.signatures.count() })
            }
            Err(BranchEnd::NoCandidate | BranchEnd::BrokenLink { .. }) => Err(match self.failure {
                Some(failure) => failure.into_error(),
                None => self.unknown_issuer(leaf),
            }),
        }
    }

    /// Tries the issuers of `child`, the end of the branch: anchors first, then intermediates.
    fn extend(&mut self, child: PathNode<'s>) -> Result<VerifiedPath<'a>, BranchEnd> {
        let options = self.options;
        for hint in KeyIdHint::IN_ORDER {
            for anchor in options.anchors.with_subject(child.view.issuer(), child.issuer_hash) {
                let issuer = CertificateRef::of(anchor);
                if KeyIdHint::of(child.view, issuer) == hint {
                    let result = self.try_anchor(child, issuer, anchor);
                    if self.is_final(&result) {
                        return result;
                    }
                }
            }
        }
        let parsed = self.parsed();
        for hint in KeyIdHint::IN_ORDER {
            for candidate in parsed {
                let is_candidate = candidate.reaches_anchor && candidate.subject_hash == child.issuer_hash;
                // The branch already contains this CA with this key: a cycle adds nothing.
                let is_cycle = self.ca_bits & candidate.ca_bit != 0;
                if !is_candidate || is_cycle || KeyIdHint::of(child.view, candidate.view()) != hint {
                    continue;
                }
                let result = self.try_intermediate(child, PathNode::of(candidate));
                if self.is_final(&result) {
                    return result;
                }
            }
        }
        Err(BranchEnd::NoCandidate)
    }

    /// Whether no other candidate at the end of the branch can change the result.
    fn is_final(&self, result: &Result<VerifiedPath<'a>, BranchEnd>) -> bool {
        match result {
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
        let checked = self.check_name_constraints(issuer).and_then(|()| self.check_revocation(issuer));
        match checked {
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
        if counted > self.options.depth {
            let cause = FailureCause::DepthExceeded { limit: self.options.depth };
            return self.fail(Failure { certificate: issuer.view, cause });
        }
        if self.leaf.fields.version != 3 {
            // A leaf without extensions states no usage; only an operator's own anchor may issue
            // such a leaf.
            return self
                .fail(Failure { certificate: self.leaf, cause: FailureCause::UnsupportedCertVersion });
        }
        self.check_issuer(child, issuer.view, false)?;
        self.path.push(issuer);
        self.ca_bits |= issuer.ca_bit();
        let result = self.extend(issuer);
        self.ca_bits &= !issuer.ca_bit();
        self.path.pop();
        result
    }

    /// Checks an issuer above the current branch, except for its signature on `child`.
    fn check_issuer(
        &mut self,
        child: PathNode<'s>,
        issuer: CertificateRef<'s>,
        is_anchor: bool,
    ) -> Result<(), BranchEnd> {
        if let Some(problem) = issuer_problem(issuer, is_anchor) {
            return self.fail(Failure { certificate: issuer, cause: FailureCause::IssuerNotCa { problem } });
        }
        if let Err(failure) = path::check_certificate(issuer, self.now) {
            return self.fail(failure);
        }
        if !path::eku_allows(issuer, self.options.purpose) {
            let cause = FailureCause::InvalidPurpose { purpose: self.options.purpose };
            return self.fail(Failure { certificate: issuer, cause });
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
            Some(_) => Err(BranchEnd::NoCandidate), // noted when it was path out
        }
    }

    /// Checks the signatures of the branch, from `anchor` down.
    fn verify_signatures(&mut self, anchor: CertificateRef<'s>) -> Result<(), BranchEnd> {
        let mut issuer = anchor;
        for link in (0..=self.path.len()).rev() {
            let node = link.checked_sub(1).and_then(|above| self.path.get(above)).copied();
            let (child, place) = node.map_or((self.leaf, None), |node| (node.view, node.index()));
            let cause = match self.signatures.verify(child, place, issuer.key()) {
                Ok(SignatureCheck::Valid) => {
                    issuer = child;
                    continue;
                }
                Ok(SignatureCheck::Invalid) => FailureCause::BadSignature { issuer },
                Ok(SignatureCheck::Unsupported) => FailureCause::WeakKey,
                Err(BudgetExceeded) => return Err(BranchEnd::BudgetExceeded),
            };
            self.note(Failure { certificate: child, cause });
            return Err(BranchEnd::BrokenLink { link });
        }
        Ok(())
    }

    /// Checks the names of a path with valid signatures against the name constraints of every
    /// issuer.
    fn check_name_constraints(&mut self, anchor: CertificateRef<'s>) -> Result<(), Failure<'s>> {
        let authorities = self.path.iter().map(|node| node.view).chain([anchor]);
        for (above, authority) in authorities.enumerate() {
            if authority.fields.name_constraints.is_none() {
                continue;
            }
            // Self-issued certificates are exempt, except as the leaf (RFC 5280 4.2.1.10).
            let below = self.path.iter().take(above).filter(|node| !node.is_self_issued());
            for certificate in std::iter::once(self.leaf).chain(below.map(|node| node.view)) {
                if let Err(problem) =
                    name_constraints::check_name_constraints(authority, certificate, &mut self.name_budget)
                {
                    let cause = FailureCause::NameConstraintViolation { authority, problem };
                    return Err(Failure { certificate, cause });
                }
            }
        }
        Ok(())
    }

    fn check_revocation(&self, anchor: CertificateRef<'s>) -> Result<i64, Failure<'s>> {
        let Some(crls) = self.options.crls else { return Ok(i64::MAX) };
        path::check_revocation(
            crls,
            self.options.crl_prefer,
            self.branch_certificates().chain([anchor]),
            self.now,
        )
    }

    /// The leaf and the intermediates of the branch, from the leaf upwards.
    fn branch_certificates(&self) -> impl Iterator<Item = CertificateRef<'s>> + Clone {
        std::iter::once(self.leaf).chain(self.path.iter().map(|node| node.view))
    }

    /// Intermediates of the branch, self-issued ones not counted.
    fn counted_depth(&self) -> u32 {
        self.path.iter().map(|node| u32::from(!node.is_self_issued())).sum()
    }

    /// Charges one candidate; a long name costs more.
    fn spend_step(&mut self, candidate: CertificateRef<'_>) -> Result<(), BranchEnd> {
        let cost = u32::try_from(1 + candidate.subject().len() / 256).unwrap_or(CANDIDATES_MAX);
        self.candidates_left = self.candidates_left.checked_sub(cost).ok_or(BranchEnd::BudgetExceeded)?;
        Ok(())
    }

    /// Keeps the most specific failure.
    fn note(&mut self, failure: Failure<'s>) {
        if self.failure.is_none_or(|known| failure.is_more_specific_than(&known)) {
            self.failure = Some(failure);
        }
    }

    /// Records the failure and ends the branch.
    fn fail<T>(&mut self, failure: Failure<'s>) -> Result<T, BranchEnd> {
        self.note(failure);
        Err(BranchEnd::NoCandidate)
    }

    /// The intermediates, parsed on first use.
    fn parsed(&self) -> &'s [Intermediate<'s>] {
        let (intermediates, anchors) = (self.intermediates, self.options.anchors);
        self.parsed.get_or_init(|| intermediates::parse_all(intermediates, anchors))
    }

    /// Follows the names upwards from the leaf, to report where the path ends.
    fn unknown_issuer(&self, leaf: PathNode<'s>) -> VerifyError {
        let parsed = self.parsed();
        let (mut last, mut hash) = (leaf.view, leaf.issuer_hash);
        for _ in 0..parsed.len() {
            let next = parsed.iter().find(|one| one.subject_hash == hash && one.issuer_hash != hash);
            let Some(next) = next else { break };
            (last, hash) = (next.view(), next.issuer_hash);
        }
        VerifyError::UnknownIssuer { subject: error::subject(last), issuer: name::to_rfc2253(last.issuer()) }
    }
}

/// Which rule of RFC 5280 4.2.1.3 or 4.2.1.9 forbids a certificate to issue others.
fn issuer_problem(issuer: CertificateRef<'_>, is_anchor: bool) -> Option<&'static str> {
    let fields = issuer.fields;
    if fields.version != 3 {
        // A v1 certificate has no basicConstraints. The operator vouches for an anchor.
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

/// How the key identifiers of child and issuer compare. They only order the candidates (RFC 5280
/// 4.2.1.1).
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyIdHint {
    Match,
    /// One of the two has no identifier.
    Absent,
    Mismatch,
}

impl KeyIdHint {
    const IN_ORDER: [Self; 3] = [Self::Match, Self::Absent, Self::Mismatch];

    fn of(child: CertificateRef<'_>, issuer: CertificateRef<'_>) -> Self {
        match (child.fields.authority_key_id, issuer.fields.subject_key_id) {
            (Some(authority), Some(subject)) if authority.slice(child.der) == subject.slice(issuer.der) => {
                Self::Match
            }
            (Some(_), Some(_)) => Self::Mismatch,
            _ => Self::Absent,
        }
    }
}
