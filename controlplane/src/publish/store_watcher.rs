//! From the store's changes to `Latest`: documents are checked, resources enter an immutable snapshot.
//!
//! Invariant: the first load, each change and the recovery after a lost watch are one function (`Delta` applied to the
//! snapshot before). What becomes of a document that another program may have written is `adopted`'s.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use model::{Delta, Key, Resource, Snapshot};
use telemetry::Heartbeat;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::PublishError;
use super::findings::{Findings, removed, take};
use super::refresh::{self, Nudge, Nudged};
use crate::compile::expected_version;
use crate::contents::Contents;
use crate::store::{Event, Loaded, Store, StoreError, Stored, WatchError};

/// Changes taken together when they come faster than they can be applied.
const BATCH_MAX: usize = 256;
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// What is followed, and how to have the store read anew.
pub struct Following {
    /// The newest state; changes with every commit.
    pub latest: watch::Receiver<Arc<Snapshot>>,
    /// What is to be said about the stored documents.
    pub findings: Arc<Findings>,
    /// For who knows of a newer one.
    pub nudge: Nudge,
    /// Whether the store could not be read for so long that others are better served elsewhere.
    pub cut_off: watch::Receiver<bool>,
    /// Since when the store cannot be read; `None`: it can.
    pub unread: watch::Receiver<Option<Instant>>,
    /// Ends at shutdown, or when the store is closed.
    pub task: JoinHandle<()>,
}

/// Loads the present state, then follows the store until shutdown.
///
/// # Errors
/// When the store cannot be read; unless `accept_unreadable_keys`, when the keyring does not open
/// most of its keys.
pub async fn start(
    store: Arc<dyn Store>,
    keyring: Arc<pki::Keyring>,
    accept_unreadable_keys: bool,
    heartbeat: Arc<Heartbeat>,
    shutdown: watch::Receiver<bool>,
) -> Result<Following, PublishError> {
    let loaded = Arc::new(store.load().await?);
    let (items, opening) = (Arc::clone(&loaded), Arc::clone(&keyring));
    let counting = tokio::task::spawn_blocking(move || Contents::of(&items.items, &opening));
    let contents = counting.await.map_err(|error| StoreError::Unavailable { what: error.to_string() })?;
    match contents.usable() {
        Err(error) if accept_unreadable_keys => tracing::warn!("--accept-unreadable-keys: {error}"),
        other => other?,
    }
    for warning in contents.warnings() {
        tracing::warn!("{warning}");
    }
    tracing::info!(identity = store.identity(), "the store holds {contents}");
    let findings = Arc::default();
    let first = apply_load(Arc::new(Snapshot::empty()), loaded, &keyring, &findings).await;
    let (latest, receiver) = watch::channel(first);
    let (nudge, nudged) = refresh::pair();
    let (cut_off, cutting_off) = watch::channel(false);
    let (unread, reading) = watch::channel(None);
    let follower = Follower {
        store,
        keyring,
        findings: Arc::clone(&findings),
        latest,
        nudged,
        lost: None,
        failing: None,
        cut_off,
        unread,
    };
    let task = tokio::spawn(follower.run(heartbeat, shutdown));
    Ok(Following { latest: receiver, findings, refresh, cut_off: cutting_off, unread: reading, task })
}

/// How long the store cannot be read before nodes are let go.
pub(super) fn cut_off_after(store: &dyn Store) -> Duration {
    store.resync_delay() * 2
}

struct Follower {
    store: Arc<dyn Store>,
    keyring: Arc<pki::Keyring>,
    findings: Arc<Findings>,
    latest: watch::Sender<Arc<Snapshot>>,
    nudged: Nudged,
    /// When the watch failed; `None` after a load.
    lost: Option<Instant>,
    /// Since when the store cannot be read.
    failing: Option<Failing>,
    cut_off: watch::Sender<bool>,
    unread: watch::Sender<Option<Instant>>,
}

/// The store cannot be read.
struct Failing {
    since: Instant,
    /// What the log knows of.
    told: StoreError,
}

