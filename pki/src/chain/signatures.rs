//! Checks the signatures of a path from the anchor down.
//!
//! `path_builder` passes one link at a time, the topmost first. This order is the defence against
//! adversarial chains: a signature is computed only with a key that an unbroken line of valid
//! signatures connects to an anchor, so a peer cannot choose the keys, and a forged chain fails at
//! its first link. Results are cached for one verification, because several paths share links.
//! Invariant: a link is valid only by [`SignatureCheck::Valid`] for exactly these bytes and this
//! key.

use super::types::CertificateRef;
use crate::signature::{self, PublicKey, SignatureCheck};

/// Failed checks that are allowed, besides one for each anchor of the same name. Checks fail only
/// where CAs share a name without key identifiers, after a change of keys.
const FAILURES_MAX: u32 = 3;
/// Successful checks that are allowed, in units of about 45 us: a P-256 check is one,
/// [`signature::verification_cost`] has the others. Enough for a chain of 128 certificates in
/// P-256. A trusted CA vouches for each of them, so this bounds the work that our own CAs can
/// cause.
const WORK_MAX: u32 = 192;

/// A budget is exhausted.
pub(super) struct BudgetExceeded;

/// One signature check and its result.
struct CheckedSignature<'s> {
    /// Index of the signed certificate among the peer's intermediates; `None` for the leaf.
    signed: Option<usize>,
    key: &'s [u8],
    outcome: SignatureCheck,
}

/// The checks so far and the remaining budgets.
pub(super) struct SignatureChecks<'s> {
    checked: Vec<CheckedSignature<'s>>,
    failures_left: u32,
    work_left: u32,
}

impl<'s> SignatureChecks<'s> {
    /// `same_subject_max`: most anchors that share a subject. Each of them may have to be tried.
    pub(super) fn new(namesakes: u32) -> Self {
        Self {
            checked: Vec::new(),
            failures_left: FAILURES_MAX.saturating_add(namesakes),
            work_left: WORK_MAX,
        }
    }

    /// Number of checks.
    pub(super) fn count(&self) -> usize {
        self.checked.len()
    }

    /// The cached result for this link.
    pub(super) fn cached(&self, signed: Option<usize>, key: &[u8]) -> Option<SignatureCheck> {
        let answer = self.checked.iter().find(|answer| answer.signed == signed && answer.key == key);
        answer.map(|answer| answer.outcome)
    }

    /// Checks the signature of `child` with the key of `signer`, which must be connected to an
    /// anchor by valid signatures.
    pub(super) fn verify(
        &mut self,
        child: CertificateRef<'s>,
        signed: Option<usize>,
        signer: PublicKey<'s>,
    ) -> Result<SignatureCheck, BudgetExceeded> {
        if let Some(known) = self.cached(signed, signer.key) {
            return Ok(known);
        }
        if self.failures_left == 0 || self.work_left == 0 {
            return Err(BudgetExceeded);
        }
        let (der, fields) = (child.der, child.fields);
        let algorithm = fields.signature_algorithm.slice(der);
        let checked =
            signature::verify(signer, algorithm, fields.tbs.slice(der), fields.signature.slice(der));
        match checked {
            SignatureCheck::Valid => {
                self.work_left = self.work_left.saturating_sub(signature::verification_cost(signer))
            }
            SignatureCheck::Invalid => self.failures_left -= 1,
            SignatureCheck::Unsupported => {} // nothing was computed
        }
        self.checked.push(CheckedSignature { signed, key: signer.key, outcome: checked });
        Ok(checked)
    }
}
