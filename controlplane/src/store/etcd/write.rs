//! Writing: each change is one transaction that compares what its writer believes, and is never repeated blindly.
//!
//! A write of which no answer came may have been made, or may still be made: its bytes may lie in the memory of a member that is
//! paused. So each write also compares the *fence*, a name that nobody writes otherwise. After a write of unknown outcome the
//! fence is written: what is then still on its way fails, and what is read then is final. Invariant: an outcome that is told is
//! final; where it cannot be made so because no endpoint answers, [`StoreError::Unknown`] says that.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use etcd_client::{
    Compare, CompareOp, Error, GetOptions, KvClient, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use model::Key;
use tonic::Code;

use super::Cluster;
use super::dial;
use super::layout;
use super::link::Connected;
use crate::store::{Committed, Expect, Private, StoreError, Write};

/// Rounds in which a write that takes whatever is there lost against others, or the fence moved.
const TRIES: usize = 64;
/// Versions of one document that are looked back over to find out whether a write was made.
const LOOK_BACK: usize = 64;

/// The fence as this process last saw it: its modification revision, 0 before it exists; negative: not read yet.
pub(super) struct Fence(AtomicI64);

impl Default for Fence {
    fn default() -> Self {
        Self(AtomicI64::new(-1))
    }
}

/// What a transaction that was answered did.
enum Answer {
    Made(Committed),
    /// Somebody moved the fence; nothing was written, and the next try knows.
    Fenced,
    /// The document is not what was believed; nothing was written.
    Conflict,
}

/// One try of a write, laid down.
struct Attempt<'a> {
    key: &'a Key,
    /// The new value; nothing for a removal.
    value: Option<&'a str>,
    /// The modification revision that is compared; 0: the document does not exist.
    before: i64,
    ttl: Option<NonZeroU32>,
}

impl Cluster {
    /// Makes one change.
    pub(super) async fn commit(self: &Arc<Self>, write: Write) -> Result<Committed, StoreError> {
        let value = match &write {
            Write::Put { document, .. } => Some(document.to_string()),
            Write::Delete { .. } => None,
        };
        let ttl = if let Write::Put { ttl, .. } = &write { *ttl } else { None };
        for _ in 0..TRIES {
            let before = match write.expect() {
                Expect::Absent => 0,
                Expect::Revision(revision) => layout::number(revision),
                Expect::Anything => match (self.revision_of(write.key()).await?, &value) {
                    ((0, store), None) => return Ok(nothing_removed(store)),
                    ((before, _), _) => before,
                },
            };
            let attempt = Attempt { key: write.key(), value: value.as_deref(), before, ttl };
            match self.attempt(&attempt).await? {
                Answer::Made(committed) => return Ok(committed),
                Answer::Fenced => {}
                Answer::Conflict if write.expect() == Expect::Anything => {}
                Answer::Conflict => return Err(StoreError::Conflict),
            }
        }
        Err(StoreError::Conflict)
    }