/// Why a watch ended.
enum Ended {
    /// The store is closed.
    Closed,
    /// Somebody knows of a newer state.
    Nudged,
    Failed(WatchError),
}

impl Follower {
    async fn run(mut self, heartbeat: Arc<Heartbeat>, mut shutdown: watch::Receiver<bool>) {
        tokio::select! {
            () = self.follow() => {}
            never = heartbeat.beating() => match never {},
            _ = shutdown.wait_for(|stop| *stop) => {}
        }
        heartbeat.idle();
    }

    /// Ends when the store is closed.
    async fn follow(&mut self) {
        let mut pause = PAUSE_MIN;
        loop {
            let after = self.latest.borrow().revision();
            // A watch is never gone on with after a load: it would tell of changes that are older than what was loaded.
            match self.watch(after, &mut pause).await {
                Ended::Closed => return,
                Ended::Nudged => {
                    if !self.reload().await {
                        self.rest(PAUSE_MIN).await;
                    }
                    continue;
                }
                Ended::Failed(WatchError::Compacted { .. }) => {
                    tracing::info!(
                        "the store no longer keeps the changes since revision {after}; loading everything"
                    );
                }
                Ended::Failed(error) => {
                    tracing::warn!(%error, "watching the store failed; data planes keep what they have");
                    self.lost.get_or_insert_with(Instant::now);
                    self.rest(pause).await;
                    pause = (pause * 2).min(self.store.resync_delay().max(PAUSE_MIN));
                }
            }
            while !self.reload().await {
                self.rest(pause).await;
                pause = (pause * 2).min(self.store.resync_delay().max(PAUSE_MIN));
            }
        }
    }

    async fn watch(&mut self, after: u64, pause: &mut Duration) -> Ended {
        let mut batches = self.store.watch(after).ready_chunks(BATCH_MAX);
        loop {
            let batch = tokio::select! {
                batch = batches.next() => batch,
                () = self.nudged.asked() => return Ended::Nudged,
            };
            let Some(batch) = batch else { return Ended::Closed };
            *pause = PAUSE_MIN;
            if let Some(error) = self.take(batch) {
                return Ended::Failed(error);
            }
        }
    }

    /// Somebody who asks ends a long pause, and so does a store that can be reached again; but not a short one: a store that is
    /// down is not asked by every node that comes.
    async fn rest(&mut self, pause: Duration) {
        tokio::time::sleep(PAUSE_MIN).await;
        tokio::select! {
            () = tokio::time::sleep(pause.saturating_sub(PAUSE_MIN)) => {}
            () = self.nudged.asked() => {}
            () = self.store.returned() => {}
        }
    }

    /// Whether the store could be read. The state may be an older one than before: a store that was set back is followed.
    async fn reload(&mut self) -> bool {
        let until = self.nudged.begin();
        let loaded = match self.store.load().await {
            Ok(loaded) => loaded,
            Err(error) => {
                self.nudged.answer(until, Some(error.to_string()));
                self.fails(error);
                return false;
            }
        };
        let before = Arc::clone(&self.latest.borrow());
        if loaded.revision < before.revision() {
            tracing::warn!(
                from = before.revision(),
                to = loaded.revision,
                "the store was set back; data planes are, too"
            );
        }
        let now = apply_load(Arc::clone(&before), Arc::new(loaded), &self.keyring, &self.findings).await;
        // A fleet that moves has the store read, which must not send everybody a change of nothing.
        if now.revision() != before.revision() || !before.diff(&now).is_empty() {
            self.latest.send_replace(now);
        }
        self.nudged.answer(until, None);
        (self.failing, self.lost) = (None, None);
        self.unread.send_if_modified(|unread| unread.take().is_some());
        self.cut_off.send_if_modified(std::mem::take);
        true
    }

