//! Compiles stored documents for the push, and keeps the findings about those that are not served
//! as they are.
//!
//! Our own writes were checked before they were stored; documents that another program wrote, or
//! whose keys no longer decrypt, were not. Invariant: a valid document replaces the one before
//! (`model::stored_document`); a finding is logged once, when it appears, and listed by
//! `lint` as long as it holds.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::lint::{Finding, Severity};
use model::{Key, Resource, Versioned};

use crate::compile;
use crate::store::StoredDocument;

/// Findings about stored documents, by resource, with the revision of the document they describe.
#[derive(Default)]
pub struct StoredFindings(Mutex<BTreeMap<Key, (u64, Vec<Finding>)>>);

impl StoredFindings {
    /// All findings, in the order of their keys.
    pub fn all(&self) -> Vec<Finding> {
        self.lock().values().flat_map(|(_, findings)| findings).cloned().collect()
    }

    /// Replaces the findings about a document; returns the new ones.
    fn put(&self, key: &Key, mod_revision: u64, findings: Vec<Finding>) -> Vec<Finding> {
        let mut all = self.lock();
        let (_, former) = all.remove(key).unwrap_or_default();
        let new = findings.iter().filter(|finding| !former.contains(finding)).cloned().collect();
        if !findings.is_empty() {
            all.insert(key.clone(), (mod_revision, findings));
        }
        new
    }

    /// Whether there are findings about another document under the same key: an invalid one, from
    /// before the store was set back.
    pub(super) fn are_outdated(&self, stored: &StoredDocument) -> bool {
        self.lock().get(&stored.key).is_some_and(|(mod_revision, _)| *mod_revision != stored.mod_revision)
    }

    pub(super) fn remove(&self, key: &Key) {
        self.lock().remove(key);
    }

    /// Removes the findings about all other documents.
    pub(super) fn retain(&self, stored: &HashSet<&Key>) {
        self.lock().retain(|key, _| stored.contains(key));
    }

    /// A panic cannot leave an entry half written, so a poisoned lock is still consistent.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, (u64, Vec<Finding>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log(stored: &StoredDocument, finding: &Finding) {
    let (key, revision) = (&stored.key, stored.mod_revision);
    let Finding { field, message, hint, .. } = finding;
    if finding.severity == Severity::Error {
        tracing::error!(resource = %key, revision, field, problem = message, hint, "a stored document is not usable");
    } else {
        tracing::warn!(resource = %key, revision, field, problem = message, hint, "a stored document is served in part");
    }
}

/// Compiles a stored document and logs its findings and what it weakens. `None` keeps `before`.
pub(super) fn compile_and_log(
    stored: &StoredDocument,
    before: Option<&Resource>,
    keyring: &pki::Keyring,
    findings: &StoredFindings,
) -> Option<Versioned> {
    let (versioned, new) = compile::compile_stored(stored, keyring, before);
    findings.put(&stored.key, stored.mod_revision, new).iter().for_each(|finding| log(stored, finding));
    if let (Some(before), Some(after)) = (before, &versioned) {
        log_weakenings(&stored.key, stored.mod_revision, model::weakenings(before, &after.resource));
    }
    versioned
}

/// Logs what a removal weakens; `revision` is that of the removal.
pub(super) fn log_removal(key: &Key, revision: u64, before: Option<&Resource>) {
    if let Some(before) = before {
        log_weakenings(key, revision, model::removal_weakenings(before));
    }
}

fn log_weakenings(key: &Key, revision: u64, weakenings: Vec<model::Weakening>) {
    for model::Weakening { field, message: problem } in weakenings {
        tracing::warn!(resource = %key, revision, field, problem, "a change weakens the protection");
    }
}

#[cfg(test)]
mod tests {
    use model::{Id, Kind};

    use super::*;

    #[test]
    fn a_finding_is_new_once_and_listed_while_it_holds() {
        let findings = StoredFindings::default();
        let key = |id: &str| Key::new(Kind::Route, Id::parse(id).unwrap());
        let finding = |field: &str| Finding {
            severity: Severity::Error,
            resource: Some(key("1")),
            field: field.to_owned(),
            message: String::new(),
            hint: String::new(),
        };
        let (a, b) = (finding("a"), finding("b"));
        assert_eq!(findings.put(&key("1"), 7, vec![a.clone()]), vec![a.clone()]);
        assert!(findings.put(&key("1"), 7, vec![a.clone()]).is_empty(), "a reload says nothing again");
        assert_eq!(findings.put(&key("1"), 7, vec![a.clone(), b.clone()]), vec![b.clone()]);
        assert!(findings.put(&key("1"), 7, vec![b.clone()]).is_empty());
        assert_eq!(findings.put(&key("2"), 7, vec![a.clone()]), vec![a.clone()]);
        assert_eq!(findings.all(), [b.clone(), a]);
        findings.retain(&HashSet::from([&key("1")]));
        assert_eq!(findings.all(), std::slice::from_ref(&b));
        findings.remove(&key("1"));
        assert_eq!(findings.put(&key("1"), 7, vec![b.clone()]), vec![b], "it came back");
    }
}
