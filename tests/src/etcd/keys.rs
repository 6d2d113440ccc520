//! Reads and writes etcd's keys as another program or an operator would.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, DeleteOptions, EventType, GetOptions, Txn, TxnOp, WatchOptions};

use crate::client::bounded;

/// A connection to one member. Cheap to clone.
#[derive(Clone)]
pub struct Keys {
    client: Client,
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
    /// The revision that last changed it.
    pub modified: u64,
    /// 0 without one.
    pub lease: i64,
}

impl Entry {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.value).unwrap_or_else(|problem| {
            panic!("{}: {problem}: {}", self.key, String::from_utf8_lossy(&self.value))
        })
    }
}

/// One change in etcd's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: u64,
    pub key: String,
    /// `None` when the key was removed.
    pub value: Option<Vec<u8>>,
}

fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).expect("a revision is not negative")
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

impl Keys {
    pub(super) async fn connect(url: &str, root_password: Option<&str>) -> Self {
        let mut options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(10));
        if let Some(password) = root_password {
            options = options.with_user("root", password);
        }
        let client = bounded("a connection to etcd", Client::connect([url], Some(options))).await;
        Self { client: client.unwrap_or_else(|problem| panic!("{url}: {problem}")) }
    }

    /// Gives the revision.
    pub async fn put(&mut self, key: &str, value: impl Into<Vec<u8>>) -> u64 {
        let answer = bounded("a put", self.client.put(key, value, None)).await;
        unsigned(
            answer
                .unwrap_or_else(|problem| panic!("put {key}: {problem}"))
                .header()
                .expect("a header")
                .revision(),
        )
    }

    /// Gives the revision.
    pub async fn delete(&mut self, key: &str) -> u64 {
        let answer = bounded("a delete", self.client.delete(key, None)).await;
        unsigned(
            answer
                .unwrap_or_else(|problem| panic!("delete {key}: {problem}"))
                .header()
                .expect("a header")
                .revision(),
        )
    }

    /// Writes all in one revision, and gives it.
    pub async fn put_all(&mut self, entries: &[(String, String)]) -> u64 {
        let puts: Vec<_> =
            entries.iter().map(|(key, value)| TxnOp::put(key.as_str(), value.as_str(), None)).collect();
        let answer = bounded("a transaction", self.client.txn(Txn::new().and_then(puts))).await;
        let answer = answer.unwrap_or_else(|problem| panic!("put {} keys: {problem}", entries.len()));
        unsigned(answer.header().expect("a header").revision())
    }

    /// Removes every key with this prefix in one revision, and gives it.
    pub async fn delete_prefix(&mut self, prefix: &str) -> u64 {
        let options = DeleteOptions::new().with_prefix();
        let answer = bounded("a delete", self.client.delete(prefix, Some(options))).await;
        let answer = answer.unwrap_or_else(|problem| panic!("delete {prefix}: {problem}"));
        unsigned(answer.header().expect("a header").revision())
    }

    pub async fn get(&mut self, key: &str) -> Option<Entry> {
        self.try_get(key).await.unwrap_or_else(|problem| panic!("get {key}: {problem}"))
    }

    /// One key, if the cluster has a leader.
    ///
    /// # Errors
    /// Any error of etcd.
    pub async fn try_get(&mut self, key: &str) -> Result<Option<Entry>, etcd_client::Error> {
        let answer = bounded("a get", self.client.get(key, None)).await?;
        Ok(answer.kvs().first().map(entry))
    }

    /// Every key with this prefix, in order.
    pub async fn with_prefix(&mut self, prefix: &str) -> Vec<Entry> {
        let answer = bounded("a get", self.client.get(prefix, Some(GetOptions::new().with_prefix()))).await;
        answer.unwrap_or_else(|problem| panic!("get {prefix}: {problem}")).kvs().iter().map(entry).collect()
    }

    /// The revision that last changed a document below `/apisix/`. The cluster's own is newer:
    /// control planes write reports.
    pub async fn documents_revision(&mut self) -> u64 {
        let documents = self.with_prefix("/apisix/").await;
        // The prefix of reports and of the names of nodes.
        let ours = "/apisix/countersign/control_plane";
        documents
            .iter()
            .filter(|entry| !entry.key.starts_with(ours))
            .map(|entry| entry.modified)
            .max()
            .unwrap_or(0)
    }

    pub async fn revision(&mut self) -> u64 {
        let answer = bounded("a get", self.client.get("nothing", None)).await.expect("etcd answers");
        unsigned(answer.header().expect("a header").revision())
    }

    /// Compacts everything before this revision.
    pub async fn compact(&mut self, revision: u64) {
        let revision = i64::try_from(revision).expect("a small number");
        bounded("a compaction", self.client.compact(revision, None)).await.expect("etcd compacts");
    }

    /// Every change with this prefix from revision `from` up to `to` (which must be a change
    /// there), in etcd's order.
    pub async fn history(&mut self, prefix: &str, from: u64, to: u64) -> Vec<Change> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(i64::try_from(from).expect("a small number"));
        let mut stream = self.client.watch(prefix, Some(options)).await.expect("etcd watches");
        let mut changes = Vec::new();
        while changes.last().is_none_or(|last: &Change| last.revision < to) {
            let answer = bounded("the history", stream.message()).await.expect("etcd tells");
            let answer = answer.expect("the history goes on");
            assert!(!answer.canceled(), "the watch was ended: {}", answer.cancel_reason());
            for event in answer.events() {
                let kv = event.kv().expect("an event has a key");
                let value = (event.event_type() == EventType::Put).then(|| kv.value().to_vec());
                changes.push(Change { revision: unsigned(kv.mod_revision()), key: text(kv.key()), value });
            }
        }
        changes
    }

    pub(super) async fn leader(&mut self) -> Option<u64> {
        let status = bounded("a status", self.client.status()).await.ok()?;
        Some(status.leader()).filter(|leader| *leader != 0)
    }

    pub(super) async fn member(&mut self) -> u64 {
        let status = bounded("a status", self.client.status()).await.expect("etcd answers");
        status.header().expect("a header").member_id()
    }
}

fn entry(kv: &etcd_client::KeyValue) -> Entry {
    Entry {
        key: text(kv.key()),
        value: kv.value().to_vec(),
        modified: unsigned(kv.mod_revision()),
        lease: kv.lease(),
    }
}
