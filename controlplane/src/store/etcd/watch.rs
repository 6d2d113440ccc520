//! Watching: every change below the prefix after a revision, from the member that is in use.
//!
//! One task a watch. When the connection is replaced, or nothing came for a while, the watch is opened again from the next
//! revision, which leaves no gap. When the connection was lost it ends with an error instead: the cluster may have been set back
//! meanwhile, and only reading everything tells.

use std::sync::Weak;
use std::time::Duration;

use etcd_client::{Error, EventType, WatchOptions, WatchResponse, WatchStream};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Cluster;
use super::layout::{self, Place};
use super::link::Connected;
use crate::store::{Event, Events, WatchError};

/// Answers of etcd that wait for the reader.
const WAITING: usize = 16;

/// Why one round of a watch ended.
enum Ended {
    /// Open it again from the next revision.
    Again,
    /// Nobody reads any more.
    Unread,
    Failed(WatchError),
}

/// Every change after `after`.
pub(super) fn events(cluster: Weak<Cluster>, after: u64) -> Events {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let mut seen = after;
        loop {
            let Some(cluster) = cluster.upgrade() else { return };
            match cluster.follow(&mut seen, &sender).await {
                Ended::Again => {}
                Ended::Unread => return,
                Ended::Failed(error) => return drop(sender.send(Err(error)).await),
            }
        }
    });
    ReceiverStream::new(receiver).boxed()
}

type Sender = mpsc::Sender<Result<Vec<Event>, WatchError>>;

impl Cluster {
    async fn follow(&self, seen: &mut u64, sender: &Sender) -> Ended {
        let connected = match self.link.connected().await {
            Ok(connected) => connected,
            Err(error) => return unavailable(error.to_string()),
        };
        let options = WatchOptions::new().with_prefix().with_start_revision(layout::number(*seen + 1));
        let mut client = connected.watch();
        let opening = client.watch(self.layout.root(), Some(options));
        let mut stream = match tokio::time::timeout(self.link.timeout(), opening).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.failed(&connected, &error).await,
            Err(_) => return unavailable("the watch was not opened in time".to_owned()),
        };
        loop {
            let message = tokio::select! {
                message = next(&mut stream, self.watch_timeout) => message,
                () = self.link.left(&connected) => return self.moved(&connected).await,
                () = sender.closed() => return Ended::Unread,
            };
            let response = match message {
                Ok(Some(Ok(response))) => response,
                Ok(Some(Err(error))) => return self.failed(&connected, &error).await,
                Ok(None) => return unavailable("etcd ended the watch".to_owned()),
                // Nothing came: asking again from the next revision is cheap, and finds a watch that died silently.
                Err(_) => return Ended::Again,
            };
            if let Some(ended) = self.take(&response, seen, sender).await {
                return ended;
            }
        }
    }

    /// A connection that was replaced still has its cluster; one that was lost may come back to another.
    async fn moved(&self, connected: &Connected) -> Ended {
        match self.link.connected().await {
            Ok(now) if now.follows(connected) => Ended::Again,
            Ok(_) => unavailable("the connection to etcd was lost".to_owned()),
            Err(error) => unavailable(error.to_string()),
        }
    }

    async fn failed(&self, connected: &Connected, error: &Error) -> Ended {
        let what = self.link.told(connected, error);
        self.link.suspect(connected).await;
        unavailable(what)
    }

    async fn take(&self, response: &WatchResponse, seen: &mut u64, sender: &Sender) -> Option<Ended> {
        let head = layout::revision(response.header().map_or(0, etcd_client::ResponseHeader::revision));
        if response.compact_revision() > 0 {
            let oldest = layout::revision(response.compact_revision());
            return Some(Ended::Failed(WatchError::Compacted { oldest }));
        }
        if response.canceled() {
            return Some(unavailable(format!("etcd cancelled the watch: {}", response.cancel_reason())));
        }
        if response.created() && head < *seen {
            // What was seen has not happened here: the cluster was set back.
            return Some(Ended::Failed(WatchError::Compacted { oldest: head }));
        }
        // An answer that is not asked to be cut holds whole revisions.
        let events: Vec<Event> =
            response.events().iter().filter_map(|event| self.event(event, seen)).collect();
        if events.is_empty() {
            return None;
        }
        events.iter().for_each(|event| self.memory.changed(event));
        sender.send(Ok(events)).await.is_err().then_some(Ended::Unread)
    }

    fn event(&self, event: &etcd_client::Event, seen: &mut u64) -> Option<Event> {
        let kv = event.kv()?;
        let revision = layout::revision(kv.mod_revision());
        *seen = (*seen).max(revision);
        let Place::Document(key) = self.layout.place(kv.key()) else { return None };
        let now = (event.event_type() == EventType::Put)
            .then(|| layout::stored(key.clone(), kv.value(), kv.create_revision(), kv.mod_revision()));
        Some(Event { revision, key, now })
    }
}

async fn next(
    stream: &mut WatchStream,
    patience: Duration,
) -> Result<Option<Result<WatchResponse, Error>>, tokio::time::error::Elapsed> {
    tokio::time::timeout(patience, stream.message()).await.map(Result::transpose)
}

fn unavailable(what: String) -> Ended {
    Ended::Failed(WatchError::Unavailable { what })
}