    async fn attempt(self: &Arc<Self>, attempt: &Attempt<'_>) -> Result<Answer, StoreError> {
        let fence = self.fence().await?;
        let connected = self.link.connected().await?;
        let put = match attempt.ttl {
            None => PutOptions::new().with_prev_key(),
            Some(ttl) => PutOptions::new().with_prev_key().with_lease(self.lease(&connected, ttl).await?),
        };
        let txn = self.transaction(attempt, fence, put);
        let mut kv = connected.kv();
        let failed = tokio::select! {
            answer = kv.txn(txn) => match answer {
                Ok(answer) => return Ok(self.answer(attempt, fence, &answer)),
                Err(error) => error,
            },
            () = self.link.lost(&connected) => Error::Internal("the connection was lost".to_owned()),
            () = tokio::time::sleep(self.link.timeout()) => Error::Internal("no answer in time".to_owned()),
        };
        let what = self.link.told(&connected, &failed);
        if let Some(refused) = refusal(&failed, &what) {
            return Err(refused);
        }
        if dial::unsent(&failed) {
            return Err(StoreError::Unavailable { what });
        }
        tracing::warn!(resource = %attempt.key, problem = what, "a write was not answered; finding out whether it was made");
        self.link.suspect(&connected).await;
        let settling = self.settle(attempt);
        match tokio::time::timeout(self.link.timeout(), settling).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) | Err(_) => {
                self.settle_later(attempt);
                Err(StoreError::Unknown { what })
            }
        }
    }

    fn transaction(&self, attempt: &Attempt<'_>, fence: i64, put: PutOptions) -> Txn {
        let name = self.layout.document(attempt.key);
        let compares = [
            Compare::mod_revision(self.layout.fence(), CompareOp::Equal, fence),
            Compare::mod_revision(name.as_str(), CompareOp::Equal, attempt.before),
        ];
        let operation = match attempt.value {
            Some(value) => TxnOp::put(name, value, Some(put)),
            None => TxnOp::delete(name, Some(etcd_client::DeleteOptions::new().with_prev_key())),
        };
        let fence = TxnOp::get(self.layout.fence(), Some(GetOptions::new().with_keys_only()));
        Txn::new().when(compares).and_then([operation]).or_else([fence])
    }

    fn answer(&self, attempt: &Attempt<'_>, fence: i64, answer: &TxnResponse) -> Answer {
        let operations = answer.op_responses();
        if !answer.succeeded() {
            let now = match operations.first() {
                Some(TxnOpResponse::Get(found)) => {
                    found.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision)
                }
                _ => -1,
            };
            self.fence.0.store(now, Ordering::Release);
            return if now == fence { Answer::Conflict } else { Answer::Fenced };
        }
        let revision = layout::revision(answer.header().map_or(0, etcd_client::ResponseHeader::revision));
        let before = match operations.first() {
            Some(TxnOpResponse::Put(put)) => put.prev_key().map(etcd_client::KeyValue::create_revision),
            Some(TxnOpResponse::Delete(gone)) => {
                gone.prev_kvs().first().map(etcd_client::KeyValue::create_revision)
            }
            _ => None,
        };
        let made_now = if attempt.value.is_some() { revision } else { 0 };
        Answer::Made(Committed {
            revision,
            created: before.map_or(made_now, layout::revision),
            existed: before.is_some(),
        })
    }

    /// The fence as this process knows it; read when it does not.
    async fn fence(&self) -> Result<i64, StoreError> {
        let known = self.fence.0.load(Ordering::Acquire);
        if known >= 0 {
            return Ok(known);
        }
        let name = self.layout.fence();
        let (now, _) = self.modified(name).await?;
        self.fence.0.store(now, Ordering::Release);
        Ok(now)
    }

    async fn revision_of(&self, key: &Key) -> Result<(i64, u64), StoreError> {
        self.modified(self.layout.document(key)).await
    }

    /// When a name was last written, 0 when it does not exist; and the store's revision.
    async fn modified(&self, name: String) -> Result<(i64, u64), StoreError> {
        let options = GetOptions::new().with_keys_only();
        let found = self.ask(|mut kv: KvClient| {
            let (name, options) = (name.clone(), options.clone());
            async move { kv.get(name, Some(options)).await }
        });
        let found = found.await?;
        let store = layout::revision(found.header().map_or(0, etcd_client::ResponseHeader::revision));
        Ok((found.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision), store))
    }

    async fn lease(&self, connected: &Connected, ttl: NonZeroU32) -> Result<i64, StoreError> {
        let mut lease = connected.client.lease_client();
        let granted =
            tokio::time::timeout(self.link.timeout(), lease.grant(i64::from(ttl.get()), None)).await;
        let unavailable = |what: String| StoreError::Unavailable { what };
        let granted = granted.map_err(|_| unavailable("no lease was granted in time".to_owned()))?;
        Ok(granted.map_err(|error| unavailable(self.link.told(connected, &error)))?.id())
    }

    /// Moves the fence, so that nothing from before can still come through, and reads what became of the write. An error only
    /// when no endpoint answers.
    async fn settle(&self, attempt: &Attempt<'_>) -> Result<Answer, StoreError> {
        let name = self.layout.fence();
        let moved = self.ask(|mut kv: KvClient| {
            let name = name.clone();
            async move { kv.put(name, "1", None).await }
        });
        let moved = moved.await?;
        let revision = moved.header().map_or(-1, etcd_client::ResponseHeader::revision);
        self.fence.0.store(revision, Ordering::Release);
        let made = self.made(attempt, revision).await?;
        tracing::info!(resource = %attempt.key, made = made.is_some(), "found out what became of a write that was not answered");
        Ok(made.map_or(Answer::Fenced, Answer::Made))
    }

    /// Looks back over the versions of a document for the one that a write made; `None`: it was not made.
    async fn made(&self, attempt: &Attempt<'_>, now: i64) -> Result<Option<Committed>, StoreError> {
        let name = self.layout.document(attempt.key);
        let mut at = now;
        for _ in 0..LOOK_BACK {
            let options = GetOptions::new().with_revision(at);
            let found = self.ask(|mut kv: KvClient| {
                let (name, options) = (name.clone(), options.clone());
                async move { kv.get(name, Some(options)).await }
            });
            let found = found.await?;
            let Some(kv) = found.kvs().first() else {
                // Whoever removed it between, it is gone as this write wanted.
                let gone = attempt.value.is_none() && at == now;
                return Ok(gone.then(|| Committed {
                    revision: layout::revision(now),
                    created: layout::revision(attempt.before),
                    existed: true,
                }));
            };
            if kv.mod_revision() <= attempt.before {
                return Ok(None);
            }
            if attempt.value.is_some_and(|value| value.as_bytes() == kv.value()) {
                return Ok(Some(Committed {
                    revision: layout::revision(kv.mod_revision()),
                    created: layout::revision(kv.create_revision()),
                    existed: attempt.before != 0,
                }));
            }
            at = kv.mod_revision() - 1;
        }
        Ok(None)
    }

    /// A write whose outcome nobody could be told: when an endpoint answers again, nothing of it comes any more.
    fn settle_later(self: &Arc<Self>, attempt: &Attempt<'_>) {
        let cluster = Arc::downgrade(self);
        let (key, value) = (attempt.key.clone(), attempt.value.map(str::to_owned));
        let (before, ttl) = (attempt.before, attempt.ttl);
        tokio::spawn(async move {
            loop {
                let Some(cluster) = cluster.upgrade() else { return };
                let attempt = Attempt { key: &key, value: value.as_deref(), before, ttl };
                if cluster.link.up().await.is_none() || cluster.settle(&attempt).await.is_ok() {
                    return;
                }
                tokio::time::sleep(cluster.link.timeout().min(std::time::Duration::from_secs(1))).await;
            }
        });
    }

    /// Takes a revision as an id, as an APISIX does (contract 2.3). Taking one too many does no harm.
    pub(super) async fn reserve_id(&self) -> Result<u64, StoreError> {
        let name = self.layout.sequence();
        let taken = self.ask(|mut kv: KvClient| {
            let name = name.clone();
            async move { kv.put(name, "1", None).await }
        });
        let taken = taken.await?;
        Ok(layout::revision(taken.header().map_or(0, etcd_client::ResponseHeader::revision)))
    }

    /// Replaces a private entry. Not asked again without an answer: its writer reads before it tries once more.
    pub(super) async fn swap_private(
        &self,
        what: Private,
        expect: u64,
        text: &str,
    ) -> Result<u64, StoreError> {
        let connected = self.link.connected().await?;
        let name = self.layout.private(what);
        let compare = Compare::mod_revision(name.as_str(), CompareOp::Equal, layout::number(expect));
        let txn = Txn::new().when([compare]).and_then([TxnOp::put(name, text, None)]);
        let mut kv = connected.kv();
        let unknown = |what: String| StoreError::Unknown { what };
        let answer = tokio::select! {
            answer = kv.txn(txn) => answer.map_err(|error| unknown(self.link.told(&connected, &error)))?,
            () = self.link.lost(&connected) => return Err(unknown("the connection was lost".to_owned())),
            () = tokio::time::sleep(self.link.timeout()) => return Err(unknown("no answer in time".to_owned())),
        };
        if !answer.succeeded() {
            return Err(StoreError::Conflict);
        }
        Ok(layout::revision(answer.header().map_or(0, etcd_client::ResponseHeader::revision)))
    }
}

fn nothing_removed(store: u64) -> Committed {
    Committed { revision: store, created: 0, existed: false }
}

/// An answer that says for certain that nothing was written.
fn refusal(error: &Error, what: &str) -> Option<StoreError> {
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
