//! The search for a path from a leaf to an anchor.
//!
//! Depth first, anchors before intermediates, cheap rules before signatures. Intermediates from which no anchor can be reached by name are
//! left out before the first signature is checked, so a peer that sends a maze without an exit costs microseconds. What remains is
//! bounded by three budgets. A failed path does not end the search: what it failed at is remembered, and the most telling failure is
//! the answer when no path is good.
//! Invariant: a path is returned only if every certificate of it passed `judge_common`, every issuer `judge_issuer`, and every signature.

use std::cell::OnceCell;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::constraints::{self, Work};
use super::error::{Failure, Rule, VerifyError};
use super::{Purpose, SENT_CERTIFICATES_MAX, View, error, finished};
use crate::cert::Certificate;
use crate::cert::fields::Fields;
use crate::der::{self, Reader};
use crate::name;
use crate::policy::Anchors;
use crate::revocation::Crls;
use crate::signature::{self, Checked};

/// Signature checks for one verification, in units of about 45 us: a P-256 check is one, [`signature::cost`] has the others.
const SIGNATURE_UNITS: u32 = 100;
/// Candidates of the right name looked at in one verification. A good chain needs a few; each costs under 2 us.
const STEPS: u32 = 1024;

/// What is asked for.
pub(super) struct Demand<'a> {
    pub(super) anchors: &'a Anchors,
    /// Most intermediates that are not self-issued.
    pub(super) depth: u32,
    pub(super) purpose: Purpose,
    /// Revocation lists, when revocation is checked.
    pub(super) crls: Option<&'a Crls>,
    /// Accept an unknown or stale status.
    pub(super) crl_prefer: bool,
}

/// A good path and the period in which it is good, seconds since 1970.
pub(super) struct Found<'a> {
    /// The intermediates, from the leaf upwards.
    pub(super) path: Arc<[Certificate]>,
    pub(super) anchor: &'a Certificate,
    pub(super) from: i64,
    pub(super) to: i64,
}

/// A certificate the peer sent behind its leaf.
struct Sent<'a> {
    /// Among those sent.
    place: usize,
    der: &'a [u8],
    fields: Fields,
    subject_hash: u64,
    issuer_hash: u64,
    /// Stands for subject and key together: certificates with one of these speak for the same CA.
    authority: u64,
    is_self_issued: bool,
    /// By names alone, a path leads from here to an anchor.
    reaches_anchor: bool,
}

impl<'a> Sent<'a> {
    /// What cannot be read is a stranger.
    fn read((place, der): (usize, &'a CertificateDer<'_>), anchors: &Anchors) -> Option<Self> {
        let fields = Fields::read(der).ok()?;
        let subject_hash = name::folded_hash(fields.subject.of(der));
        let issuer_hash = name::folded_hash(fields.issuer.of(der));
        let mut authority = DefaultHasher::new();
        (subject_hash, fields.public_key.of(der)).hash(&mut authority);
        Some(Self {
            place,
            der,
            subject_hash,
            issuer_hash,
            authority: authority.finish(),
            is_self_issued: fields.is_self_issued(der),
            reaches_anchor: anchors.may_have_subject(issuer_hash),
            fields,
        })
    }

    fn view(&self) -> View<'_> {
        View { der: self.der, fields: &self.fields }
    }
}

/// Why the search ended without a path.
enum Stop {
    /// This branch has no more candidates.
    Exhausted,
    /// A budget is used up: no branch may go on.
    TooMuchWork,
}

/// Looks for a path for a leaf that `judge_leaf` has passed.
pub(super) fn run<'a>(
    demand: &Demand<'a>,
    leaf: View<'_>,
    sent: &[CertificateDer<'_>],
    now: i64,
) -> Result<Found<'a>, VerifyError> {
    if sent.len() > SENT_CERTIFICATES_MAX {
        return Err(VerifyError::TooManyCertificates { found: sent.len() });
    }
    let parsed = OnceCell::new();
    let mut search = Search {
        demand,
        leaf,
        sent,
        parsed: &parsed,
        now,
        path: Vec::new(),
        answers: Vec::new(),
        units: SIGNATURE_UNITS,
        steps: STEPS,
        names: Work::default(),
        failure: None,
    };
    search.run()
}

