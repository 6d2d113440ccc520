//! Proves a path that holds by its names: the signatures, from the anchor down.
//!
//! `search` hands over one link at a time, the topmost first. That order is the defence against
//! mazes: a signature is computed only with a key that an unbroken line of signatures from an
//! anchor vouches for, so nobody makes us compute with keys of his own choice, and whatever a
//! stranger sends falls with its first link. Answers are kept for the verification, for several
//! paths share their links. Invariant: a link is proved only by [`Checked::Good`] for exactly these
//! bytes and this key.

use super::CertificateRef;
use crate::signature::{self, PublicKey, SignatureCheck};

/// Checks that may fail, besides one for each anchor of one name. They fail only where CAs share a
/// name without key identifiers, after a change of keys; who sends more of that than a handful gets
/// no further.
const FAILURES_MAX: u32 = 3;
/// Checks that may succeed, in units of about 45 us: a P-256 check is one, [`signature::cost`] has
/// the others. Enough for a chain of 128 in P-256. All of them are of certificates that an anchor
/// vouches for, so this bounds what our own CAs can do to us.
const WORK_MAX: u32 = 192;

/// A budget is used up.
pub(super) struct BudgetExceeded;

/// One signature check and its answer.
struct CheckedSignature<'s> {
    /// The signed certificate's place among those sent; none for the leaf.
    signed: Option<usize>,
    key: &'s [u8],
    outcome: SignatureCheck,
}

/// The answers so far, and what is left of the budgets.
pub(super) struct SignatureChecks<'s> {
    checked: Vec<CheckedSignature<'s>>,
    failures_left: u32,
    work_left: u32,
}

impl<'s> SignatureChecks<'s> {
    /// `namesakes`: how many anchors at most share a name. An operator who lists many CAs of one
    /// name pays for trying them.
    pub(super) fn new(namesakes: u32) -> Self {
        Self {
            checked: Vec::new(),
            failures_left: FAILURES_MAX.saturating_add(namesakes),
            work_left: WORK_MAX,
        }
    }

    /// Signature checks made.
    pub(super) fn count(&self) -> usize {
        self.checked.len()
    }

    /// What is known of this link, without computing anything.
    pub(super) fn cached(&self, signed: Option<usize>, key: &[u8]) -> Option<SignatureCheck> {
        let answer = self.checked.iter().find(|answer| answer.signed == signed && answer.key == key);
        answer.map(|answer| answer.outcome)
    }

    /// Checks the signature of `child`, at this place, with the key of a `signer` that is proved
    /// itself.
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
