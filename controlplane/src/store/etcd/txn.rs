//! A batch as one transaction of etcd: its compares, its writes, and what its response means.
//!
//! Each document that is written is compared with the revision that the writer expects, so a
//! transaction can be found in the history, and cannot be applied twice. The failure branch reads
//! the compared keys: it says which compare failed.
//!
//! A batch with more parts than a transaction takes has them in nested transactions. etcd evaluates
//! all compares before it writes, but a nested transaction whose compares fail does not keep its
//! siblings from writing. So its failure branch is a read that etcd rejects: the whole transaction
//! then fails before its first write. Reads afterwards say which compare failed.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;

use etcd_client::{
    DeleteOptions, Event, EventType, GetOptions, KeyValue, PutOptions, ResponseHeader, Txn, TxnOp,
    TxnOpResponse, TxnResponse,
};
use model::Key;

use super::compare::{KeyCompare, KeyState, Test, condition_compares};
use super::layout::{self, Layout};
use crate::store::{Batch, CommitResult, Condition, Mutation, MutationResult, Precondition, StoreError};

/// etcd's default `--max-txn-ops`: of compares, and of operations in each branch. A nested
/// transaction takes as many as the outer one leaves.
pub(super) const OPERATIONS_MAX: usize = 128;

/// The lease of each time to live.
pub(super) type TtlLeases = BTreeMap<NonZeroU32, i64>;

/// One attempt of a commit. The next one expects what was read after it.
#[derive(Clone)]
pub(super) struct Attempt {
    writes: Vec<DocumentWrite>,
    conditions: Vec<Condition>,
    /// The batch exceeds one transaction without nested ones.
    is_nested: bool,
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
    ttl: Option<NonZeroU32>,
    /// The mod revision of the document to compare with; 0: absent.
    expected: i64,
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
        let expected = match precondition {
            Precondition::ModRevision(revision) => layout::to_etcd_revision(revision),
            Precondition::Absent | Precondition::Unconditional => 0,
        };
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

    fn compares(&self) -> impl Iterator<Item = KeyCompare> {
        let document = KeyCompare::key(&self.name, Test::Modified(self.expected));
        let extension = self.seen_extension();
        let extension = extension.map(|(name, seen)| KeyCompare::key(name, Test::NotAfter(seen)));
        std::iter::once(document).chain(extension)
    }

    fn document_operation(&self, leases: &TtlLeases) -> TxnOp {
        let name = self.name.as_str();
        let Some(value) = &self.value else {
            return TxnOp::delete(name, Some(DeleteOptions::new().with_prev_key()));
        };
        let options = PutOptions::new().with_prev_key();
        let lease = self.ttl.and_then(|ttl| leases.get(&ttl));
        let options = lease.into_iter().fold(options, |options, lease| options.with_lease(*lease));
        TxnOp::put(name, value.as_str(), Some(options))
    }

    /// `None` where an older entry does not belong to the document anyway.
    fn extension_operation(&self) -> Option<TxnOp> {
        let name = self.extension_name.as_deref()?;
        match &self.extension {
            // Without the document's lease: another program may write the document without it, and
            // an entry that expires first would leave the document unprotected. One that outlives
            // the document is ignored, and removed by a watch.
            Some(extension) => Some(TxnOp::put(name, extension.as_str(), None)),
            None => (self.expected != 0).then(|| TxnOp::delete(name, None)),
        }
    }

    /// Expects the present mod revision of the document from now on.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the precondition does not hold for it.
    fn expect(&mut self, document: i64, extension: i64) -> Result<(), StoreError> {
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
        self.expected = document;
        Ok(())
    }

    /// The result of this write if one revision contains it; `None` if it does not.
    fn find_in(&self, changes: &HashMap<&[u8], &Event>) -> Option<MutationResult> {
        let Some((change, kv)) =
            changes.get(self.name.as_bytes()).and_then(|change| Some((change, change.kv()?)))
        else {
            return (self.value.is_none() && self.expected == 0).then(MutationResult::default);
        };
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
        let (writes, conditions): (Vec<_>, _) = (writes.collect(), batch.conditions);
        let operations = writes.iter().map(|write| 1 + usize::from(write.extension_name.is_some()));
        let has_many_operations = operations.sum::<usize>() > OPERATIONS_MAX;
        let mut attempt = Self { writes, conditions, is_nested: false, start_revision: 0 };
        // With the compare of the fence.
        attempt.is_nested = has_many_operations || attempt.compares(layout).len() >= OPERATIONS_MAX;
        attempt
    }

