//! A batch as one transaction of etcd: its compares, its writes, and what its response means.
//!
//! Each document that is written is compared with the revision that the writer expects, so a
//! transaction can be found in the history, and cannot be applied twice. The failure branch reads
//! the compared keys: it says which compare failed.
//!
//! A batch with more compares than a transaction takes is read before each attempt. One compare for
//! each kind then makes sure that nothing in the range of its keys is newer than what was read.
//! etcd rejects an update of a key that is gone (`ignore_lease`), and a removal of such a key
//! writes nothing.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;

use etcd_client::{
    DeleteOptions, Event, EventType, KeyValue, PutOptions, ResponseHeader, Txn, TxnOp, TxnOpResponse,
    TxnResponse,
};
use model::{Key, Kind};

use super::compare::{KeyCompare, KeyState, Test, condition_compares};
use super::layout::{self, Layout};
use crate::store::{Batch, CommitResult, Condition, Mutation, MutationResult, Precondition, StoreError};

/// etcd's default `--max-txn-ops`: of compares, and of operations in each branch.
pub(super) const OPERATIONS_MAX: usize = 128;

/// The lease of each time to live.
pub(super) type TtlLeases = BTreeMap<NonZeroU32, i64>;

/// One attempt of a commit. The next one expects what the failure branch has read.
#[derive(Clone)]
pub(super) struct Attempt {
    writes: Vec<DocumentWrite>,
    conditions: Vec<Condition>,
    guard: Guard,
    /// A revision of the store before the transaction was sent.
    pub(super) start_revision: i64,
}

/// How the documents that are written are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guard {
    EachDocument,
    /// Ranges of keys, with the revision at which all documents were read (0 before that).
    Ranges(i64),
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
    ttl: Option<NonZeroU32>,
    /// The state to compare with.
    expected: KeyState,
}

