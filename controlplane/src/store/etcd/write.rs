//! Writes: each batch is one transaction with compares, and is never repeated blindly.
//!
//! A write without a response may have been applied, or may be applied later: a paused member may
//! still hold it. So each write also compares the *fence*, a key that is written for this purpose
//! only. After a write of unknown outcome the fence is written: a late write then fails its
//! compare, and a read of the history is final.
//!
//! Invariant: a reported outcome is final. [`StoreError::OutcomeUnknown`] is reported when no
//! endpoint answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use etcd_client::{Compare, CompareOp, Error, GetOptions, KvClient, Txn, TxnOp, WatchOptions};
use model::Key;
use tonic::Code;

use super::compare::KeyState;
use super::connection::EtcdConnection;
use super::layout;
use super::txn::{Attempt, OPERATIONS_MAX, TtlLeases, TxnOutcome};
use super::{Cluster, dial};
use crate::store::{Batch, CommitResult, InternalKey, StoreError};

/// Attempts of an unconditional write that loses against others or against a moved fence.
const WRITE_ATTEMPTS: usize = 64;

/// The fence's mod revision as last seen by this process: 0 if absent, negative if not read yet.
pub(super) struct Fence(AtomicI64);

impl Default for Fence {
    fn default() -> Self {
        Self(AtomicI64::new(-1))
    }
}

impl Cluster {
    /// Commits a batch in one transaction.
    pub(super) async fn commit(self: &Arc<Self>, batch: Batch) -> Result<CommitResult, StoreError> {
        let started = Instant::now();
        let committed = self.commit_batch(batch).await;
        if committed.is_ok() {
            self.metrics.commits.observe(started);
        }
        committed
    }

    async fn commit_batch(self: &Arc<Self>, batch: Batch) -> Result<CommitResult, StoreError> {
        batch.check_keys()?;
        let first = batch.mutations.first().map(|mutation| mutation.key().clone());
        let mut attempt = Attempt::new(batch, &self.layout);
        let states = self.key_states(&attempt.unconditional_reads()).await?;
        attempt.expect(states);
        for _ in 0..WRITE_ATTEMPTS {
            attempt.start_revision = attempt.newest_expected().max(self.connections.revision());
            if let TxnOutcome::Committed(committed) = self.execute(&mut attempt).await? {
                return Ok(committed);
            }
        }
        Err(StoreError::Conflict { key: first })
    }

    async fn execute(self: &Arc<Self>, attempt: &mut Attempt) -> Result<TxnOutcome, StoreError> {
        let connection = self.connections.current().await?;
        let mut leases = TtlLeases::new();
        let outcome = self.execute_with(attempt, &connection, &mut leases).await;
        let may_have_keys =
            matches!(outcome, Ok(TxnOutcome::Committed(_)) | Err(StoreError::OutcomeUnknown { .. }));
        if !may_have_keys {
            self.revoke_leases(&connection, leases).await;
        }
        outcome
    }