    /// Reads of the documents of which nothing is expected yet, for [`Self::expect`].
    pub(super) fn unconditional_reads(&self) -> Vec<TxnOp> {
        let names = self.writes.iter().filter(|write| write.precondition == Precondition::Unconditional);
        names.map(|write| TxnOp::get(write.name.as_str(), Some(GetOptions::new().with_keys_only()))).collect()
    }

    /// Expects the states that [`Self::unconditional_reads`] have found.
    pub(super) fn expect(&mut self, states: Vec<KeyState>) {
        let writes = self.writes.iter_mut();
        let writes = writes.filter(|write| write.precondition == Precondition::Unconditional);
        writes.zip(states).for_each(|(write, state)| write.expected = state.mod_revision);
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
    pub(super) fn txn(&self, layout: &Layout, fence: i64, leases: &TtlLeases) -> Txn {
        let fence = KeyCompare::key(&layout.fence_key(), Test::Modified(fence));
        let compares = self.compares(layout);
        let documents = self.writes.iter().map(|write| write.document_operation(leases));
        let extensions = self.writes.iter().filter_map(DocumentWrite::extension_operation);
        let operations: Vec<TxnOp> = documents.chain(extensions).collect();
        if self.is_nested {
            let nested = nest(&compares, &operations, &layout.fence_key());
            return Txn::new().when([fence.compare()]).and_then(nested).or_else([fence.read()]);
        }
        let compares: Vec<_> = std::iter::once(fence).chain(compares).collect();
        Txn::new()
            .when(compares.iter().map(KeyCompare::compare).collect::<Vec<_>>())
            .and_then(operations)
            .or_else(compares.iter().map(KeyCompare::read).collect::<Vec<_>>())
    }

    /// The compares of the writes, then those of the conditions.
    fn compares(&self, layout: &Layout) -> Vec<KeyCompare> {
        let writes = self.writes.iter().flat_map(DocumentWrite::compares);
        let conditions = self.conditions.iter().flat_map(|condition| condition_compares(condition, layout));
        writes.chain(conditions).collect()
    }

    /// The compares as reads, for [`Self::explain`].
    pub(super) fn compare_reads(&self, layout: &Layout) -> Vec<TxnOp> {
        self.compares(layout).iter().map(KeyCompare::read).collect()
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
        let mut states = response.op_responses().iter().map(KeyState::read).collect::<Vec<_>>().into_iter();
        let fence = states.next().map(|fence| fence.mod_revision);
        // Nested compares were not evaluated when that of the fence failed.
        let explained = if self.is_nested { Ok(()) } else { self.explain(layout, states) };
        (fence, explained.map(|()| TxnOutcome::Outdated))
    }

    /// Expects the present states from now on, which [`Self::compare_reads`] have found.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a precondition or condition does not hold for them.
    pub(super) fn explain(
        &mut self,
        layout: &Layout,
        states: impl IntoIterator<Item = KeyState>,
    ) -> Result<(), StoreError> {
        let mut states = states.into_iter();
        let mut next = || states.next().unwrap_or_default();
        for write in &mut self.writes {
            let document = next().mod_revision;
            let extension = write.seen_extension().map_or(0, |_| next().mod_revision);
            write.expect(document, extension)?;
        }
        for condition in &self.conditions {
            for compare in condition_compares(condition, layout) {
                if !compare.holds(next()) {
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
            let found = self.writes.iter().map(|write| write.find_in(&changes));
            let mutations: Option<Vec<_>> = found.collect();
            let mutations = mutations.filter(|_| self.writes.iter().any(is_written))?;
            Some(CommitResult { revision: layout::from_etcd_revision(revision), mutations })
        })
    }
}

/// Nested transactions with the compares, then those with the operations.
fn nest(compares: &[KeyCompare], operations: &[TxnOp], key: &str) -> Vec<TxnOp> {
    let parts = |size: usize| compares.len().div_ceil(size) + operations.len().div_ceil(size);
    let fits = |size: &usize| parts(*size) + size <= OPERATIONS_MAX;
    // Where no size fits, etcd rejects the transaction.
    let size = (1..OPERATIONS_MAX).rev().find(fits).unwrap_or(OPERATIONS_MAX / 2);
    // etcd rejects a read of a revision that there is not yet.
    let failing = TxnOp::get(key, Some(GetOptions::new().with_revision(i64::MAX)));
    let compares = compares.chunks(size).map(|part| {
        let compares = part.iter().map(KeyCompare::compare).collect::<Vec<_>>();
        TxnOp::txn(Txn::new().when(compares).or_else([failing.clone()]))
    });
    let operations = operations.chunks(size).map(|part| TxnOp::txn(Txn::new().and_then(part)));
    compares.chain(operations).collect()
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