/// What a response means.
pub(super) enum TxnOutcome {
    Committed(CommitResult),
    /// Nothing was written; the next attempt may succeed.
    Outdated,
}

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
        let mod_revision = match precondition {
            Precondition::ModRevision(revision) => layout::to_etcd_revision(revision),
            Precondition::Absent | Precondition::Unconditional => 0,
        };
        let expected = KeyState { mod_revision, lease: 0 };
        let (name, extension_name) = (layout.document_key(&key), layout.extension_key(&key));
        Self { key, name, value, extension_name, extension, precondition, ttl, expected }
    }

    /// The extension entry that must not be newer than what the writer has seen.
    fn seen_extension(&self) -> Option<(&str, i64)> {
        match self.precondition {
            Precondition::ModRevision(seen) => {
                Some((self.extension_name.as_deref()?, layout::to_etcd_revision(seen)))
            }
            Precondition::Absent | Precondition::Unconditional => None,
        }
    }

    /// Whether a range can guard the document. An update that changes the lease needs a compare.
    fn suits_range(&self) -> bool {
        self.value.is_none() || (self.ttl.is_none() && self.expected.lease == 0)
    }

    fn compares(&self, guard: Guard) -> impl Iterator<Item = KeyCompare> {
        let is_own = guard == Guard::EachDocument;
        let document = (is_own || !self.suits_range())
            .then(|| KeyCompare::key(&self.name, Test::Modified(self.expected.mod_revision)));
        let extension = self.seen_extension().filter(|_| is_own);
        let extension = extension.map(|(name, seen)| KeyCompare::key(name, Test::NotAfter(seen)));
        document.into_iter().chain(extension)
    }

    fn document_operation(&self, guard: Guard, leases: &TtlLeases) -> TxnOp {
        let name = self.name.as_str();
        let Some(value) = &self.value else {
            return TxnOp::delete(name, Some(DeleteOptions::new().with_prev_key()));
        };
        let mut options = PutOptions::new().with_prev_key();
        if let Some(lease) = self.ttl.and_then(|ttl| leases.get(&ttl)) {
            options = options.with_lease(*lease);
        } else if guard != Guard::EachDocument && self.suits_range() && self.expected.mod_revision != 0 {
            // Fails without the document, and keeps that it has no lease.
            options = options.with_ignore_lease();
        }
        TxnOp::put(name, value.as_str(), Some(options))
    }

    /// `None` where an older entry does not belong to the document anyway.
    fn extension_operation(&self) -> Option<TxnOp> {
        let name = self.extension_name.as_deref()?;
        match &self.extension {
            // Without the document's lease: an entry that outlives the document is ignored, and one
            // that expired first would leave the document unprotected.
            Some(extension) => Some(TxnOp::put(name, extension.as_str(), None)),
            None => (self.expected.mod_revision != 0).then(|| TxnOp::delete(name, None)),
        }
    }

    /// Expects the present state from now on.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the precondition does not hold for it.
    fn expect(&mut self, document: KeyState, extension: KeyState) -> Result<(), StoreError> {
        let holds = match self.precondition {
            Precondition::Unconditional => true,
            Precondition::Absent => document.mod_revision == 0,
            // The newest change may be one of the extension entry only.
            Precondition::ModRevision(revision) => {
                let newest = document.mod_revision.max(extension.mod_revision);
                document.mod_revision != 0 && newest == layout::to_etcd_revision(revision)
            }
        };
        if !holds {
            return Err(StoreError::Conflict { key: Some(self.key.clone()) });
        }
        self.expected = document;
        Ok(())
    }

    /// The result of this write if one revision contains it; `None` if it does not.
    fn find_in(&self, guard: Guard, changes: &HashMap<&[u8], &Event>) -> Option<MutationResult> {
        let Some((change, kv)) =
            changes.get(self.name.as_bytes()).and_then(|change| Some((change, change.kv()?)))
        else {
            let is_no_op = self.expected.mod_revision == 0 || guard != Guard::EachDocument;
            return (self.value.is_none() && is_no_op).then(MutationResult::default);
        };
        let previous = change.prev_kv();
        let (is_put, value) = (change.event_type() == EventType::Put, self.value.as_deref());
        let is_same = is_put == value.is_some() && value.is_none_or(|value| value.as_bytes() == kv.value());
        if !is_same || previous.map_or(0, KeyValue::mod_revision) != self.expected.mod_revision {
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
        let (writes, conditions) = (writes.collect(), batch.conditions);
        let mut attempt = Self { writes, conditions, guard: Guard::EachDocument, start_revision: 0 };
        // With the compare of the fence.
        if attempt.compares(layout).len() >= OPERATIONS_MAX {
            attempt.guard = Guard::Ranges(0);
        }
        attempt
    }

    /// The keys that must be read before an attempt, and passed to [`Self::expect`]; `is_first`: no
    /// failure branch has read any.
    pub(super) fn names_to_read(&self, is_first: bool) -> Vec<String> {
        let by_range = self.guard != Guard::EachDocument;
        let read = |write: &&DocumentWrite| {
            by_range || (is_first && write.precondition == Precondition::Unconditional)
        };
        let names = self.writes.iter().filter(read).flat_map(|write| {
            let extension = write.seen_extension().map(|(name, _)| name.to_owned());
            std::iter::once(write.name.clone()).chain(extension)
        });
        names.collect()
    }

    /// Expects what was read of [`Self::names_to_read`] at one revision.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a precondition does not hold for it.
    pub(super) fn expect(&mut self, revision: i64, states: Vec<KeyState>) -> Result<(), StoreError> {
        let by_range = self.guard != Guard::EachDocument;
        if by_range {
            self.guard = Guard::Ranges(revision);
        }
        let mut states = states.into_iter();
        for write in &mut self.writes {
            if !by_range && write.precondition != Precondition::Unconditional {
                continue;
            }
            let document = states.next().unwrap_or_default();
            let extension = write.seen_extension().and_then(|_| states.next()).unwrap_or_default();
            write.expect(document, extension)?;
        }
        Ok(())
    }

    /// The lifetimes of documents, each once.
    pub(super) fn ttls(&self) -> Vec<NonZeroU32> {
        let mut ttls: Vec<_> = self.writes.iter().filter_map(|write| write.ttl).collect();
        ttls.sort_unstable();
        ttls.dedup();
        ttls
    }

    pub(super) fn newest_expected(&self) -> i64 {
        self.writes.iter().map(|write| write.expected.mod_revision).max().unwrap_or_default()
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
    pub(super) fn txn(&self, layout: &Layout, fence: i64, leases: &TtlLeases) -> Txn {
        let fence = KeyCompare::key(&layout.fence_key(), Test::Modified(fence));
        let compares: Vec<_> = std::iter::once(fence).chain(self.compares(layout)).collect();
        let documents = self.writes.iter().map(|write| write.document_operation(self.guard, leases));
        let extensions = self.writes.iter().filter_map(DocumentWrite::extension_operation);
        Txn::new()
            .when(compares.iter().map(KeyCompare::compare).collect::<Vec<_>>())
            .and_then(nest(documents.chain(extensions).collect(), compares.len()))
            .or_else(compares.iter().map(KeyCompare::read).collect::<Vec<_>>())
    }

    /// The compares of the writes, then those of the conditions, then those of ranges.
    fn compares(&self, layout: &Layout) -> Vec<KeyCompare> {
        let writes = self.writes.iter().flat_map(|write| write.compares(self.guard));
        let conditions = self.conditions.iter().flat_map(|condition| condition_compares(condition, layout));
        writes.chain(conditions).chain(self.ranges()).collect()
    }

    /// The ranges of documents, and of their extension entries, that suit no compare of their own.
    fn ranges(&self) -> Vec<KeyCompare> {
        let Guard::Ranges(since) = self.guard else { return Vec::new() };
        let mut names: BTreeMap<(Kind, bool), (&str, &str)> = BTreeMap::new();
        for write in &self.writes {
            let document = write.suits_range().then_some(((write.key.kind, false), write.name.as_str()));
            let extension = write.seen_extension().map(|(name, _)| ((write.key.kind, true), name));
            for (directory, name) in document.into_iter().chain(extension) {
                let (first, last) = names.entry(directory).or_insert((name, name));
                (*first, *last) = (name.min(first), name.max(last));
            }
        }
        let range = |(first, last): (&str, &str)| {
            KeyCompare::range(first.to_owned(), [last.as_bytes(), &[0]].concat(), since)
        };
        names.into_values().map(range).collect()
    }

    /// The meaning of the response to [`Self::txn`], and the present revision of the fence if it
    /// was read.
    ///
    /// # Errors
    /// [`StoreError::Conflict`].
    pub(super) fn outcome(
        &mut self,
        layout: &Layout,
        response: &TxnResponse,
    ) -> (Option<i64>, Result<TxnOutcome, StoreError>) {
        if response.succeeded() {
            let revision = layout::from_etcd_revision(response.header().map_or(0, ResponseHeader::revision));
            let operations = flatten(response);
            let results = self.writes.iter().enumerate();
            let mutations = results.map(|(at, write)| write.result(operations.get(at), revision)).collect();
            return (None, Ok(TxnOutcome::Committed(CommitResult { revision, mutations })));
        }
        let operations = response.op_responses();
        let mut states = operations.iter().map(|operation| match operation {
            TxnOpResponse::Get(response) => response.kvs().first().map(KeyState::from).unwrap_or_default(),
            _ => KeyState::default(),
        });
        let fence = states.next().map(|state| state.mod_revision);
        (fence, self.explain(layout, states).map(|()| TxnOutcome::Outdated))
    }

    /// Expects the present states from now on.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a precondition or condition does not hold for them.
    fn explain(
        &mut self,
        layout: &Layout,
        mut states: impl Iterator<Item = KeyState>,
    ) -> Result<(), StoreError> {
        let guard = self.guard;
        for write in &mut self.writes {
            let document = states.by_ref().take(write.compares(guard).count()).collect::<Vec<_>>();
            // With ranges the next attempt reads all states itself.
            if guard == Guard::EachDocument {
                let state = |at: usize| document.get(at).copied().unwrap_or_default();
                write.expect(state(0), state(1))?;
            }
        }
        for condition in &self.conditions {
            for compare in condition_compares(condition, layout) {
                if !compare.holds(states.next().unwrap_or_default()) {
                    return Err(StoreError::Conflict { key: condition.key().cloned() });
                }
            }
        }
        Ok(())
    }

    /// The result of this attempt if the events contain it: events of whole revisions, in order.
    pub(super) fn find_in(&self, events: &[Event]) -> Option<CommitResult> {
        events.chunk_by(|one, next| revision_of(one) == revision_of(next)).find_map(|changes| {
            let revision = changes.first().map(revision_of)?;
            let changes: HashMap<&[u8], &Event> =
                changes.iter().filter_map(|change| Some((change.kv()?.key(), change))).collect();
            let is_written = |write: &DocumentWrite| changes.contains_key(write.name.as_bytes());
            let found = self.writes.iter().map(|write| write.find_in(self.guard, &changes));
            let mutations: Option<Vec<_>> = found.collect();
            let mutations = mutations.filter(|_| self.writes.iter().any(is_written))?;
            Some(CommitResult { revision: layout::from_etcd_revision(revision), mutations })
        })
    }
}

/// Operations in nested transactions, when there are more than one transaction takes: a nested one
/// takes as many as the outer one leaves.
fn nest(operations: Vec<TxnOp>, compares: usize) -> Vec<TxnOp> {
    let fits = |parts: &usize| operations.len().div_ceil(*parts) + compares.max(*parts) <= OPERATIONS_MAX;
    if operations.len() <= OPERATIONS_MAX {
        return operations;
    }
    let Some(parts) = (1..OPERATIONS_MAX).find(fits) else { return operations };
    let part = |part: &[TxnOp]| TxnOp::txn(Txn::new().and_then(part.to_vec()));
    operations.chunks(operations.len().div_ceil(parts)).map(part).collect()
}

/// The responses to operations before [`nest`].
fn flatten(response: &TxnResponse) -> Vec<TxnOpResponse> {
    let parts = response.op_responses().into_iter().flat_map(|operation| match operation {
        TxnOpResponse::Txn(part) => part.op_responses(),
        operation => vec![operation],
    });
    parts.collect()
}

fn revision_of(event: &Event) -> i64 {
    event.kv().map_or(0, KeyValue::mod_revision)
}