    /// The store could not be read, once more. Nodes are let go when that has lasted for two pauses: another control plane may
    /// know of changes that do not come here any more.
    fn fails(&mut self, error: StoreError) {
        let since = self.failing.as_ref().map(|failing| failing.since);
        let since = since.or(self.lost).unwrap_or_else(Instant::now);
        if self.failing.as_ref().is_none_or(|failing| failing.told != error) {
            tracing::warn!(%error, "loading the store failed; data planes keep what they have");
        }
        self.failing = Some(Failing { since, told: error });
        self.unread.send_if_modified(|unread| unread.replace(since).is_none());
        if since.elapsed() >= cut_off_after(&*self.store) {
            self.cut_off.send_if_modified(|cut_off| !std::mem::replace(cut_off, true));
        }
    }

    fn take(&self, batch: Vec<Result<Vec<Event>, WatchError>>) -> Option<WatchError> {
        let before = Arc::clone(&self.latest.borrow());
        let mut delta = Delta { from: before.revision(), to: before.revision(), ..Delta::default() };
        let mut ended = None;
        let mut change = |event| add(&mut delta, event, &before, &self.keyring, &self.findings);
        for item in batch {
            match item {
                Ok(events) => events.into_iter().for_each(&mut change),
                Err(error) => ended = Some(error),
            }
        }
        if delta.to != delta.from {
            self.latest.send_replace(Arc::new(before.apply(&delta)));
        }
        ended
    }
}

/// One change into the delta; a later change of the same resource replaces an earlier one.
fn add(delta: &mut Delta, event: Event, before: &Snapshot, keyring: &pki::Keyring, findings: &Findings) {
    delta.to = delta.to.max(event.revision);
    match event.now {
        None => {
            removed(&event.key, event.revision, present(delta, before, &event.key));
            findings.forget(&event.key);
            delta.upserts.retain(|upsert| upsert.resource.key() != event.key);
            delta.removals.retain(|key| *key != event.key);
            delta.removals.push(event.key);
        }
        Some(stored) => {
            if let Some(upsert) = take(&stored, present(delta, before, &event.key), keyring, findings) {
                delta.upserts.retain(|upsert| upsert.resource.key() != event.key);
                delta.removals.retain(|key| *key != event.key);
                delta.upserts.push(upsert);
            }
        }
    }
}

/// What a resource is after the changes so far.
fn present<'a>(delta: &'a Delta, before: &'a Snapshot, key: &Key) -> Option<&'a Resource> {
    let changed = delta.upserts.iter().find(|upsert| upsert.resource.key() == *key);
    let unchanged = || before.get(key).filter(|_| !delta.removals.contains(key));
    changed.or_else(unchanged).map(|held| &held.resource)
}

/// Everything that is in the store, as a difference to what we have. Checking ten thousand certificates takes a moment,
/// so it is done beside the runtime.
async fn apply_load(
    before: Arc<Snapshot>,
    loaded: Arc<Loaded>,
    keyring: &Arc<pki::Keyring>,
    findings: &Arc<Findings>,
) -> Arc<Snapshot> {
    let (keyring, findings) = (Arc::clone(keyring), Arc::clone(findings));
    let fallback = Arc::clone(&before);
    let work = tokio::task::spawn_blocking(move || {
        let stored: HashSet<&Key> = loaded.items.iter().map(|item| &item.key).collect();
        let removals: Vec<Key> =
            before.held().map(|(key, _)| key).filter(|key| !stored.contains(key)).collect();
        let held = |key| before.get(key).map(|held| &held.resource);
        removals.iter().for_each(|key| removed(key, loaded.revision, held(key)));
        // What cannot be resolved has no version, and what is blocked has another one: both are looked at again.
        let same = |item: &Stored| {
            expected_version(item).is_some_and(|now| before.version(&item.key) == Some(now))
                && !findings.are_of_another(item)
        };
        let changed = loaded.items.iter().filter(|item| !same(item));
        let upserts = changed.filter_map(|item| take(item, held(&item.key), &keyring, &findings)).collect();
        findings.only(&stored);
        let delta = Delta { from: before.revision(), to: loaded.revision, upserts, removals };
        Arc::new(before.apply(&delta))
    });
    match work.await {
        Ok(snapshot) => snapshot,
        Err(error) => {
            tracing::error!(%error, "checking the stored documents failed; data planes keep what they have");
            fallback
        }
    }
}

#[cfg(test)]
mod tests;
