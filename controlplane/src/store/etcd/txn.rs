//! A batch as one transaction of etcd: its compares, its writes, and what its response means.
//!
//! Each document that is written is compared with the revision that the writer expects, so a
//! transaction can be found in the history, and cannot be applied twice. The failure branch reads
//! the compared keys: it says which compare failed.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;

use etcd_client::{
    Compare, CompareOp, DeleteOptions, Event, EventType, GetOptions, KeyValue, PutOptions, ResponseHeader,
    Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use model::Key;

use super::layout::{self, Layout};
use crate::store::{Batch, CommitResult, Condition, Mutation, MutationResult, Precondition, StoreError};

/// One attempt of a commit. The next one expects what the failure branch has read.
#[derive(Clone)]
pub(super) struct Attempt {
    writes: Vec<DocumentWrite>,
    conditions: Vec<Condition>,
    /// A revision of the store before the transaction was sent.
    pub(super) start_revision: i64,
}

/// The write of a document and of its extension entry.
#[derive(Clone)]
struct DocumentWrite {
    key: Key,
    name: String,
    /// `None` deletes the document.
    value: Option<String>,
    /// `None` for kinds without extension fields.
    extension_name: Option<String>,
    /// `None` deletes the extension entry.
    extension: Option<String>,
    precondition: Precondition,
    /// The mod revision to compare; 0: the document must be absent.
    expected: i64,
    ttl: Option<NonZeroU32>,
}

/// A compare of one key, which the failure branch can repeat.
struct KeyCompare {
    name: String,
    test: Test,
}

#[derive(Clone, Copy)]
enum Test {
    /// 0: absent.
    Modified(i64),
    /// Also holds for an absent key.
    NotAfter(i64),
    Exists,
}

/// What a response means.
pub(super) enum TxnOutcome {
    Committed(CommitResult),
    /// Nothing was written, and the attempt now expects the present revisions.
    Outdated,
}

/// The mod revisions of keys, 0 for absent ones.
type ModRevisions = HashMap<String, i64>;

impl DocumentWrite {
    fn new(mutation: Mutation, layout: &Layout) -> Self {
        let (key, precondition) = (mutation.key().clone(), mutation.precondition());
        let (value, extension, ttl) = match mutation {
            Mutation::Put { document, ttl, .. } => {
                let (value, extension) = layout::split_document(&key, document);
                (Some(value), extension, ttl)
            }
            Mutation::Delete { .. } => (None, None, None),
        };
        let expected = match precondition {
            Precondition::ModRevision(revision) => layout::to_etcd_revision(revision),
            Precondition::Absent | Precondition::Unconditional => 0,
        };
        let (name, extension_name) = (layout.document_key(&key), layout.extension_key(&key));
        Self { key, name, value, extension_name, extension, precondition, expected, ttl }
    }

    /// Removing an absent document writes nothing.
    fn is_no_op(&self) -> bool {
        self.value.is_none() && self.expected == 0
    }

    fn compares(&self) -> impl Iterator<Item = KeyCompare> {
        // Any newer extension entry was not seen by the writer.
        let extension = match self.precondition {
            Precondition::ModRevision(seen) => {
                let test = Test::NotAfter(layout::to_etcd_revision(seen));
                self.extension_name.clone().map(|name| KeyCompare { name, test })
            }
            Precondition::Absent | Precondition::Unconditional => None,
        };
        let document = KeyCompare { name: self.name.clone(), test: Test::Modified(self.expected) };
        std::iter::once(document).chain(extension)
    }

    fn document_operation(&self, leases: &BTreeMap<NonZeroU32, i64>) -> TxnOp {
        let name = self.name.as_str();
        let Some(value) = &self.value else {
            return TxnOp::delete(name, Some(DeleteOptions::new().with_prev_key()));
        };
        let lease = self.ttl.and_then(|ttl| leases.get(&ttl));
        let options =
            lease.into_iter().fold(PutOptions::new().with_prev_key(), |put, id| put.with_lease(*id));
        TxnOp::put(name, value.as_str(), Some(options))
    }

    /// `None` where an older entry does not belong to the document anyway.
    fn extension_operation(&self) -> Option<TxnOp> {
        let name = self.extension_name.as_deref()?;
        match &self.extension {
            // Without the document's lease: an entry that outlives the document is ignored, and one
            // that expired first would leave the document unprotected.
            Some(extension) => Some(TxnOp::put(name, extension.as_str(), None)),
            None => (self.expected != 0).then(|| TxnOp::delete(name, None)),
        }
    }

    /// Checks the precondition against the present revisions, and expects them from now on.
    /// Returns whether that changed anything.
    fn adapt(&mut self, present: &ModRevisions) -> Result<bool, StoreError> {
        let of = |name: &str| present.get(name).copied().unwrap_or_default();
        let (document, extension) = (of(&self.name), self.extension_name.as_deref().map_or(0, of));
        let holds = match self.precondition {
            Precondition::Unconditional => true,
            Precondition::Absent => document == 0,
            // The newest change may be one of the extension entry only.
            Precondition::ModRevision(revision) => {
                document != 0 && document.max(extension) == layout::to_etcd_revision(revision)
            }
        };
        if !holds {
            return Err(StoreError::Conflict { key: Some(self.key.clone()) });
        }
        Ok(std::mem::replace(&mut self.expected, document) != document)
    }

    /// The result of this write if one revision contains it; `None` if it does not.
    fn find_in(&self, changes: &HashMap<&[u8], &Event>) -> Option<MutationResult> {
        let change = changes.get(self.name.as_bytes());
        if self.is_no_op() {
            return change.is_none().then(MutationResult::default);
        }
        let (change, kv) = change.and_then(|change| Some((change, change.kv()?)))?;
        let previous = change.prev_kv();
        let (is_put, value) = (change.event_type() == EventType::Put, self.value.as_deref());
        let is_same = is_put == value.is_some() && value.is_none_or(|value| value.as_bytes() == kv.value());
        if !is_same || previous.map_or(0, KeyValue::mod_revision) != self.expected {
            return None;
        }
        // Two writers may write the same document at once with different extension fields.
        if let Some(name) = self.extension_name.as_deref().filter(|_| is_put) {
            let entry = changes.get(name.as_bytes()).filter(|entry| entry.event_type() == EventType::Put);
            let written = entry.and_then(|entry| entry.kv()).map(KeyValue::value);
            if written != self.extension.as_deref().map(str::as_bytes) {
                return None;
            }
        }
        let created = previous.map_or(kv.create_revision(), KeyValue::create_revision);
        let create_revision = layout::from_etcd_revision(created);
        Some(MutationResult { create_revision, existed: previous.is_some() })
    }

    fn result(&self, response: Option<&TxnOpResponse>, revision: u64) -> MutationResult {
        let created = match response {
            Some(TxnOpResponse::Put(put)) => put.prev_key().map(KeyValue::create_revision),
            Some(TxnOpResponse::Delete(deletion)) => {
                deletion.prev_kvs().first().map(KeyValue::create_revision)
            }
            _ => None,
        };
        let own_revision = if self.value.is_some() { revision } else { 0 };
        MutationResult {
            create_revision: created.map_or(own_revision, layout::from_etcd_revision),
            existed: created.is_some(),
        }
    }
}

impl Attempt {
    pub(super) fn new(batch: Batch, layout: &Layout) -> Self {
        let writes = batch.mutations.into_iter().map(|mutation| DocumentWrite::new(mutation, layout));
        Self { writes: writes.collect(), conditions: batch.conditions, start_revision: 0 }
    }

    /// The names of documents of which any revision will do, so that it must be read.
    pub(super) fn unconditional(&self) -> Vec<String> {
        let writes = self.writes.iter();
        writes
            .filter(|write| write.precondition == Precondition::Unconditional)
            .map(|write| write.name.clone())
            .collect()
    }

    /// The lifetimes of documents, each once.
    pub(super) fn ttls(&self) -> Vec<NonZeroU32> {
        let mut ttls: Vec<_> = self.writes.iter().filter_map(|write| write.ttl).collect();
        ttls.sort_unstable();
        ttls.dedup();
        ttls
    }

    pub(super) fn newest_expected(&self) -> i64 {
        self.writes.iter().map(|write| write.expected).max().unwrap_or_default()
    }

    /// The documents, for the log.
    pub(super) fn describe(&self) -> String {
        match self.writes.as_slice() {
            [write] => write.key.to_string(),
            [write, others @ ..] => format!("{} and {} more", write.key, others.len()),
            [] => "nothing".to_owned(),
        }
    }

    /// The transaction; `leases` has one for each of [`Self::ttls`].
    pub(super) fn txn(&self, layout: &Layout, fence: i64, leases: &BTreeMap<NonZeroU32, i64>) -> Txn {
        let compares = self.key_compares(layout);
        let fence_key = layout.fence_key();
        let mut when = vec![Compare::mod_revision(fence_key.as_str(), CompareOp::Equal, fence)];
        when.extend(compares.iter().map(KeyCompare::compare));
        when.extend(self.conditions.iter().flat_map(|condition| kind_compares(condition, layout)));
        let documents = self.writes.iter().map(|write| write.document_operation(leases));
        let extensions = self.writes.iter().filter_map(DocumentWrite::extension_operation);
        let read = |name: &str| TxnOp::get(name, Some(GetOptions::new().with_keys_only()));
        let reads = std::iter::once(fence_key.as_str()).chain(read_names(&compares)).map(read);
        Txn::new()
            .when(when)
            .and_then(documents.chain(extensions).collect::<Vec<_>>())
            .or_else(reads.collect::<Vec<_>>())
    }

    fn key_compares(&self, layout: &Layout) -> Vec<KeyCompare> {
        let writes = self.writes.iter().flat_map(DocumentWrite::compares);
        writes
            .chain(self.conditions.iter().flat_map(|condition| condition_compares(condition, layout)))
            .collect()
    }

    /// The meaning of the response to [`Self::txn`], and the present revision of the fence if it
    /// was read.
    ///
    /// # Errors
    /// [`StoreError::Conflict`].
    pub(super) fn outcome(
        &mut self,
        layout: &Layout,
        fence: i64,
        response: &TxnResponse,
    ) -> (Option<i64>, Result<TxnOutcome, StoreError>) {
        let operations = response.op_responses();
        if response.succeeded() {
            let revision = layout::from_etcd_revision(response.header().map_or(0, ResponseHeader::revision));
            let results = self.writes.iter().enumerate();
            let mutations = results.map(|(at, write)| write.result(operations.get(at), revision)).collect();
            return (None, Ok(TxnOutcome::Committed(CommitResult { revision, mutations })));
        }
        let mut present = operations.iter().map(|operation| match operation {
            TxnOpResponse::Get(response) => response.kvs().first().map_or(0, KeyValue::mod_revision),
            _ => 0,
        });
        let present_fence = present.next().unwrap_or(-1);
        let compares = self.key_compares(layout);
        let present = read_names(&compares).map(str::to_owned).zip(present).collect();
        let adapted = self.adapt(layout, &present, present_fence != fence);
        (Some(present_fence), adapted.map(|()| TxnOutcome::Outdated))
    }

    /// Expects the present revisions from now on. `is_fenced`: the transaction failed in any case.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a precondition or condition does not hold.
    fn adapt(&mut self, layout: &Layout, present: &ModRevisions, is_fenced: bool) -> Result<(), StoreError> {
        let mut is_explained = is_fenced;
        for write in &mut self.writes {
            is_explained |= write.adapt(present)?;
        }
        for condition in &self.conditions {
            let holds = condition_compares(condition, layout).iter().all(|compare| compare.holds(present));
            if !holds {
                return Err(StoreError::Conflict { key: condition.key().cloned() });
            }
        }
        // Otherwise only a document of a kind can have failed the compares.
        if is_explained { Ok(()) } else { Err(StoreError::Conflict { key: None }) }
    }

    /// Expects these revisions of the documents from now on.
    ///
    /// # Errors
    /// As [`Self::adapt`].
    pub(super) fn expect(&mut self, names: &[String], revisions: Vec<i64>) -> Result<(), StoreError> {
        let present: ModRevisions = names.iter().cloned().zip(revisions).collect();
        let unconditional =
            self.writes.iter_mut().filter(|write| write.precondition == Precondition::Unconditional);
        for write in unconditional {
            write.adapt(&present)?;
        }
        Ok(())
    }

    /// The result of this attempt if the events contain it: events of whole revisions, in order.
    pub(super) fn find_in(&self, events: &[Event]) -> Option<CommitResult> {
        events.chunk_by(|one, next| revision_of(one) == revision_of(next)).find_map(|changes| {
            let revision = changes.first().map(revision_of)?;
            let changes: HashMap<&[u8], &Event> =
                changes.iter().filter_map(|change| Some((change.kv()?.key(), change))).collect();
            let is_written = |write: &DocumentWrite| !write.is_no_op();
            let mutations: Option<Vec<_>> = self.writes.iter().map(|write| write.find_in(&changes)).collect();
            let mutations = mutations.filter(|_| self.writes.iter().any(is_written))?;
            Some(CommitResult { revision: layout::from_etcd_revision(revision), mutations })
        })
    }
}

impl KeyCompare {
    fn compare(&self) -> Compare {
        let name = self.name.as_str();
        match self.test {
            Test::Modified(revision) => Compare::mod_revision(name, CompareOp::Equal, revision),
            Test::NotAfter(revision) => {
                Compare::mod_revision(name, CompareOp::Less, revision.saturating_add(1))
            }
            Test::Exists => Compare::version(name, CompareOp::Greater, 0),
        }
    }

    fn holds(&self, present: &ModRevisions) -> bool {
        let revision = present.get(&self.name).copied().unwrap_or_default();
        match self.test {
            Test::Modified(expected) => revision == expected,
            Test::NotAfter(newest) => revision <= newest,
            Test::Exists => revision != 0,
        }
    }
}

/// The keys that the failure branch reads, each once.
fn read_names(compares: &[KeyCompare]) -> impl Iterator<Item = &str> {
    let mut seen = std::collections::HashSet::new();
    compares.iter().map(|compare| compare.name.as_str()).filter(move |name| seen.insert(*name))
}

fn condition_compares(condition: &Condition, layout: &Layout) -> Vec<KeyCompare> {
    let document = |key: &Key, test| KeyCompare { name: layout.document_key(key), test };
    match condition {
        Condition::Exists(key) => vec![document(key, Test::Exists)],
        Condition::Absent(key) => vec![document(key, Test::Modified(0))],
        Condition::Unchanged { key, since } => {
            let test = Test::NotAfter(layout::to_etcd_revision(*since));
            let extension = layout.extension_key(key).map(|name| KeyCompare { name, test });
            [document(key, Test::Exists), document(key, test)].into_iter().chain(extension).collect()
        }
        Condition::KindUnchanged { .. } => Vec::new(),
    }
}

/// Compares of all keys of a kind, which the failure branch does not read.
fn kind_compares(condition: &Condition, layout: &Layout) -> Vec<Compare> {
    let Condition::KindUnchanged { kind, since } = condition else { return Vec::new() };
    let newer = layout::to_etcd_revision(*since).saturating_add(1);
    let prefixes = std::iter::once(layout.kind_prefix(*kind)).chain(layout.kind_extensions_prefix(*kind));
    prefixes.map(|prefix| Compare::mod_revision(prefix, CompareOp::Less, newer).with_prefix()).collect()
}

fn revision_of(event: &Event) -> i64 {
    event.kv().map_or(0, KeyValue::mod_revision)
}