    /// `leases` takes those that are granted.
    async fn execute_with(
        self: &Arc<Self>,
        attempt: &mut Attempt,
        connection: &EtcdConnection,
        leases: &mut TtlLeases,
    ) -> Result<TxnOutcome, StoreError> {
        let fence = self.fence_revision().await?;
        for ttl in attempt.ttls() {
            leases.insert(ttl, self.grant_lease(connection, ttl.get().into()).await?);
        }
        let txn = attempt.txn(&self.layout, fence, leases);
        let mut kv = connection.kv();
        let error = tokio::select! {
            response = kv.txn(txn) => match response {
                Ok(response) => {
                    let (present_fence, outcome) = attempt.outcome(&self.layout, &response);
                    if let Some(revision) = present_fence {
                        self.fence.0.store(revision, Ordering::Release);
                    }
                    return outcome;
                }
                Err(error) => error,
            },
            () = self.connections.wait_lost(connection) => Error::Internal("the connection was lost".to_owned()),
            () = tokio::time::sleep(self.connections.timeout()) => Error::Internal("no response in time".to_owned()),
        };
        let what = self.connections.describe_error(connection, &error);
        if is_failed_compare(&error) {
            let states = self.key_states(&attempt.compare_reads(&self.layout)).await?;
            return attempt.explain(&self.layout, states).map(|()| TxnOutcome::Outdated);
        }
        if let Some(definite) = definite_error(&error, &what) {
            return Err(definite);
        }
        if dial::was_not_sent(&error) {
            return Err(StoreError::Unavailable { what });
        }
        tracing::warn!(
            resource = attempt.describe(),
            problem = what,
            "a write has no response; resolving whether it was committed"
        );
        self.connections.check_health(connection).await;
        let resolving = self.resolve_unknown(attempt);
        match tokio::time::timeout(self.connections.timeout(), resolving).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) | Err(_) => {
                self.resolve_in_background(attempt.clone());
                Err(StoreError::OutcomeUnknown { what })
            }
        }
    }

    /// The cached mod revision of the fence; read once.
    async fn fence_revision(&self) -> Result<i64, StoreError> {
        let cached = self.fence.0.load(Ordering::Acquire);
        if cached >= 0 {
            return Ok(cached);
        }
        let name = self.layout.fence_key();
        let (current, _) = self.mod_revision(name).await?;
        self.fence.0.store(current, Ordering::Release);
        Ok(current)
    }

    /// The mod revision of a key, 0 if absent, and the store's revision.
    pub(super) async fn mod_revision(&self, name: String) -> Result<(i64, u64), StoreError> {
        let options = GetOptions::new().with_keys_only();
        let response = self.call(|mut kv: KvClient| {
            let (name, options) = (name.clone(), options.clone());
            async move { kv.get(name, Some(options)).await }
        });
        let response = response.await?;
        let store =
            layout::from_etcd_revision(response.header().map_or(0, etcd_client::ResponseHeader::revision));
        Ok((response.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision), store))
    }

    /// The states of the keys that are read.
    async fn key_states(&self, reads: &[TxnOp]) -> Result<Vec<KeyState>, StoreError> {
        let mut states = Vec::with_capacity(reads.len());
        for reads in reads.chunks(OPERATIONS_MAX) {
            let response =
                self.call(|mut kv: KvClient| async move { kv.txn(Txn::new().and_then(reads)).await });
            states.extend(response.await?.op_responses().iter().map(KeyState::read));
        }
        Ok(states)
    }

    pub(super) async fn grant_lease(
        &self,
        connection: &EtcdConnection,
        seconds: u64,
    ) -> Result<i64, StoreError> {
        let mut lease = connection.client.lease_client();
        let response = tokio::time::timeout(
            self.connections.timeout(),
            lease.grant(layout::to_etcd_revision(seconds), None),
        )
        .await;
        let timed_out = |_| StoreError::Unavailable { what: "no lease was granted in time".to_owned() };
        Ok(response.map_err(timed_out)?.map_err(|error| self.unavailable(connection, &error))?.id())
    }

    /// Revokes leases without keys: they may live for 136 years. One that stays does no harm.
    async fn revoke_leases(&self, connection: &EtcdConnection, leases: TtlLeases) {
        let mut client = connection.client.lease_client();
        for lease in leases.into_values() {
            let revoked = tokio::time::timeout(self.connections.timeout(), client.revoke(lease)).await;
            if !matches!(revoked, Ok(Ok(_))) {
                return;
            }
        }
    }

    /// Moves the fence, so that an earlier write can no longer be applied, and finds the outcome.
    /// Fails only when no endpoint answers.
    async fn resolve_unknown(&self, attempt: &Attempt) -> Result<TxnOutcome, StoreError> {
        let name = self.layout.fence_key();
        let response = self.call(|mut kv: KvClient| {
            let name = name.clone();
            async move { kv.put(name, "1", None).await }
        });
        let response = response.await?;
        let revision = response.header().map_or(-1, etcd_client::ResponseHeader::revision);
        self.fence.0.store(revision, Ordering::Release);
        let committed = self.find_committed(attempt, revision).await?;
        tracing::info!(
            resource = attempt.describe(),
            committed = committed.is_some(),
            "resolved a write without a response"
        );
        Ok(committed.map_or(TxnOutcome::Outdated, TxnOutcome::Committed))
    }

    /// Reads all events from before the write was sent until the fence moved; `None`: the write is
    /// not among them.
    async fn find_committed(
        &self,
        attempt: &Attempt,
        fence_revision: i64,
    ) -> Result<Option<CommitResult>, StoreError> {
        let unavailable = |what: String| StoreError::Unavailable { what };
        if fence_revision <= attempt.start_revision {
            return Err(unavailable("the cluster was set back meanwhile".to_owned()));
        }
        let connection = self.connections.current().await?;
        let options =
            WatchOptions::new().with_prefix().with_prev_key().with_start_revision(attempt.start_revision + 1);
        let describe = |error: Error| unavailable(self.connections.describe_error(&connection, &error));
        let mut client = connection.watch();
        let mut stream = client.watch(self.layout.root(), Some(options)).await.map_err(describe)?;
        let mut committed = None;
        loop {
            let response = tokio::select! {
                response = stream.message() => response.map_err(describe)?,
                () = self.connections.wait_lost(&connection) => None,
            };
            let response = response.filter(|response| !response.canceled());
            let response =
                response.ok_or_else(|| unavailable("what happened can no longer be read".to_owned()))?;
            committed = committed.or_else(|| attempt.find_in(response.events()));
            for event in response.events() {
                let fence = event.kv().filter(|kv| kv.key() == self.layout.fence_key().as_bytes());
                if fence.is_some_and(|kv| kv.mod_revision() == fence_revision) {
                    return Ok(committed);
                }
            }
        }
    }

    /// Resolves a write with an unreported outcome once an endpoint answers again, so that it is
    /// not applied later.
    fn resolve_in_background(self: &Arc<Self>, attempt: Attempt) {
        let cluster = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let Some(cluster) = cluster.upgrade() else { return };
                if cluster.connections.wait_connected().await.is_none()
                    || cluster.resolve_unknown(&attempt).await.is_ok()
                {
                    return;
                }
                tokio::time::sleep(cluster.connections.timeout().min(std::time::Duration::from_secs(1)))
                    .await;
            }
        });
    }

    /// Takes a revision as an id, as an APISIX does (contract 2.3). A repeated call wastes a
    /// revision only.
    pub(super) async fn reserve_id(&self) -> Result<u64, StoreError> {
        let name = self.layout.sequence_key();
        let response = self.call(|mut kv: KvClient| {
            let name = name.clone();
            async move { kv.put(name, "1", None).await }
        });
        let response = response.await?;
        Ok(layout::from_etcd_revision(response.header().map_or(0, etcd_client::ResponseHeader::revision)))
    }

    /// Removes extension entries, each if it has this mod revision and its document is absent. Such
    /// an entry belongs to no later document, so removing it changes none, however late it happens.
    pub(super) async fn remove_extensions(&self, entries: &[(Key, u64)]) -> Result<(), StoreError> {
        for entries in entries.chunks(OPERATIONS_MAX / 2) {
            let removals: Vec<TxnOp> = entries
                .iter()
                .filter_map(|(key, mod_revision)| {
                    let name = self.layout.extension_key(key)?;
                    let is_same = Compare::mod_revision(
                        name.as_str(),
                        CompareOp::Equal,
                        layout::to_etcd_revision(*mod_revision),
                    );
                    let is_absent = Compare::version(self.layout.document_key(key), CompareOp::Equal, 0);
                    let removal = TxnOp::delete(name, None);
                    Some(TxnOp::txn(Txn::new().when([is_same, is_absent]).and_then([removal])))
                })
                .collect();
            let removals = &removals;
            self.call(
                |mut kv: KvClient| async move { kv.txn(Txn::new().and_then(removals.as_slice())).await },
            )
            .await?;
        }
        Ok(())
    }

    /// Replaces an internal entry. Never repeated without a response: the caller reads the entry
    /// before it retries.
    pub(super) async fn swap_internal_entry(
        &self,
        key: InternalKey,
        expect: u64,
        text: &str,
    ) -> Result<u64, StoreError> {
        let connection = self.connections.current().await?;
        let name = self.layout.internal_key(key);
        let compare =
            Compare::mod_revision(name.as_str(), CompareOp::Equal, layout::to_etcd_revision(expect));
        let txn = Txn::new().when([compare]).and_then([TxnOp::put(name, text, None)]);
        let mut kv = connection.kv();
        let unknown = |what: String| StoreError::OutcomeUnknown { what };
        let response = tokio::select! {
            response = kv.txn(txn) => response.map_err(|error| unknown(self.connections.describe_error(&connection, &error)))?,
            () = self.connections.wait_lost(&connection) => return Err(unknown("the connection was lost".to_owned())),
            () = tokio::time::sleep(self.connections.timeout()) => return Err(unknown("no response in time".to_owned())),
        };
        if !response.succeeded() {
            return Err(StoreError::Conflict { key: None });
        }
        Ok(layout::from_etcd_revision(response.header().map_or(0, etcd_client::ResponseHeader::revision)))
    }
}

