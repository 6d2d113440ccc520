//! A stored document becomes a resource for the push, or it is told what does not become of it.
//!
//! Our own writes were checked before they were stored; what another program wrote, or what can no
//! longer be opened, was not. Invariant: a document takes the place of the one before unless it is
//! no valid one ([`model::adopt`](mod@model::adopt)), and each finding is in the log once, when it
//! appears, and in `lint` as long as it holds.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::lint::{Finding, Severity};
use model::{Key, Resource, Versioned};

use crate::compile;
use crate::store::StoredDocument;

/// What is to be said about the stored documents: those that are not served as they are. Of each,
/// which revision wrote the document that it is said about.
#[derive(Default)]
pub struct Findings(Mutex<BTreeMap<Key, (u64, Vec<Finding>)>>);

impl Findings {
    /// All of them, in the order of their keys.
    pub fn all(&self) -> Vec<Finding> {
        self.lock().values().flat_map(|(_, found)| found).cloned().collect()
    }

    /// Puts what is to be said about a document in the place of what was said, and gives what is
    /// new about it.
    fn put(&self, key: &Key, modified: u64, found: Vec<Finding>) -> Vec<Finding> {
        let mut all = self.lock();
        let (_, known) = all.remove(key).unwrap_or_default();
        let new = found.iter().filter(|finding| !known.contains(finding)).cloned().collect();
        if !found.is_empty() {
            all.insert(key.clone(), (modified, found));
        }
        new
    }

    /// Whether something is said about another document under this one's key: one that was not
    /// valid, before the store was set back.
    pub(super) fn are_outdated(&self, stored: &StoredDocument) -> bool {
        self.lock().get(&stored.key).is_some_and(|(modified, _)| *modified != stored.mod_revision)
    }

    /// The document is gone.
    pub(super) fn remove(&self, key: &Key) {
        self.lock().remove(key);
    }

    /// Only these documents are there.
    pub(super) fn retain(&self, stored: &HashSet<&Key>) {
        self.lock().retain(|key, _| stored.contains(key));
    }

    /// A panic while the lock was held cannot leave an entry half written, so poison says nothing.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, (u64, Vec<Finding>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log(stored: &StoredDocument, finding: &Finding) {
    let (key, revision) = (&stored.key, stored.mod_revision);
    let Finding { field, message: what, hint, .. } = finding;
    if finding.severity == Severity::Error {
        tracing::error!(resource = %key, revision, field, problem = what, hint, "a stored document is not usable");
    } else {
        tracing::warn!(resource = %key, revision, field, problem = what, hint, "a stored document is served in part");
    }
}

/// What takes a document's place; nothing when what is there stays. `before`: what is there.
pub(super) fn compile_and_log(
    stored: &StoredDocument,
    before: Option<&Resource>,
    keyring: &pki::Keyring,
    findings: &Findings,
) -> Option<Versioned> {
    let (versioned, found) = compile::compile_stored(stored, keyring, before);
    findings.put(&stored.key, stored.mod_revision, found).iter().for_each(|finding| log(stored, finding));
    if let (Some(before), Some(now)) = (before, &versioned) {
        log_weakenings(&stored.key, stored.mod_revision, model::weakenings(before, &now.resource));
    }
    versioned
}

/// Logs what the removal of a document takes away; `revision` is that of the removal.
pub(super) fn log_removal(key: &Key, revision: u64, before: Option<&Resource>) {
    if let Some(before) = before {
        log_weakenings(key, revision, model::removal_weakenings(before));
    }
}

fn log_weakenings(key: &Key, revision: u64, weakenings: Vec<model::Weakening>) {
    for model::Weakening { field, message: what } in weakenings {
        tracing::warn!(resource = %key, revision, field, what, "a change weakens the protection");
    }
}

#[cfg(test)]
mod tests {
    use model::{Id, Kind};

    use super::*;

    #[test]
    fn a_finding_is_new_once_and_there_as_long_as_it_holds() {
        let findings = Findings::default();
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
