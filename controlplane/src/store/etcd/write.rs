//! Writes: each mutation is one transaction with compares, and is never repeated blindly.
//!
//! A write without a response may have been applied, or may be applied later: a paused member may
//! still hold it. So each write also compares the *fence*, a key that is written for this purpose
//! only. After a write of unknown outcome the fence is written: a late write then fails its
//! compare, and a read of the history is final.
//!
//! Invariant: a reported outcome is final. [`StoreError::OutcomeUnknown`] is reported when no
//! endpoint answers.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use etcd_client::{
    Compare, CompareOp, Error, Event, EventType, GetOptions, KvClient, PutOptions, Txn, TxnOp, TxnOpResponse,
    TxnResponse, WatchOptions,
};
use model::Key;
use tonic::Code;

use super::connection::EtcdConnection;
use super::layout::{self, Layout};
use super::{Cluster, dial};
use crate::store::{Batch, CommitResult, InternalKey, Mutation, MutationResult, Precondition, StoreError};

/// Attempts of an unconditional write that loses against others or against a moved fence.
const WRITE_ATTEMPTS: usize = 64;

/// The fence's mod revision as last seen by this process: 0 if absent, negative if not read yet.
pub(super) struct Fence(AtomicI64);

impl Default for Fence {
    fn default() -> Self {
        Self(AtomicI64::new(-1))
    }
}

impl Attempt<'_> {
    /// The result of this write if the events contain it: events of whole revisions, with the same
    /// values, on the expected mod revision.
    fn find_in(&self, events: &[Event], layout: &Layout) -> Option<CommitResult> {
        let committed = events.iter().find_map(|event| self.match_event(event, layout))?;
        let Some(name) = layout.extension_key(self.key).filter(|_| self.value.is_some()) else {
            return Some(committed);
        };
        let extension = events.iter().find(|event| {
            event.kv().is_some_and(|kv| {
                kv.key() == name.as_bytes()
                    && layout::from_etcd_revision(kv.mod_revision()) == committed.revision
            })
        });
        let written = extension.filter(|event| event.event_type() == EventType::Put).and_then(Event::kv);
        let matches = self.extension.map(str::as_bytes) == written.map(etcd_client::KeyValue::value);
        matches.then_some(committed)
    }

    fn match_event(&self, event: &Event, layout: &Layout) -> Option<CommitResult> {
        let kv = event.kv().filter(|kv| kv.key() == layout.document_key(self.key).as_bytes())?;
        let previous = event.prev_kv();
        let matches = match event.event_type() {
            EventType::Put => self.value.is_some_and(|value| value.as_bytes() == kv.value()),
            EventType::Delete => self.value.is_none(),
        };
        let previous_revision = previous.map_or(0, etcd_client::KeyValue::mod_revision);
        let created = previous.map_or(kv.create_revision(), etcd_client::KeyValue::create_revision);
        (matches && previous_revision == self.expected_mod_revision).then(|| CommitResult {
            revision: layout::from_etcd_revision(kv.mod_revision()),
            mutations: vec![MutationResult {
                create_revision: layout::from_etcd_revision(created),
                existed: previous.is_some(),
            }],
        })
    }
}

enum TxnOutcome {
    Committed(CommitResult),
    /// The fence has moved; nothing was written, and the next attempt uses the new one.
    Fenced,
    /// The precondition does not hold; nothing was written.
    Conflict,
}

/// One attempt of a write.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    key: &'a Key,
    /// `None` for a deletion.
    value: Option<&'a str>,
    /// The extension entry; `None` deletes it.
    extension: Option<&'a str>,
    /// The mod revision to compare; 0: the document must be absent.
    expected_mod_revision: i64,
    /// The newest mod revision of the extension entry that the writer may overwrite; `None`: any.
    extension_mod_revision: Option<i64>,
    /// A revision of the store before the write was sent.
    start_revision: i64,
    ttl: Option<NonZeroU32>,
}

