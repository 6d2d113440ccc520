//! Watches: every change below the prefix after a revision, from the current connection.
//!
//! One task per watch. When the connection is replaced, or after a quiet period, the watch reopens
//! at the next revision, without a gap. When the connection is lost the watch ends with an error:
//! the cluster may have been restored from a backup meanwhile, which only a load detects.
//!
//! A document and its extension entry yield one event. The watch loads the entries as of its start
//! revision and tracks their changes. The control plane writes both keys in one revision; another
//! program writes the document only, and the extension fields stay. When a document expires or
//! another program removes it, the watch has its entry removed, too.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use etcd_client::{Error, EventType, WatchOptions, WatchResponse, WatchStream};
use futures_util::StreamExt;
use model::Key;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Cluster;
use super::connection::EtcdConnection;
use super::layout::{self, ExtensionEntry, ParsedKey};
use crate::store::{Event, EventStream, WatchError};

/// Responses that wait for the reader.
const QUEUE_MAX: usize = 16;

/// Why one round of a watch ended.
enum RoundEnd {
    /// Reopen the watch at the next revision.
    Reopen,
    /// The reader dropped the stream.
    ReaderGone,
    Failed(WatchError),
}

/// All changes after a revision.
pub(super) fn events(cluster: Weak<Cluster>, after: u64) -> EventStream {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    tokio::spawn(async move {
        let mut position = WatchPosition { revision: after, extensions: None, orphans: Vec::new() };
        loop {
            let Some(cluster) = cluster.upgrade() else { return };
            match cluster.run_watch_round(&mut position, &sender).await {
                RoundEnd::Reopen => {}
                RoundEnd::ReaderGone => return,
                RoundEnd::Failed(error) => {
                    cluster.cache.watch_failed();
                    return drop(sender.send(Err(error)).await);
                }
            }
        }
    });
    ReceiverStream::new(receiver).boxed()
}

/// The position of a watch.
struct WatchPosition {
    /// The newest seen revision.
    revision: u64,
    /// The extension entries at that revision; `None` before they were loaded.
    extensions: Option<HashMap<Key, ExtensionEntry>>,
    /// Extension entries whose document was removed without them, with their mod revisions.
    orphans: Vec<(Key, u64)>,
}

type EventSender = mpsc::Sender<Result<Vec<Event>, WatchError>>;