/// The leaf or an intermediate, in the role of the certificate whose issuer is looked for.
#[derive(Clone, Copy)]
struct Node<'s> {
    view: View<'s>,
    issuer_hash: u64,
    /// None for the leaf.
    sent: Option<&'s Sent<'s>>,
}

impl<'s> Node<'s> {
    fn of(sent: &'s Sent<'s>) -> Self {
        Self { view: sent.view(), issuer_hash: sent.issuer_hash, sent: Some(sent) }
    }

    /// Place among the certificates sent; none for the leaf.
    fn place(&self) -> Option<usize> {
        self.sent.map(|sent| sent.place)
    }

    fn certificate(&self) -> Certificate {
        Certificate::from_parts(self.view.der, self.view.fields.clone())
    }

    /// Self-issued intermediates count neither for `depth` nor for pathLenConstraint (RFC 5280 4.2.1.9).
    fn is_self_issued(&self) -> bool {
        self.sent.is_some_and(|sent| sent.is_self_issued)
    }
}

/// One signature check and its answer.
struct Answer<'s> {
    signed: Option<usize>,
    key: &'s [u8],
    checked: Checked,
}

/// One verification's search.
struct Search<'s, 'a, 'd> {
    demand: &'s Demand<'a>,
    leaf: View<'s>,
    sent: &'s [CertificateDer<'d>],
    /// Read when the leaf's issuer is no anchor.
    parsed: &'s OnceCell<Vec<Sent<'s>>>,
    now: i64,
    /// The intermediates of the branch being tried, from the leaf upwards.
    path: Vec<Node<'s>>,
    answers: Vec<Answer<'s>>,
    units: u32,
    steps: u32,
    names: Work,
    failure: Option<Failure<'s>>,
}