impl Cluster {
    pub(super) async fn commit(self: &Arc<Self>, mut batch: Batch) -> Result<CommitResult, StoreError> {
        let Some(write) = batch.mutations.pop().filter(|_| batch == Batch::default()) else {
            let what = "etcd takes one mutation without conditions at once".to_owned();
            return Err(StoreError::Rejected { what });
        };
        let conflict = || StoreError::Conflict { key: Some(write.key().clone()) };
        let (value, extension) = match &write {
            Mutation::Put { key, document, .. } => {
                let (value, extension) = layout::split_document(key, document);
                (Some(value), extension)
            }
            Mutation::Delete { .. } => (None, None),
        };
        let ttl = if let Mutation::Put { ttl, .. } = &write { *ttl } else { None };
        let mut document_revision = None;
        for _ in 0..WRITE_ATTEMPTS {
            let expected = match write.precondition() {
                Precondition::Absent => 0,
                Precondition::ModRevision(revision) => {
                    document_revision.unwrap_or_else(|| layout::to_etcd_revision(revision))
                }
                Precondition::Unconditional => match (self.document_mod_revision(write.key()).await?, &value)
                {
                    ((0, store), None) => return Ok(no_op_delete(store)),
                    ((expected, _), _) => expected,
                },
            };
            let start_revision = expected.max(self.connections.revision());
            let extension_seen = match write.precondition() {
                Precondition::ModRevision(revision) => Some(layout::to_etcd_revision(revision)),
                Precondition::Absent | Precondition::Unconditional => None,
            };
            let (value, extension) = (value.as_deref(), extension.as_deref());
            let attempt = Attempt {
                key: write.key(),
                value,
                extension,
                expected_mod_revision: expected,
                extension_mod_revision: extension_seen,
                start_revision,
                ttl,
            };
            match (self.execute(&attempt).await?, write.precondition()) {
                (TxnOutcome::Committed(committed), _) => return Ok(committed),
                (TxnOutcome::Fenced, _) | (TxnOutcome::Conflict, Precondition::Unconditional) => {}
                (TxnOutcome::Conflict, Precondition::ModRevision(revision))
                    if document_revision.is_none() =>
                {
                    document_revision =
                        Some(self.extension_only_change(write.key(), revision).await?.ok_or_else(conflict)?);
                }
                (TxnOutcome::Conflict, _) => return Err(conflict()),
            }
        }
        Err(conflict())
    }

    /// The mod revision of a document whose newer revision changed the extension entry only, if the
    /// writer has seen that change.
    async fn extension_only_change(&self, key: &Key, seen: u64) -> Result<Option<i64>, StoreError> {
        let Some(name) = self.layout.extension_key(key) else { return Ok(None) };
        let (extension, _) = self.mod_revision(name).await?;
        let (document, _) = self.document_mod_revision(key).await?;
        let seen = layout::to_etcd_revision(seen);
        Ok((extension == seen && (1..seen).contains(&document)).then_some(document))
    }

