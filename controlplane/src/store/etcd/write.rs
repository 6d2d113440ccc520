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
use crate::store::{CommitResult, InternalKey, Mutation, Precondition, StoreError};

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
        let beside = events.iter().find(|event| {
            event.kv().is_some_and(|kv| {
                kv.key() == name.as_bytes()
                    && layout::from_etcd_revision(kv.mod_revision()) == committed.revision
            })
        });
        let written = beside.filter(|event| event.event_type() == EventType::Put).and_then(Event::kv);
        let same = self.extension.map(str::as_bytes) == written.map(etcd_client::KeyValue::value);
        same.then_some(committed)
    }

    fn match_event(&self, event: &Event, layout: &Layout) -> Option<CommitResult> {
        let kv = event.kv().filter(|kv| kv.key() == layout.document_key(self.key).as_bytes())?;
        let before = event.prev_kv();
        let same = match event.event_type() {
            EventType::Put => self.value.is_some_and(|value| value.as_bytes() == kv.value()),
            EventType::Delete => self.value.is_none(),
        };
        let upon = before.map_or(0, etcd_client::KeyValue::mod_revision);
        let created = before.map_or(kv.create_revision(), etcd_client::KeyValue::create_revision);
        (same && upon == self.expected_mod_revision).then(|| CommitResult {
            revision: layout::from_etcd_revision(kv.mod_revision()),
            create_revision: layout::from_etcd_revision(created),
            existed: before.is_some(),
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
    pub(super) async fn commit(self: &Arc<Self>, write: Mutation) -> Result<CommitResult, StoreError> {
        let (value, beside) = match &write {
            Mutation::Put { key, document, .. } => {
                let (value, beside) = layout::split_document(key, document);
                (Some(value), beside)
            }
            Mutation::Delete { .. } => (None, None),
        };
        let ttl = if let Mutation::Put { ttl, .. } = &write { *ttl } else { None };
        let mut edited = None;
        for _ in 0..WRITE_ATTEMPTS {
            let before = match write.precondition() {
                Precondition::Absent => 0,
                Precondition::ModRevision(revision) => {
                    edited.unwrap_or_else(|| layout::to_etcd_revision(revision))
                }
                Precondition::Unconditional => match (self.document_mod_revision(write.key()).await?, &value)
                {
                    ((0, store), None) => return Ok(no_op_delete(store)),
                    ((before, _), _) => before,
                },
            };
            let since = before.max(self.connections.revision());
            let seen_beside = match write.precondition() {
                Precondition::ModRevision(revision) => Some(layout::to_etcd_revision(revision)),
                Precondition::Absent | Precondition::Unconditional => None,
            };
            let (value, beside) = (value.as_deref(), beside.as_deref());
            let attempt = Attempt {
                key: write.key(),
                value,
                extension: beside,
                expected_mod_revision: before,
                extension_mod_revision: seen_beside,
                start_revision: since,
                ttl,
            };
            match (self.execute(&attempt).await?, write.precondition()) {
                (TxnOutcome::Committed(committed), _) => return Ok(committed),
                (TxnOutcome::Fenced, _) | (TxnOutcome::Conflict, Precondition::Unconditional) => {}
                (TxnOutcome::Conflict, Precondition::ModRevision(revision)) if edited.is_none() => {
                    edited = Some(
                        self.extension_only_change(write.key(), revision)
                            .await?
                            .ok_or(StoreError::Conflict)?,
                    );
                }
                (TxnOutcome::Conflict, _) => return Err(StoreError::Conflict),
            }
        }
        Err(StoreError::Conflict)
    }

    /// The mod revision of a document whose newer revision changed the extension entry only, if the
    /// writer has seen that change.
    async fn extension_only_change(&self, key: &Key, seen: u64) -> Result<Option<i64>, StoreError> {
        let Some(name) = self.layout.extension_key(key) else { return Ok(None) };
        let (beside, _) = self.mod_revision(name).await?;
        let (document, _) = self.document_mod_revision(key).await?;
        let seen = layout::to_etcd_revision(seen);
        Ok((beside == seen && (1..seen).contains(&document)).then_some(document))
    }

    async fn execute(self: &Arc<Self>, attempt: &Attempt<'_>) -> Result<TxnOutcome, StoreError> {
        let fence = self.fence_revision().await?;
        let connected = self.connections.current().await?;
        let put = match attempt.ttl {
            None => PutOptions::new().with_prev_key(),
            Some(ttl) => PutOptions::new()
                .with_prev_key()
                .with_lease(self.grant_lease(&connected, ttl.get().into()).await?),
        };
        let txn = self.build_txn(attempt, fence, put);
        let mut kv = connected.kv();
        let failed = tokio::select! {
            answer = kv.txn(txn) => match answer {
                Ok(answer) => return Ok(self.txn_outcome(attempt, fence, &answer)),
                Err(error) => error,
            },
            () = self.connections.wait_lost(&connected) => Error::Internal("the connection was lost".to_owned()),
            () = tokio::time::sleep(self.connections.timeout()) => Error::Internal("no answer in time".to_owned()),
        };
        let what = self.connections.describe_error(&connected, &failed);
        if let Some(refused) = definite_error(&failed, &what) {
            return Err(refused);
        }
        if dial::was_not_sent(&failed) {
            return Err(StoreError::Unavailable { what });
        }
        tracing::warn!(resource = %attempt.key, problem = what, "a write was not answered; finding out whether it was made");
        self.connections.check_health(&connected).await;
        let settling = self.resolve_unknown(attempt);
        match tokio::time::timeout(self.connections.timeout(), settling).await {
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
                Some(beside) => TxnOp::put(name, beside, None),
                None => TxnOp::delete(name, None),
            });
        }
        let fence = TxnOp::get(self.layout.fence_key(), Some(GetOptions::new().with_keys_only()));
        Txn::new().when(compares).and_then(operations).or_else([fence])
    }

    fn txn_outcome(&self, attempt: &Attempt<'_>, fence: i64, answer: &TxnResponse) -> TxnOutcome {
        let operations = answer.op_responses();
        if !answer.succeeded() {
            let now = match operations.first() {
                Some(TxnOpResponse::Get(found)) => {
                    found.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision)
                }
                _ => -1,
            };
            self.fence.0.store(now, Ordering::Release);
            return if now == fence { TxnOutcome::Conflict } else { TxnOutcome::Fenced };
        }
        let revision =
            layout::from_etcd_revision(answer.header().map_or(0, etcd_client::ResponseHeader::revision));
        let before = match operations.first() {
            Some(TxnOpResponse::Put(put)) => put.prev_key().map(etcd_client::KeyValue::create_revision),
            Some(TxnOpResponse::Delete(gone)) => {
                gone.prev_kvs().first().map(etcd_client::KeyValue::create_revision)
            }
            _ => None,
        };
        let made_now = if attempt.value.is_some() { revision } else { 0 };
        TxnOutcome::Committed(CommitResult {
            revision,
            create_revision: before.map_or(made_now, layout::from_etcd_revision),
            existed: before.is_some(),
        })
    }

    /// The cached mod revision of the fence; read once.
    async fn fence_revision(&self) -> Result<i64, StoreError> {
        let known = self.fence.0.load(Ordering::Acquire);
        if known >= 0 {
            return Ok(known);
        }
        let name = self.layout.fence_key();
        let (now, _) = self.mod_revision(name).await?;
        self.fence.0.store(now, Ordering::Release);
        Ok(now)
    }

    async fn document_mod_revision(&self, key: &Key) -> Result<(i64, u64), StoreError> {
        self.mod_revision(self.layout.document_key(key)).await
    }

    /// The mod revision of a key, 0 if absent, and the store's revision.
    pub(super) async fn mod_revision(&self, name: String) -> Result<(i64, u64), StoreError> {
        let options = GetOptions::new().with_keys_only();
        let found = self.call(|mut kv: KvClient| {
            let (name, options) = (name.clone(), options.clone());
            async move { kv.get(name, Some(options)).await }
        });
        let found = found.await?;
        let store =
            layout::from_etcd_revision(found.header().map_or(0, etcd_client::ResponseHeader::revision));
        Ok((found.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision), store))
    }

    pub(super) async fn grant_lease(
        &self,
        connected: &EtcdConnection,
        seconds: u64,
    ) -> Result<i64, StoreError> {
        let mut lease = connected.client.lease_client();
        let granted = tokio::time::timeout(
            self.connections.timeout(),
            lease.grant(layout::to_etcd_revision(seconds), None),
        )
        .await;
        let late = |_| StoreError::Unavailable { what: "no lease was granted in time".to_owned() };
        Ok(granted.map_err(late)?.map_err(|error| self.unavailable(connected, &error))?.id())
    }

    /// Moves the fence, so that an earlier write can no longer be applied, and finds the outcome.
    /// Fails only when no endpoint answers.
    async fn resolve_unknown(&self, attempt: &Attempt<'_>) -> Result<TxnOutcome, StoreError> {
        let name = self.layout.fence_key();
        let moved = self.call(|mut kv: KvClient| {
            let name = name.clone();
            async move { kv.put(name, "1", None).await }
        });
        let moved = moved.await?;
        let revision = moved.header().map_or(-1, etcd_client::ResponseHeader::revision);
        self.fence.0.store(revision, Ordering::Release);
        let made = self.find_committed(attempt, revision).await?;
        tracing::info!(resource = %attempt.key, made = made.is_some(), "found out what became of a write that was not answered");
        Ok(made.map_or(TxnOutcome::Fenced, TxnOutcome::Committed))
    }

    /// Reads all events from before the write was sent until the fence moved; `None`: the write is
    /// not among them.
    async fn find_committed(
        &self,
        attempt: &Attempt<'_>,
        moved: i64,
    ) -> Result<Option<CommitResult>, StoreError> {
        let unavailable = |what: String| StoreError::Unavailable { what };
        if moved <= attempt.start_revision {
            return Err(unavailable("the cluster was set back meanwhile".to_owned()));
        }
        let connected = self.connections.current().await?;
        let options =
            WatchOptions::new().with_prefix().with_prev_key().with_start_revision(attempt.start_revision + 1);
        let told = |error: Error| unavailable(self.connections.describe_error(&connected, &error));
        let mut client = connected.watch();
        let mut stream = client.watch(self.layout.root(), Some(options)).await.map_err(told)?;
        let mut made = None;
        loop {
            let response = tokio::select! {
                response = stream.message() => response.map_err(told)?,
                () = self.connections.wait_lost(&connected) => None,
            };
            let response = response.filter(|response| !response.canceled());
            let response =
                response.ok_or_else(|| unavailable("what happened can no longer be read".to_owned()))?;
            made = made.or_else(|| attempt.find_in(response.events(), &self.layout));
            for event in response.events() {
                let fence = event.kv().filter(|kv| kv.key() == self.layout.fence_key().as_bytes());
                if fence.is_some_and(|kv| kv.mod_revision() == moved) {
                    return Ok(made);
                }
            }
        }
    }

    /// Resolves a write with an unreported outcome once an endpoint answers again, so that it is
    /// not applied later.
    fn resolve_in_background(self: &Arc<Self>, attempt: &Attempt<'_>) {
        let cluster = Arc::downgrade(self);
        let (key, value) = (attempt.key.clone(), attempt.value.map(str::to_owned));
        let beside = attempt.extension.map(str::to_owned);
        let (before, seen_beside, since, ttl) = (
            attempt.expected_mod_revision,
            attempt.extension_mod_revision,
            attempt.start_revision,
            attempt.ttl,
        );
        tokio::spawn(async move {
            loop {
                let Some(cluster) = cluster.upgrade() else { return };
                let (value, beside) = (value.as_deref(), beside.as_deref());
                let attempt = Attempt {
                    key: &key,
                    value,
                    extension: beside,
                    expected_mod_revision: before,
                    extension_mod_revision: seen_beside,
                    start_revision: since,
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
        let taken = self.call(|mut kv: KvClient| {
            let name = name.clone();
            async move { kv.put(name, "1", None).await }
        });
        let taken = taken.await?;
        Ok(layout::from_etcd_revision(taken.header().map_or(0, etcd_client::ResponseHeader::revision)))
    }

    /// Replaces an internal entry. Never repeated without a response: the caller reads the entry
    /// before it retries.
    pub(super) async fn swap_internal_entry(
        &self,
        what: InternalKey,
        expect: u64,
        text: &str,
    ) -> Result<u64, StoreError> {
        let connected = self.connections.current().await?;
        let name = self.layout.internal_key(what);
        let compare =
            Compare::mod_revision(name.as_str(), CompareOp::Equal, layout::to_etcd_revision(expect));
        let txn = Txn::new().when([compare]).and_then([TxnOp::put(name, text, None)]);
        let mut kv = connected.kv();
        let unknown = |what: String| StoreError::OutcomeUnknown { what };
        let answer = tokio::select! {
            answer = kv.txn(txn) => answer.map_err(|error| unknown(self.connections.describe_error(&connected, &error)))?,
            () = self.connections.wait_lost(&connected) => return Err(unknown("the connection was lost".to_owned())),
            () = tokio::time::sleep(self.connections.timeout()) => return Err(unknown("no answer in time".to_owned())),
        };
        if !answer.succeeded() {
            return Err(StoreError::Conflict);
        }
        Ok(layout::from_etcd_revision(answer.header().map_or(0, etcd_client::ResponseHeader::revision)))
    }
}

fn no_op_delete(store: u64) -> CommitResult {
    CommitResult { revision: store, create_revision: 0, existed: false }
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
    use crate::store::conformance::{key, put};
    use crate::store::etcd::tests::opened;

    fn attempt<'a>(cluster: &Cluster, key: &'a Key, value: Option<&'a str>, before: i64) -> Attempt<'a> {
        let since = before.max(cluster.connections.revision());
        Attempt {
            key,
            value,
            extension: None,
            expected_mod_revision: before,
            extension_mod_revision: None,
            start_revision: since,
            ttl: None,
        }
    }

    /// Applies a delayed transaction, as a paused member does.
    async fn sent(cluster: &Cluster, txn: Txn) -> bool {
        let connected = cluster.connections.current().await.unwrap();
        connected.kv().txn(txn).await.unwrap().succeeded()
    }

    fn plain() -> PutOptions {
        PutOptions::new().with_prev_key()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_write_resolved_as_lost_is_never_applied() {
        let server = Server::plain().await;
        let store = opened(&[server.url()]).await;
        let (cluster, key) = (&store.cluster, key(Kind::Ssl, "1"));
        let fence = cluster.fence_revision().await.unwrap();
        let late = attempt(cluster, &key, Some("{\"v\":1}"), 0);
        let txn = cluster.build_txn(&late, fence, plain());
        assert!(matches!(cluster.resolve_unknown(&late).await, Ok(TxnOutcome::Fenced)));
        // Its precondition on the document still holds.
        assert!(!sent(cluster, txn).await);
        assert_eq!(store.get(&key).await.unwrap(), None);
        store.commit(put(&key, json!({"v": 2}), Precondition::Absent)).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_committed_write_is_found_behind_later_versions() {
        let server = Server::plain().await;
        let store = opened(&[server.url()]).await;
        let (cluster, key) = (&store.cluster, key(Kind::Ssl, "1"));
        let fence = cluster.fence_revision().await.unwrap();
        let made = attempt(cluster, &key, Some("{\"v\":1}"), 0);
        assert!(sent(cluster, cluster.build_txn(&made, fence, plain())).await);
        let first = store.get(&key).await.unwrap().unwrap();
        for v in 2..5 {
            store.commit(put(&key, json!({"v": v}), Precondition::Unconditional)).await.unwrap();
        }
        store
            .commit(Mutation::Delete { key: key.clone(), precondition: Precondition::Unconditional })
            .await
            .unwrap();
        let expected = CommitResult {
            revision: first.mod_revision,
            create_revision: first.create_revision,
            existed: false,
        };
        let Ok(TxnOutcome::Committed(found)) = cluster.resolve_unknown(&made).await else {
            panic!("it was made")
        };
        assert_eq!(found, expected);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_deletion_is_resolved() {
        let server = Server::plain().await;
        let store = opened(&[server.url()]).await;
        let (cluster, key) = (&store.cluster, key(Kind::Ssl, "1"));
        let made = store.commit(put(&key, json!({}), Precondition::Absent)).await.unwrap();
        let removal = attempt(cluster, &key, None, layout::to_etcd_revision(made.revision));
        assert!(matches!(cluster.resolve_unknown(&removal).await, Ok(TxnOutcome::Fenced)), "it was not sent");
        let fence = cluster.fence_revision().await.unwrap();
        assert!(sent(cluster, cluster.build_txn(&removal, fence, plain())).await);
        let settled = cluster.resolve_unknown(&removal).await;
        assert!(
            matches!(settled, Ok(TxnOutcome::Committed(CommitResult { existed: true, create_revision, .. })) if create_revision == made.create_revision)
        );
    }

    /// Two writers may write the same document at once with different extension fields; only one of
    /// them succeeded.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_write_is_identified_by_its_extension_fields() {
        let server = Server::plain().await;
        let store = opened(&[server.url()]).await;
        let (cluster, key) = (&store.cluster, key(Kind::Route, "1"));
        let fence = cluster.fence_revision().await.unwrap();
        let plainly = attempt(cluster, &key, Some("{\"v\":1}"), 0);
        let made = Attempt { extension: Some("{\"client_identity\":{}}"), ..plainly };
        let other = Attempt { extension: Some("{\"client_identity\":{\"allow\":[]}}"), ..made };
        let none = Attempt { extension: None, ..made };
        assert!(sent(cluster, cluster.build_txn(&made, fence, plain())).await);
        for lost in [&other, &none] {
            assert!(matches!(cluster.resolve_unknown(lost).await, Ok(TxnOutcome::Fenced)));
        }
        assert!(matches!(cluster.resolve_unknown(&made).await, Ok(TxnOutcome::Committed(_))));
    }
}