impl<'s, 'a: 's> Search<'s, 'a, '_> {
    fn run(&mut self) -> Result<Found<'a>, VerifyError> {
        let leaf = Node { view: self.leaf, issuer_hash: name::folded_hash(self.leaf.issuer()), sent: None };
        match self.extend(leaf) {
            Ok(found) => Ok(found),
            Err(Stop::TooMuchWork) => Err(VerifyError::TooMuchWork { checks: self.answers.len() }),
            Err(Stop::Exhausted) => Err(match self.failure {
                Some(failure) => failure.into_error(),
                None => self.unknown_issuer(leaf),
            }),
        }
    }

    /// Looks for an issuer of `child`, the end of the branch so far: first among the anchors, then among the intermediates.
    fn extend(&mut self, child: Node<'s>) -> Result<Found<'a>, Stop> {
        let demand = self.demand;
        // Key identifiers are hints (RFC 5280 4.2.1.1): issuers whose identifier differs are tried last.
        for fits in [true, false] {
            for anchor in demand.anchors.with_subject(child.view.issuer(), child.issuer_hash) {
                let issuer = View::of(anchor);
                if key_id_fits(child.view, issuer) == fits
                    && let Some(found) = self.try_anchor(child, issuer, anchor)?
                {
                    return Ok(found);
                }
            }
        }
        let parsed = self.parsed();
        for fits in [true, false] {
            for candidate in parsed {
                let named = candidate.reaches_anchor && candidate.subject_hash == child.issuer_hash;
                if !named || key_id_fits(child.view, candidate.view()) != fits || self.is_on_path(candidate) {
                    continue;
                }
                match self.try_intermediate(child, Node::of(candidate)) {
                    Err(Stop::Exhausted) => {}
                    ended => return ended,
                }
            }
        }
        Err(Stop::Exhausted)
    }

    fn try_anchor(
        &mut self,
        child: Node<'s>,
        issuer: View<'s>,
        anchor: &'a Certificate,
    ) -> Result<Option<Found<'a>>, Stop> {
        self.step(issuer)?;
        if let Err(failure) = self.judge_issuer(issuer, true) {
            return self.note(failure).map(|()| None);
        }
        if !self.signature_is_good(child, issuer)? {
            return Ok(None);
        }
        match self.judge_revocation(issuer) {
            Ok(until) => {
                let (from, to) = finished::period(self.on_path().chain([issuer]));
                let path = self.path.iter().map(Node::certificate).collect();
                Ok(Some(Found { path, anchor, from, to: to.min(until) }))
            }
            Err(failure) => self.note(failure).map(|()| None),
        }
    }

    fn try_intermediate(&mut self, child: Node<'s>, issuer: Node<'s>) -> Result<Found<'a>, Stop> {
        self.step(issuer.view)?;
        if !name::same(issuer.view.subject(), child.view.issuer()) {
            return Err(Stop::Exhausted);
        }
        let counted = self.counted() + u32::from(!issuer.is_self_issued());
        let failure = if counted > self.demand.depth {
            Some(Failure { certificate: issuer.view, rule: Rule::TooDeep { limit: self.demand.depth } })
        } else if self.leaf.fields.version != 3 {
            // Without extensions nobody limited what the leaf is for; only an operator's own anchor may vouch for it.
            Some(Failure { certificate: self.leaf, rule: Rule::OldVersion })
        } else {
            self.judge_issuer(issuer.view, false).err()
        };
        if let Some(failure) = failure {
            self.note(failure)?;
            return Err(Stop::Exhausted);
        }
        if !self.signature_is_good(child, issuer.view)? {
            return Err(Stop::Exhausted);
        }
        self.path.push(issuer);
        let ended = self.extend(issuer);
        self.path.pop();
        ended
    }

    /// What an issuer must satisfy above the branch so far, short of its signature on it.
    fn judge_issuer(&mut self, issuer: View<'s>, is_anchor: bool) -> Result<(), Failure<'s>> {
        let refuse = |rule| Err(Failure { certificate: issuer, rule });
        if let Some(problem) = why_no_authority(issuer, is_anchor) {
            return refuse(Rule::NotAuthority { problem });
        }
        judge_common(issuer, self.now)?;
        if !extended_usage_fits(issuer, self.demand.purpose) {
            return refuse(Rule::WrongUsage { purpose: self.demand.purpose });
        }
        let path_length = issuer.fields.basic_constraints.and_then(|constraints| constraints.path_length);
        if let Some(limit) = path_length.filter(|limit| self.counted() > *limit) {
            return refuse(Rule::PathLength { limit });
        }
        if issuer.fields.name_constraints.is_none() {
            return Ok(());
        }
        // Self-issued certificates are exempt, except as the leaf (RFC 5280 4.2.1.10)
        let below = self.path.iter().filter(|node| !node.is_self_issued()).map(|node| node.view);
        for certificate in std::iter::once(self.leaf).chain(below) {
            if let Err(problem) = constraints::check(issuer, certificate, &mut self.names) {
                return Err(Failure {
                    certificate,
                    rule: Rule::NameConstraint { authority: issuer, problem },
                });
            }
        }
        Ok(())
    }

    fn signature_is_good(&mut self, child: Node<'s>, issuer: View<'s>) -> Result<bool, Stop> {
        let signer = issuer.key();
        if !signature::is_strong(signer) {
            self.note(Failure { certificate: issuer, rule: Rule::WeakKey })?;
            return Ok(false);
        }
        let known =
            self.answers.iter().find(|answer| answer.signed == child.place() && answer.key == signer.key);
        let checked = match known {
            Some(answer) => answer.checked,
            None => {
                self.units = self.units.checked_sub(signature::cost(signer)).ok_or(Stop::TooMuchWork)?;
                let (der, fields) = (child.view.der, child.view.fields);
                let algorithm = fields.signature_algorithm.of(der);
                let checked =
                    signature::check(signer, algorithm, fields.tbs.of(der), fields.signature.of(der));
                self.answers.push(Answer { signed: child.place(), key: signer.key, checked });
                checked
            }
        };
        let rule = match checked {
            Checked::Good => return Ok(true),
            Checked::Bad => Rule::BadSignature { issuer },
            Checked::NotBelieved => Rule::WeakKey,
        };
        self.note(Failure { certificate: child.view, rule })?;
        Ok(false)
    }

    fn judge_revocation(&self, anchor: View<'s>) -> Result<i64, Failure<'s>> {
        let Some(crls) = self.demand.crls else { return Ok(i64::MAX) };
        finished::revocation(crls, self.demand.crl_prefer, self.on_path().chain([anchor]), self.now)
    }

    /// The leaf and the intermediates of the branch, from the leaf upwards.
    fn on_path(&self) -> impl Iterator<Item = View<'s>> + Clone {
        std::iter::once(self.leaf).chain(self.path.iter().map(|node| node.view))
    }

    /// Intermediates of the branch that count: those that are not self-issued.
    fn counted(&self) -> u32 {
        self.path.iter().map(|node| u32::from(!node.is_self_issued())).sum()
    }

    /// The same CA with the same key below already: going round once more proves nothing new.
    fn is_on_path(&self, candidate: &Sent<'_>) -> bool {
        let same = |node: &Node<'_>| node.sent.is_some_and(|sent| sent.authority == candidate.authority);
        self.path.iter().any(same)
    }

    /// Looking at a candidate costs more when its name is long.
    fn step(&mut self, candidate: View<'_>) -> Result<(), Stop> {
        let cost = u32::try_from(1 + candidate.subject().len() / 256).unwrap_or(STEPS);
        self.steps = self.steps.checked_sub(cost).ok_or(Stop::TooMuchWork)?;
        Ok(())
    }

    /// Remembers the most telling failure.
    fn note(&mut self, failure: Failure<'s>) -> Result<(), Stop> {
        if self.names.is_used_up() {
            return Err(Stop::TooMuchWork);
        }
        if self.failure.is_none_or(|known| failure.tells_more_than(&known)) {
            self.failure = Some(failure);
        }
        Ok(())
    }

    /// The intermediates, read when first asked for.
    fn parsed(&self) -> &'s [Sent<'s>] {
        let (sent, demand) = (self.sent, self.demand);
        self.parsed.get_or_init(|| {
            let mut parsed: Vec<Sent<'s>> =
                sent.iter().enumerate().filter_map(|numbered| Sent::read(numbered, demand.anchors)).collect();
            spread_reachability(&mut parsed);
            parsed
        })
    }

    /// Follows the names upwards from the leaf, to say where the path ends.
    fn unknown_issuer(&self, leaf: Node<'s>) -> VerifyError {
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

/// Whoever is issued by one that reaches an anchor reaches it too. Each certificate is taken up once, so the work is quadratic
/// in at most [`SENT_CERTIFICATES_MAX`] comparisons of numbers.
fn spread_reachability(parsed: &mut [Sent<'_>]) {
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

/// What every certificate of a path must satisfy by itself.
pub(super) fn judge_common(certificate: View<'_>, now: i64) -> Result<(), Failure<'_>> {
    let fields = certificate.fields;
    let rule = if fields.unknown_critical.is_some() {
        Rule::CriticalExtension
    } else if now < fields.not_before {
        Rule::NotYetValid
    } else if now > fields.not_after {
        Rule::Expired
    } else {
        return Ok(());
    };
    Err(Failure { certificate, rule })
}

/// Which rule of RFC 5280 4.2.1.3 and 4.2.1.9 keeps a certificate from issuing.
fn why_no_authority(issuer: View<'_>, is_anchor: bool) -> Option<&'static str> {
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

/// An extKeyUsage, when there is one, must name the purpose: in the leaf as in every issuer (as OpenSSL and webpki have it).
pub(super) fn extended_usage_fits(certificate: View<'_>, purpose: Purpose) -> bool {
    /// id-kp, 1.3.6.1.5.5.7.3
    const ID_KP: [u8; 7] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03];
    let Some(list) = certificate.fields.extended_key_usage else { return true };
    let last = match purpose {
        Purpose::Server => 1,
        Purpose::Client => 2,
    };
    let mut purposes = Reader::new(list.of(certificate.der));
    std::iter::from_fn(|| purposes.expect(der::OID).ok())
        .any(|oid| oid.content.split_last().is_some_and(|(end, start)| *end == last && start == ID_KP))
}

/// The child's authorityKeyIdentifier does not speak against this issuer.
fn key_id_fits(child: View<'_>, issuer: View<'_>) -> bool {
    match (child.fields.authority_key_id, issuer.fields.subject_key_id) {
        (Some(wanted), Some(found)) => wanted.of(child.der) == found.of(issuer.der),
        _ => true,
    }
}