    async fn execute(self: &Arc<Self>, attempt: &Attempt<'_>) -> Result<TxnOutcome, StoreError> {
        let fence = self.fence_revision().await?;
        let connection = self.connections.current().await?;
        let put = match attempt.ttl {
            None => PutOptions::new().with_prev_key(),
            Some(ttl) => PutOptions::new()
                .with_prev_key()
                .with_lease(self.grant_lease(&connection, ttl.get().into()).await?),
        };
        let txn = self.build_txn(attempt, fence, put);
        let mut kv = connection.kv();
        let error = tokio::select! {
            response = kv.txn(txn) => match response {
                Ok(response) => return Ok(self.txn_outcome(attempt, fence, &response)),
                Err(error) => error,
            },
            () = self.connections.wait_lost(&connection) => Error::Internal("the connection was lost".to_owned()),
            () = tokio::time::sleep(self.connections.timeout()) => Error::Internal("no response in time".to_owned()),
        };
        let what = self.connections.describe_error(&connection, &error);
        if let Some(definite) = definite_error(&error, &what) {
            return Err(definite);
        }
        if dial::was_not_sent(&error) {
            return Err(StoreError::Unavailable { what });
        }
        tracing::warn!(resource = %attempt.key, problem = what, "a write has no response; resolving whether it was committed");
        self.connections.check_health(&connection).await;
        let resolving = self.resolve_unknown(attempt);
        match tokio::time::timeout(self.connections.timeout(), resolving).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) | Err(_) => {
                self.resolve_in_background(attempt);
                Err(StoreError::OutcomeUnknown { what })
            }
        }
    }

    fn build_txn(&self, attempt: &Attempt<'_>, fence: i64, put: PutOptions) -> Txn {
        let name = self.layout.document_key(attempt.key);
        let mut compares = vec![
            Compare::mod_revision(self.layout.fence_key(), CompareOp::Equal, fence),
            Compare::mod_revision(name.as_str(), CompareOp::Equal, attempt.expected_mod_revision),
        ];
        let mut operations = vec![match attempt.value {
            Some(value) => TxnOp::put(name, value, Some(put)),
            None => TxnOp::delete(name, Some(etcd_client::DeleteOptions::new().with_prev_key())),
        }];
        if let Some(name) = self.layout.extension_key(attempt.key) {
            if let Some(seen) = attempt.extension_mod_revision {
                compares.push(Compare::mod_revision(name.as_str(), CompareOp::Less, seen + 1));
            }
            operations.push(match attempt.extension {
                // Without the document's lease: an entry that outlives the document is ignored, and
                // one that expired first would leave the document unprotected.
                Some(extension) => TxnOp::put(name, extension, None),
                None => TxnOp::delete(name, None),
            });
        }
        let fence = TxnOp::get(self.layout.fence_key(), Some(GetOptions::new().with_keys_only()));
        Txn::new().when(compares).and_then(operations).or_else([fence])
    }

    fn txn_outcome(&self, attempt: &Attempt<'_>, fence: i64, response: &TxnResponse) -> TxnOutcome {
        let operations = response.op_responses();
        if !response.succeeded() {
            let current = match operations.first() {
                Some(TxnOpResponse::Get(response)) => {
                    response.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision)
                }
                _ => -1,
            };
            self.fence.0.store(current, Ordering::Release);
            return if current == fence { TxnOutcome::Conflict } else { TxnOutcome::Fenced };
        }
        let revision =
            layout::from_etcd_revision(response.header().map_or(0, etcd_client::ResponseHeader::revision));
        let created = match operations.first() {
            Some(TxnOpResponse::Put(put)) => put.prev_key().map(etcd_client::KeyValue::create_revision),
            Some(TxnOpResponse::Delete(deletion)) => {
                deletion.prev_kvs().first().map(etcd_client::KeyValue::create_revision)
            }
            _ => None,
        };
        let own_revision = if attempt.value.is_some() { revision } else { 0 };
        TxnOutcome::Committed(CommitResult {
            revision,
            mutations: vec![MutationResult {
                create_revision: created.map_or(own_revision, layout::from_etcd_revision),
                existed: created.is_some(),
            }],
        })
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

    async fn document_mod_revision(&self, key: &Key) -> Result<(i64, u64), StoreError> {
        self.mod_revision(self.layout.document_key(key)).await
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

    /// Moves the fence, so that an earlier write can no longer be applied, and finds the outcome.
    /// Fails only when no endpoint answers.
    async fn resolve_unknown(&self, attempt: &Attempt<'_>) -> Result<TxnOutcome, StoreError> {
        let name = self.layout.fence_key();
        let response = self.call(|mut kv: KvClient| {
            let name = name.clone();
            async move { kv.put(name, "1", None).await }
        });
        let response = response.await?;
        let revision = response.header().map_or(-1, etcd_client::ResponseHeader::revision);
        self.fence.0.store(revision, Ordering::Release);
        let committed = self.find_committed(attempt, revision).await?;
        tracing::info!(resource = %attempt.key, committed = committed.is_some(), "resolved a write without a response");
        Ok(committed.map_or(TxnOutcome::Fenced, TxnOutcome::Committed))
    }

    /// Reads all events from before the write was sent until the fence moved; `None`: the write is
    /// not among them.
    async fn find_committed(
        &self,
        attempt: &Attempt<'_>,
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
            committed = committed.or_else(|| attempt.find_in(response.events(), &self.layout));
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
    fn resolve_in_background(self: &Arc<Self>, attempt: &Attempt<'_>) {
        let cluster = Arc::downgrade(self);
        let (key, value) = (attempt.key.clone(), attempt.value.map(str::to_owned));
        let extension = attempt.extension.map(str::to_owned);
        let (expected, extension_seen, start_revision, ttl) = (
            attempt.expected_mod_revision,
            attempt.extension_mod_revision,
            attempt.start_revision,
            attempt.ttl,
        );
        tokio::spawn(async move {
            loop {
                let Some(cluster) = cluster.upgrade() else { return };
                let (value, extension) = (value.as_deref(), extension.as_deref());
                let attempt = Attempt {
                    key: &key,
                    value,
                    extension,
                    expected_mod_revision: expected,
                    extension_mod_revision: extension_seen,
                    start_revision,
                    ttl,
                };
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

fn no_op_delete(store: u64) -> CommitResult {
    CommitResult { revision: store, mutations: vec![MutationResult::default()] }
}

/// The error for a response that proves that nothing was written.
fn definite_error(error: &Error, what: &str) -> Option<StoreError> {
    let Error::GRpcStatus(status) = error else { return None };
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted | Code::OutOfRange => {
            let hint = if status.message().contains("space exceeded") {
                ": compact and defragment the cluster, or raise its --quota-backend-bytes, then disarm the alarm"
            } else if ["too large", "larger than max"].iter().any(|text| status.message().contains(text)) {
                ": raise etcd's --max-request-bytes, or make the document smaller"
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
    use serde_json::json;

    use super::*;
    use crate::store::Store;
    use crate::store::conformance::{delete, key, put};
    use crate::store::etcd::tests::open;

    fn attempt<'a>(cluster: &Cluster, key: &'a Key, value: Option<&'a str>, expected: i64) -> Attempt<'a> {
        let start_revision = expected.max(cluster.connections.revision());
        Attempt {
            key,
            value,
            extension: None,
            expected_mod_revision: expected,
            extension_mod_revision: None,
            start_revision,
            ttl: None,
        }
    }

    /// Applies a delayed transaction, as a paused member does.
    async fn sent(cluster: &Cluster, txn: Txn) -> bool {
        let connection = cluster.connections.current().await.unwrap();
        connection.kv().txn(txn).await.unwrap().succeeded()
    }

    fn plain() -> PutOptions {
        PutOptions::new().with_prev_key()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_write_resolved_as_lost_is_never_applied() {
        let server = Server::plain().await;
        let store = open(&[server.url()]).await;
        let (cluster, key) = (&store.cluster, key(Kind::Ssl, "1"));
        let fence = cluster.fence_revision().await.unwrap();
        let delayed = attempt(cluster, &key, Some("{\"v\":1}"), 0);
        let txn = cluster.build_txn(&delayed, fence, plain());
        assert!(matches!(cluster.resolve_unknown(&delayed).await, Ok(TxnOutcome::Fenced)));
        // Its precondition on the document still holds.
        assert!(!sent(cluster, txn).await);
        assert_eq!(store.get(&key).await.unwrap(), None);
        store.commit(put(&key, json!({"v": 2}), Precondition::Absent)).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_committed_write_is_found_behind_later_versions() {
        let server = Server::plain().await;
        let store = open(&[server.url()]).await;
        let (cluster, key) = (&store.cluster, key(Kind::Ssl, "1"));
        let fence = cluster.fence_revision().await.unwrap();
        let committed = attempt(cluster, &key, Some("{\"v\":1}"), 0);
        assert!(sent(cluster, cluster.build_txn(&committed, fence, plain())).await);
        let first = store.get(&key).await.unwrap().unwrap();
        for v in 2..5 {
            store.commit(put(&key, json!({"v": v}), Precondition::Unconditional)).await.unwrap();
        }
        store.commit(delete(&key, Precondition::Unconditional)).await.unwrap();
        let expected = CommitResult {
            revision: first.mod_revision,
            mutations: vec![MutationResult { create_revision: first.create_revision, existed: false }],
        };
        let Ok(TxnOutcome::Committed(response)) = cluster.resolve_unknown(&committed).await else {
            panic!("it was made")
        };
        assert_eq!(response, expected);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_deletion_is_resolved() {
        let server = Server::plain().await;
        let store = open(&[server.url()]).await;
        let (cluster, key) = (&store.cluster, key(Kind::Ssl, "1"));
        let committed = store.commit(put(&key, json!({}), Precondition::Absent)).await.unwrap();
        let removal = attempt(cluster, &key, None, layout::to_etcd_revision(committed.revision));
        assert!(matches!(cluster.resolve_unknown(&removal).await, Ok(TxnOutcome::Fenced)), "it was not sent");
        let fence = cluster.fence_revision().await.unwrap();
        assert!(sent(cluster, cluster.build_txn(&removal, fence, plain())).await);
        let settled = cluster.resolve_unknown(&removal).await;
        let Ok(TxnOutcome::Committed(settled)) = settled else { panic!("it was made") };
        assert_eq!(settled.first(), MutationResult { existed: true, create_revision: committed.revision });
    }

    /// Two writers may write the same document at once with different extension fields; only one of
    /// them succeeded.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_write_is_identified_by_its_extension_fields() {
        let server = Server::plain().await;
        let store = open(&[server.url()]).await;
        let (cluster, key) = (&store.cluster, key(Kind::Route, "1"));
        let fence = cluster.fence_revision().await.unwrap();
        let plainly = attempt(cluster, &key, Some("{\"v\":1}"), 0);
        let committed = Attempt { extension: Some("{\"client_identity\":{}}"), ..plainly };
        let other = Attempt { extension: Some("{\"client_identity\":{\"allow\":[]}}"), ..committed };
        let none = Attempt { extension: None, ..committed };
        assert!(sent(cluster, cluster.build_txn(&committed, fence, plain())).await);
        for lost in [&other, &none] {
            assert!(matches!(cluster.resolve_unknown(lost).await, Ok(TxnOutcome::Fenced)));
        }
        assert!(matches!(cluster.resolve_unknown(&committed).await, Ok(TxnOutcome::Committed(_))));
    }
}