/// Whether a nested compare failed (`txn`); nothing was written.
fn is_failed_compare(error: &Error) -> bool {
    let message = "future revision";
    matches!(error, Error::GRpcStatus(status) if status.code() == Code::OutOfRange && status.message().contains(message))
}

/// The error for a response that proves that nothing was written.
fn definite_error(error: &Error, what: &str) -> Option<StoreError> {
    let Error::GRpcStatus(status) = error else { return None };
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted | Code::OutOfRange => {
            let hint = if status.message().contains("space exceeded") {
                ": compact and defragment the cluster, or raise its --quota-backend-bytes, then disarm the alarm"
            } else if ["too large", "larger than max"].iter().any(|text| status.message().contains(text)) {
                ": raise etcd's --max-request-bytes, or write less at once"
            } else if status.message().contains("too many operations") {
                return Some(StoreError::TooManyOperations { what: what.to_owned() });
            } else {
                ""
            };
            Some(StoreError::Rejected { what: format!("{what}{hint}") })
        }
        Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => {
            Some(StoreError::Unavailable { what: what.to_owned() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use e2e::etcd::Etcd as Server;
    use model::Kind;
    use serde_json::{Value, json};

    use super::*;
    use crate::store::conformance::{delete, key, put};
    use crate::store::etcd::EtcdStore;
    use crate::store::etcd::tests::open;
    use crate::store::{Mutation, MutationResult, Precondition, Store};

    /// An attempt and its transaction, not sent yet.
    struct Delayed {
        attempt: Attempt,
        txn: Txn,
    }

    async fn delayed(store: &EtcdStore, batch: Batch) -> Delayed {
        let cluster = &store.cluster;
        let mut attempt = Attempt::new(batch, &cluster.layout);
        attempt.start_revision = attempt.newest_expected().max(cluster.connections.revision());
        let fence = cluster.fence_revision().await.unwrap();
        let txn = attempt.txn(&cluster.layout, fence, &TtlLeases::new());
        Delayed { attempt, txn }
    }

    impl Delayed {
        /// Applies the transaction, as a paused member does.
        async fn send(&self, store: &EtcdStore) -> bool {
            let connection = store.cluster.connections.current().await.unwrap();
            match connection.kv().txn(self.txn.clone()).await {
                Ok(response) => response.succeeded(),
                Err(error) => {
                    assert!(is_failed_compare(&error), "{error}");
                    false
                }
            }
        }

        /// The commit that is found in the history.
        async fn resolve(&self, store: &EtcdStore) -> Option<CommitResult> {
            match store.cluster.resolve_unknown(&self.attempt).await.unwrap() {
                TxnOutcome::Committed(committed) => Some(committed),
                TxnOutcome::Outdated => None,
            }
        }
    }

    async fn store() -> (Server, EtcdStore) {
        let server = Server::plain().await;
        let store = open(&[server.url()]).await;
        (server, store)
    }

    fn guarded(allow: &Value) -> Value {
        json!({"v": 1, "client_identity": {"allow": allow}})
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_write_resolved_as_lost_is_never_applied() {
        let (_server, store) = store().await;
        let key = key(Kind::Ssl, "1");
        let write = delayed(&store, put(&key, json!({"v": 1}), Precondition::Absent)).await;
        assert_eq!(write.resolve(&store).await, None);
        // Its precondition on the document still holds.
        assert!(!write.send(&store).await);
        assert_eq!(store.get(&key).await.unwrap(), None);
        store.commit(put(&key, json!({"v": 2}), Precondition::Absent)).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_failed_write_leaves_no_lease() {
        let (_server, store) = store().await;
        let key = key(Kind::Ssl, "1");
        let with_ttl = |precondition| Mutation::Put {
            key: key.clone(),
            document: json!({"v": 1}),
            precondition,
            ttl: std::num::NonZeroU32::new(u32::MAX),
        };
        let leases = async || {
            let connection = store.cluster.connections.current().await.unwrap();
            connection.client.lease_client().leases().await.unwrap().leases().len()
        };
        store.commit(with_ttl(Precondition::Absent).into()).await.unwrap();
        assert_eq!(leases().await, 1);
        let conflict = store.commit(with_ttl(Precondition::Absent).into()).await;
        assert!(matches!(conflict, Err(StoreError::Conflict { .. })), "{conflict:?}");
        assert_eq!(leases().await, 1);
        // The first attempt is outdated by a moved fence; the second one commits.
        store.cluster.fence.0.store(1, Ordering::Release);
        store.commit(with_ttl(Precondition::Unconditional).into()).await.unwrap();
        assert_eq!(leases().await, 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_committed_write_is_found_behind_later_versions() {
        let (_server, store) = store().await;
        let key = key(Kind::Ssl, "1");
        let write = delayed(&store, put(&key, json!({"v": 1}), Precondition::Absent)).await;
        assert!(write.send(&store).await);
        let first = store.get(&key).await.unwrap().unwrap();
        for v in 2..5 {
            store.commit(put(&key, json!({"v": v}), Precondition::Unconditional)).await.unwrap();
        }
        store.commit(delete(&key, Precondition::Unconditional)).await.unwrap();
        let mutations = vec![MutationResult { create_revision: first.create_revision, existed: false }];
        let expected = CommitResult { revision: first.mod_revision, mutations };
        assert_eq!(write.resolve(&store).await, Some(expected));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_deletion_is_resolved() {
        let (_server, store) = store().await;
        let key = key(Kind::Ssl, "1");
        let created = store.commit(put(&key, json!({}), Precondition::Absent)).await.unwrap().revision;
        let removal = delayed(&store, delete(&key, Precondition::ModRevision(created))).await;
        assert_eq!(removal.resolve(&store).await, None, "it was not sent");
        let removal = delayed(&store, delete(&key, Precondition::ModRevision(created))).await;
        assert!(removal.send(&store).await);
        let found = removal.resolve(&store).await.unwrap();
        assert_eq!(found.first(), MutationResult { existed: true, create_revision: created });
    }

    /// Two writers may write the same document at once with different extension fields; only one of
    /// them succeeded.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_write_is_identified_by_its_extension_fields() {
        let (_server, store) = store().await;
        let key = key(Kind::Route, "1");
        let attempt = async |document| delayed(&store, put(&key, document, Precondition::Absent)).await;
        let committed = attempt(guarded(&json!([{"dns": "a"}]))).await;
        let other = attempt(guarded(&json!([{"dns": "b"}]))).await;
        let none = attempt(json!({"v": 1})).await;
        assert!(committed.send(&store).await);
        for lost in [&other, &none] {
            assert_eq!(lost.resolve(&store).await, None);
        }
        assert!(committed.resolve(&store).await.is_some());
    }

    /// A batch is found as a whole: another one may make a part of the same changes.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_batch_is_identified_by_all_its_writes() {
        let (_server, store) = store().await;
        let (a, b, gone) = (key(Kind::Upstream, "a"), key(Kind::Route, "b"), key(Kind::Ssl, "gone"));
        let batch = |value: u64| {
            let put = |key: &Key, document| {
                let (key, precondition) = (key.clone(), Precondition::Absent);
                Mutation::Put { key, document, precondition, ttl: None }
            };
            let removal = Mutation::Delete { key: gone.clone(), precondition: Precondition::Unconditional };
            let writes = vec![removal, put(&a, json!({"v": 0})), put(&b, json!({"v": value}))];
            Batch { mutations: writes, conditions: Vec::new() }
        };
        let (committed, other) = (delayed(&store, batch(1)).await, delayed(&store, batch(2)).await);
        assert!(committed.send(&store).await && !other.send(&store).await);
        assert_eq!(other.resolve(&store).await, None);
        let found = committed.resolve(&store).await.unwrap();
        let created = MutationResult { create_revision: found.revision, existed: false };
        assert_eq!(found.mutations, [MutationResult::default(), created, created]);
        assert_eq!(store.get(&a).await.unwrap().unwrap().mod_revision, found.revision);
    }

    /// Another writer removes or replaces one document of a batch that exceeds a transaction, after
    /// its reads.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_removal_beside_a_large_batch_is_a_conflict() {
        let (_server, store) = store().await;
        let keys: Vec<Key> = (0..128).map(|n| key(Kind::Route, &n.to_string())).collect();
        let all = |mutation: &dyn Fn(&Key) -> Batch| {
            let mutations = keys.iter().flat_map(|key| mutation(key).mutations).collect();
            Batch { mutations, conditions: Vec::new() }
        };
        let put_all = all(&|key| put(key, guarded(&json!([])), Precondition::Unconditional));
        let seen = Precondition::ModRevision(store.commit(put_all).await.unwrap().revision);
        let removal = all(&|key| delete(key, seen));
        let (removing, replacing) = (
            delayed(&store, removal.clone()).await,
            delayed(&store, all(&|key| put(key, json!({}), seen))).await,
        );
        store.commit(delete(&keys[77], seen)).await.unwrap();
        for late in [&removing, &replacing] {
            assert!(!late.send(&store).await);
            assert_eq!(late.resolve(&store).await, None);
        }
        let conflict = StoreError::Conflict { key: Some(keys[77].clone()) };
        assert_eq!(store.commit(removal).await, Err(conflict));
        assert_eq!(store.list(Kind::Route).await.unwrap().items.len(), 127, "nothing else is removed");
        // A removal without a precondition does not need the document.
        let removal = all(&|key| delete(key, Precondition::Unconditional));
        let removed = store.commit(removal).await.unwrap();
        assert_eq!(removed.mutations.iter().filter(|removed| !removed.existed).count(), 1);
        assert!(store.unknown_keys().await.unwrap().is_empty(), "no extension entry is left");
    }
}