impl Cluster {
    async fn run_watch_round(
        self: &Arc<Self>,
        position: &mut WatchPosition,
        sender: &EventSender,
    ) -> RoundEnd {
        let connection = match self.connections.current().await {
            Ok(connection) => connection,
            Err(error) => return unavailable(error.to_string()),
        };
        if let Err(end) = self.load_extensions(position).await {
            return end;
        }
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(layout::to_etcd_revision(position.revision + 1));
        let mut client = connection.watch();
        let opening = client.watch(self.layout.root(), Some(options));
        let mut stream = match tokio::time::timeout(self.connections.timeout(), opening).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.watch_failed(&connection, &error).await,
            Err(_) => return unavailable("the watch was not opened in time".to_owned()),
        };
        loop {
            let message = tokio::select! {
                message = next(&mut stream, self.watch_timeout) => message,
                () = self.connections.wait_replaced(&connection) => return self.connection_replaced(&connection).await,
                () = sender.closed() => return RoundEnd::ReaderGone,
            };
            let response = match message {
                Ok(Some(Ok(response))) => response,
                Ok(Some(Err(error))) => return self.watch_failed(&connection, &error).await,
                Ok(None) => return unavailable("etcd ended the watch".to_owned()),
                // After a quiet period the watch reopens, which is cheap and detects a dead one.
                Err(_) => return RoundEnd::Reopen,
            };
            if let Some(end) = self.handle_response(&response, position, sender).await {
                return end;
            }
        }
    }

    /// Loads the extension entries at the seen revision, unless they are known.
    async fn load_extensions(&self, position: &mut WatchPosition) -> Result<(), RoundEnd> {
        if position.extensions.is_some() {
            return Ok(());
        }
        let loaded = match position.revision {
            // The empty store; etcd reads revision 0 as the current one.
            0 => Ok(Some(HashMap::new())),
            revision => {
                self.extensions_at(&self.layout.extensions_prefix(), layout::to_etcd_revision(revision)).await
            }
        };
        match loaded {
            Ok(Some(extensions)) => position.extensions = Some(extensions),
            Ok(None) => return Err(self.compacted_at_head().await),
            Err(error) => return Err(unavailable(error.to_string())),
        }
        Ok(())
    }

    /// A replaced connection still has its cluster; a lost one may return with another state.
    async fn connection_replaced(&self, connection: &EtcdConnection) -> RoundEnd {
        match self.connections.current().await {
            Ok(now) if now.same_epoch(connection) => RoundEnd::Reopen,
            Ok(_) => unavailable("the connection to etcd was lost".to_owned()),
            Err(error) => unavailable(error.to_string()),
        }
    }

    async fn watch_failed(&self, connection: &EtcdConnection, error: &Error) -> RoundEnd {
        let what = self.connections.describe_error(connection, error);
        self.connections.check_health(connection).await;
        unavailable(what)
    }

    async fn handle_response(
        self: &Arc<Self>,
        response: &WatchResponse,
        position: &mut WatchPosition,
        sender: &EventSender,
    ) -> Option<RoundEnd> {
        let head =
            layout::from_etcd_revision(response.header().map_or(0, etcd_client::ResponseHeader::revision));
        if response.compact_revision() > 0 {
            return Some(compacted(layout::from_etcd_revision(response.compact_revision())));
        }
        if response.canceled() {
            return Some(unavailable(format!("etcd cancelled the watch: {}", response.cancel_reason())));
        }
        if response.created() && head < position.revision {
            // The seen revision is in this cluster's future: it was restored from a backup.
            return Some(compacted(head));
        }
        let mut events = Vec::new();
        // Without the fragment option a response holds whole revisions.
        for changes in response.events().chunk_by(|one, next| event_revision(one) == event_revision(next)) {
            if let Err(end) = self.apply_revision(changes, position, &mut events).await {
                return Some(end);
            }
        }
        if !position.orphans.is_empty() {
            let (cluster, orphans) = (Arc::clone(self), std::mem::take(&mut position.orphans));
            // Events do not wait for it.
            tokio::spawn(async move {
                if let Err(error) = cluster.remove_extensions(&orphans).await {
                    tracing::debug!(%error, "extension fields of removed documents stay; lint counts them");
                }
            });
        }
        if events.is_empty() {
            return None;
        }
        self.cache.apply(&events);
        sender.send(Ok(events)).await.is_err().then_some(RoundEnd::ReaderGone)
    }

    /// The revision is compacted or in the future: a watch can start at the current one.
    async fn compacted_at_head(&self) -> RoundEnd {
        match self.mod_revision(self.layout.fence_key()).await {
            Ok((_, present)) => compacted(present),
            Err(error) => unavailable(error.to_string()),
        }
    }

    /// Applies all changes of one revision.
    async fn apply_revision(
        &self,
        changes: &[etcd_client::Event],
        position: &mut WatchPosition,
        events: &mut Vec<Event>,
    ) -> Result<(), RoundEnd> {
        let Some(revision) = changes.first().map(event_revision) else { return Ok(()) };
        position.revision = position.revision.max(revision);
        let extensions = position.extensions.get_or_insert_default();
        let (mut documents, mut extension_keys) = (Vec::new(), Vec::new());
        for (change, kv) in changes.iter().filter_map(|change| Some((change, change.kv()?))) {
            let put = change.event_type() == EventType::Put;
            match self.layout.parse(kv.key()) {
                ParsedKey::Document(key) | ParsedKey::Misnamed(key, _) => {
                    documents.push((key, put.then(|| self.layout.decode(kv)).flatten()));
                }
                ParsedKey::Extension(key) => {
                    if put {
                        extensions.insert(key.clone(), ExtensionEntry::decode(kv.value(), kv.mod_revision()));
                        extension_keys.push(key);
                    } else if extensions.remove(&key).is_some() {
                        extension_keys.push(key);
                    }
                }
                ParsedKey::Ignored | ParsedKey::Unknown(_) => {}
            }
        }
        let changed: HashSet<&Key> = documents.iter().map(|(key, _)| key).collect();
        extension_keys.retain(|key| !changed.contains(key));
        let removed = documents.iter().filter(|(_, stored)| stored.is_none());
        position
            .orphans
            .extend(removed.filter_map(|(key, _)| Some((key.clone(), extensions.remove(key)?.mod_revision))));
        // Only the extension entry of these documents changed.
        for key in extension_keys {
            match self.document_at(&key, revision).await {
                Ok(Some(Some(stored))) => documents.push((key, Some(stored))),
                Ok(Some(None)) => {}
                Ok(None) => return Err(self.compacted_at_head().await),
                Err(error) => return Err(unavailable(error.to_string())),
            }
        }
        events.extend(documents.into_iter().map(|(key, stored)| {
            let now = stored.map(|stored| layout::merge_extension(stored, extensions.get(&key)));
            Event { revision, key, document: now }
        }));
        Ok(())
    }
}

fn event_revision(change: &etcd_client::Event) -> u64 {
    layout::from_etcd_revision(change.kv().map_or(0, etcd_client::KeyValue::mod_revision))
}

fn compacted(oldest: u64) -> RoundEnd {
    RoundEnd::Failed(WatchError::Compacted { oldest })
}

async fn next(
    stream: &mut WatchStream,
    patience: Duration,
) -> Result<Option<Result<WatchResponse, Error>>, tokio::time::error::Elapsed> {
    tokio::time::timeout(patience, stream.message()).await.map(Result::transpose)
}

fn unavailable(what: String) -> RoundEnd {
    RoundEnd::Failed(WatchError::Unavailable { what })
}
