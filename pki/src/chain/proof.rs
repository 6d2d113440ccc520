//! Proves a path that holds by its names: the signatures, from the anchor down.
//!
//! `search` hands over one link at a time, the topmost first. That order is the defence against mazes: a signature is computed only with
//! a key that an unbroken line of signatures from an anchor vouches for, so nobody makes us compute with keys of his own choice, and
//! whatever a stranger sends falls with its first link. Answers are kept for the verification, for several paths share their links.
//! Invariant: a link is proved only by [`Checked::Good`] for exactly these bytes and this key.

use super::CertificateRef;
use crate::signature::{self, Checked, PublicKey};

/// Checks that may fail, besides one for each anchor of one name. They fail only where CAs share a name without key identifiers, after a
/// change of keys; who sends more of that than a handful gets no further.
const FAILED_CHECKS: u32 = 3;
/// Checks that may succeed, in units of about 45 us: a P-256 check is one, [`signature::cost`] has the others. Enough for a chain of 128
/// in P-256. All of them are of certificates that an anchor vouches for, so this bounds what our own CAs can do to us.
const GOOD_UNITS: u32 = 192;

/// A budget is used up.
pub(super) struct UsedUp;

/// One signature check and its answer.
struct Answer<'s> {
    /// The signed certificate's place among those sent; none for the leaf.
    signed: Option<usize>,
    key: &'s [u8],
    checked: Checked,
}

/// The answers so far, and what is left of the budgets.
pub(super) struct Proofs<'s> {
    answers: Vec<Answer<'s>>,
    failed_checks: u32,
    good_units: u32,
}

impl<'s> Proofs<'s> {
    /// `namesakes`: how many anchors at most share a name. An operator who lists many CAs of one name pays for trying them.
    pub(super) fn new(namesakes: u32) -> Self {
        Self {
            answers: Vec::new(),
            failed_checks: FAILED_CHECKS.saturating_add(namesakes),
            good_units: GOOD_UNITS,
        }
    }

    /// Signature checks made.
    pub(super) fn checks(&self) -> usize {
        self.answers.len()
    }

    /// What is known of this link, without computing anything.
    pub(super) fn known(&self, signed: Option<usize>, key: &[u8]) -> Option<Checked> {
        let answer = self.answers.iter().find(|answer| answer.signed == signed && answer.key == key);
        answer.map(|answer| answer.checked)
    }

    /// Checks the signature of `child`, at this place, with the key of a `signer` that is proved itself.
    pub(super) fn check(
        &mut self,
        child: CertificateRef<'s>,
        signed: Option<usize>,
        signer: PublicKey<'s>,
    ) -> Result<Checked, UsedUp> {
        if let Some(known) = self.known(signed, signer.key) {
            return Ok(known);
        }
        if self.failed_checks == 0 || self.good_units == 0 {
            return Err(UsedUp);
        }
        let (der, fields) = (child.der, child.fields);
        let algorithm = fields.signature_algorithm.of(der);
        let checked = signature::check(signer, algorithm, fields.tbs.of(der), fields.signature.of(der));
        match checked {
            Checked::Good => self.good_units = self.good_units.saturating_sub(signature::cost(signer)),
            Checked::Bad => self.failed_checks -= 1,
            Checked::NotBelieved => {} // nothing was computed
        }
        self.answers.push(Answer { signed, key: signer.key, checked });
        Ok(checked)
    }
}
