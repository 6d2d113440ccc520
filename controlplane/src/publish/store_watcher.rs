//! Follows the store: compiles changed documents and publishes immutable snapshots.
//!
//! Invariant: the first load, each change and the recovery after a lost watch are one function
//! (`Delta` applied to the snapshot before). `findings` compiles documents that another program may
//! have written.

use std::collections::{BTreeMap, HashSet};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use model::{Delta, Key, Snapshot, Versioned};
use telemetry::Heartbeat;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::findings::{StoredFindings, compile_and_log, log_removal};
use super::refresh::{self, RefreshHandle, RefreshRequests};
use super::{CurrentSettings, PublishError};
use crate::compile::expected_version;
use crate::inventory::Inventory;
use crate::store::{DocumentList, Event, Store, StoreError, StoredDocument, WatchError};

/// Changes applied in one batch when they arrive faster than they can be applied.
const BATCH_MAX: usize = 256;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Fewer documents are not worth another thread.
const ITEMS_PER_THREAD_MIN: usize = 256;

/// The results of a running watcher.
pub struct WatcherHandle {
    /// The current snapshot; changes with every commit.
    pub latest: watch::Receiver<Arc<Snapshot>>,
    pub findings: Arc<StoredFindings>,
    /// Reloads the store.
    pub refresh_handle: RefreshHandle,
    /// Whether the store is unreadable for so long that other control planes serve nodes better.
    pub store_stale: watch::Receiver<bool>,
    /// Since when the store is unreadable; `None`: it is readable.
    pub unreadable_since: watch::Receiver<Option<Instant>>,
    /// Ends at shutdown, or when the store is closed.
    pub task: JoinHandle<()>,
}

/// Loads the present state, then follows the store until shutdown.
///
/// # Errors
/// When the store is unreadable; unless `accept_unreadable_keys`, when the keyring does not decrypt
/// most of its keys.
pub async fn start(
    store: Arc<dyn Store>,
    settings: CurrentSettings,
    keyring_setting: &'static str,
    accept_unreadable_keys: bool,
    heartbeat: Arc<Heartbeat>,
    shutdown: watch::Receiver<bool>,
) -> Result<WatcherHandle, PublishError> {
    let keyring = Arc::clone(&settings.borrow().keyring);
    let loaded = Arc::new(store.load().await?);
    let inventory = check_keyring(&loaded, &keyring, keyring_setting, accept_unreadable_keys).await?;
    tracing::info!(identity = store.identity(), "the store holds {inventory}");
    let findings = Arc::default();
    let first = apply_load(Arc::new(Snapshot::empty()), loaded, &keyring, &findings).await;
    let (latest, receiver) = watch::channel(first);
    let (refresh_handle, refresh_requests) = refresh::channel();
    let (store_stale, store_stale_receiver) = watch::channel(false);
    let (unreadable_since, unreadable_receiver) = watch::channel(None);
    let watcher = StoreWatcher {
        store,
        settings,
        findings: Arc::clone(&findings),
        latest,
        refresh_requests,
        watch_lost: None,
        load_failure: None,
        store_stale,
        unreadable_since,
    };
    let task = tokio::spawn(watcher.run(heartbeat, shutdown));
    Ok(WatcherHandle {
        latest: receiver,
        findings,
        refresh_handle,
        store_stale: store_stale_receiver,
        unreadable_since: unreadable_receiver,
        task,
    })
}

/// Counts the documents, and checks that the keyring decrypts the stored keys.
///
/// # Errors
/// Unless `accept_unreadable_keys`, when it does not decrypt most of them.
pub(super) async fn check_keyring(
    loaded: &Arc<DocumentList>,
    keyring: &Arc<pki::Keyring>,
    keyring_setting: &'static str,
    accept_unreadable_keys: bool,
) -> Result<Inventory, PublishError> {
    let (counted, counting_keyring) = (Arc::clone(loaded), Arc::clone(keyring));
    let counting = tokio::task::spawn_blocking(move || Inventory::count(&counted.items, &counting_keyring));
    let inventory = counting.await.map_err(|error| StoreError::Unavailable { what: error.to_string() })?;
    match inventory.check_keyring(keyring_setting) {
        Err(error) if accept_unreadable_keys => tracing::warn!("--accept-unreadable-keys: {error}"),
        result => result?,
    }
    for warning in inventory.warnings(keyring_setting) {
        tracing::warn!("{warning}");
    }
    Ok(inventory)
}

/// How long the store may be unreadable before nodes are disconnected.
pub(super) fn stale_after(store: &dyn Store) -> Duration {
    store.resync_delay() * 2
}

struct StoreWatcher {
    store: Arc<dyn Store>,
    settings: CurrentSettings,
    findings: Arc<StoredFindings>,
    latest: watch::Sender<Arc<Snapshot>>,
    refresh_requests: RefreshRequests,
    /// When the watch failed; `None` after a load.
    watch_lost: Option<Instant>,
    /// Set while the store is unreadable.
    load_failure: Option<LoadFailure>,
    store_stale: watch::Sender<bool>,
    unreadable_since: watch::Sender<Option<Instant>>,
}

/// An unreadable store.
struct LoadFailure {
    since: Instant,
    /// The last logged error.
    logged: StoreError,
}

enum WatchEnd {
    Closed,
    /// A session needs a newer state.
    RefreshRequested,
    Failed(WatchError),
}

impl StoreWatcher {
    async fn run(mut self, heartbeat: Arc<Heartbeat>, mut shutdown: watch::Receiver<bool>) {
        tokio::select! {
            () = self.watch_loop() => {}
            never = heartbeat.beat_forever() => match never {},
            _ = shutdown.wait_for(|stop| *stop) => {}
        }
        heartbeat.set_idle();
    }

    /// Returns when the store is closed.
    async fn watch_loop(&mut self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let after = self.latest.borrow().revision();
            // A watch is not continued after a load: it would deliver changes that are older than
            // the loaded state.
            match self.watch(after, &mut backoff).await {
                WatchEnd::Closed => return,
                WatchEnd::RefreshRequested => {
                    if !self.reload().await {
                        self.back_off(BACKOFF_MIN).await;
                    }
                    continue;
                }
                WatchEnd::Failed(WatchError::Compacted { .. }) => {
                    tracing::info!(
                        "the store no longer keeps the changes since revision {after}; loading everything"
                    );
                }
                WatchEnd::Failed(error) => {
                    tracing::warn!(%error, "watching the store failed; data planes keep what they have");
                    self.watch_lost.get_or_insert_with(Instant::now);
                    self.back_off(backoff).await;
                    backoff = (backoff * 2).min(self.store.resync_delay().max(BACKOFF_MIN));
                }
            }
            while !self.reload().await {
                self.back_off(backoff).await;
                backoff = (backoff * 2).min(self.store.resync_delay().max(BACKOFF_MIN));
            }
        }
    }

    async fn watch(&mut self, after: u64, backoff: &mut Duration) -> WatchEnd {
        let mut batches = self.store.watch(after).ready_chunks(BATCH_MAX);
        loop {
            let batch = tokio::select! {
                batch = batches.next() => batch,
                () = self.refresh_requests.requested() => return WatchEnd::RefreshRequested,
            };
            let Some(batch) = batch else { return WatchEnd::Closed };
            *backoff = BACKOFF_MIN;
            if let Some(error) = self.apply_batch(batch) {
                return WatchEnd::Failed(error);
            }
        }
    }

    /// A refresh request ends a long backoff, and so does a store that is reachable again; but not
    /// a short one: each connecting node would otherwise load a store that is down.
    async fn back_off(&mut self, backoff: Duration) {
        tokio::time::sleep(BACKOFF_MIN).await;
        tokio::select! {
            () = tokio::time::sleep(backoff.saturating_sub(BACKOFF_MIN)) => {}
            () = self.refresh_requests.requested() => {}
            () = self.store.wait_available() => {}
        }
    }

    /// Loads the store; returns whether it was readable. The state may be older than the present
    /// one: a store that was set back is followed.
    async fn reload(&mut self) -> bool {
        let request = self.refresh_requests.begin();
        let loaded = match self.store.load().await {
            Ok(loaded) => loaded,
            Err(error) => {
                self.refresh_requests.complete(request, Some(error.to_string()));
                self.record_load_failure(error);
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
        let keyring = self.keyring();
        let after = apply_load(Arc::clone(&before), Arc::new(loaded), &keyring, &self.findings).await;
        // A fleet that reconnects triggers loads, which must not send empty changes.
        if after.revision() != before.revision() || !before.diff(&after).is_empty() {
            self.latest.send_replace(after);
        }
        self.refresh_requests.complete(request, None);
        (self.load_failure, self.watch_lost) = (None, None);
        self.unreadable_since.send_if_modified(|since| since.take().is_some());
        self.store_stale.send_if_modified(std::mem::take);
        true
    }

    /// Records that the store is unreadable. After two resync delays the nodes are disconnected:
    /// another control plane may know changes that do not arrive here.
    fn record_load_failure(&mut self, error: StoreError) {
        let since = self.load_failure.as_ref().map(|failure| failure.since);
        let since = since.or(self.watch_lost).unwrap_or_else(Instant::now);
        if self.load_failure.as_ref().is_none_or(|failure| failure.logged != error) {
            tracing::warn!(%error, "loading the store failed; data planes keep what they have");
        }
        self.load_failure = Some(LoadFailure { since, logged: error });
        self.unreadable_since.send_if_modified(|former| former.replace(since).is_none());
        if since.elapsed() >= stale_after(&*self.store) {
            self.store_stale.send_if_modified(|stale| !std::mem::replace(stale, true));
        }
    }

    fn keyring(&self) -> Arc<pki::Keyring> {
        Arc::clone(&self.settings.borrow().keyring)
    }

    fn apply_batch(&self, batch: Vec<Result<Vec<Event>, WatchError>>) -> Option<WatchError> {
        let before = Arc::clone(&self.latest.borrow());
        let mut changes = PendingChanges::since(&before);
        let keyring = self.keyring();
        let mut failure = None;
        for item in batch {
            match item {
                Ok(events) => {
                    events.into_iter().for_each(|event| changes.add(event, &keyring, &self.findings));
                }
                Err(error) => failure = Some(error),
            }
        }
        let delta = changes.into_delta();
        if delta.to != delta.from {
            self.latest.send_replace(Arc::new(before.apply(&delta)));
        }
        failure
    }
}

/// Compiled changes since a snapshot. A later change of a resource replaces an earlier one.
struct PendingChanges<'a> {
    before: &'a Snapshot,
    to: u64,
    /// `None`: removed.
    resources: BTreeMap<Key, Option<Versioned>>,
}

impl<'a> PendingChanges<'a> {
    fn since(before: &'a Snapshot) -> Self {
        Self { before, to: before.revision(), resources: BTreeMap::new() }
    }

    fn add(&mut self, event: Event, keyring: &pki::Keyring, findings: &StoredFindings) {
        let Event { revision, key, document } = event;
        self.to = self.to.max(revision);
        let current = match self.resources.get(&key) {
            Some(changed) => changed.as_ref(),
            None => self.before.get(&key),
        };
        let current = current.map(|versioned| &versioned.resource);
        match document {
            None => {
                log_removal(&key, revision, current);
                findings.remove(&key);
                self.resources.insert(key, None);
            }
            Some(document) => {
                if let Some(versioned) = compile_and_log(&document, current, keyring, findings) {
                    self.resources.insert(key, Some(versioned));
                }
            }
        }
    }

    fn into_delta(self) -> Delta {
        let mut delta = Delta { from: self.before.revision(), to: self.to, ..Delta::default() };
        for (key, changed) in self.resources {
            match changed {
                Some(versioned) => delta.upserts.push(versioned),
                None => delta.removals.push(key),
            }
        }
        delta
    }
}

/// Applies the store's whole content as a difference to the present snapshot. Slow for ten thousand
/// certificates, so it runs off the runtime, and on all cores.
async fn apply_load(
    before: Arc<Snapshot>,
    loaded: Arc<DocumentList>,
    keyring: &Arc<pki::Keyring>,
    findings: &Arc<StoredFindings>,
) -> Arc<Snapshot> {
    let (keyring, findings) = (Arc::clone(keyring), Arc::clone(findings));
    let fallback = Arc::clone(&before);
    let work = tokio::task::spawn_blocking(move || {
        let stored: HashSet<&Key> = loaded.items.iter().map(|item| &item.key).collect();
        let removals: Vec<Key> =
            before.versions().map(|(key, _)| key).filter(|key| !stored.contains(key)).collect();
        let current = |key: &Key| before.get(key).map(|versioned| &versioned.resource);
        removals.iter().for_each(|key| log_removal(key, loaded.revision, current(key)));
        // An unresolved document has no version and a blocked one another version: both are
        // compiled again.
        let is_unchanged = |item: &StoredDocument| {
            before.version(&item.key).is_some_and(|version| expected_version(item) == Some(version))
                && !findings.are_outdated(item)
        };
        let compile_changed = |item: &StoredDocument| {
            let is_changed = !is_unchanged(item);
            is_changed.then(|| compile_and_log(item, current(&item.key), &keyring, &findings)).flatten()
        };
        let upserts = filter_map_on_all_cores(&loaded.items, compile_changed);
        findings.retain(&stored);
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

/// Maps items on all cores, in their order: a start compiles everything.
fn filter_map_on_all_cores<T: Sync, R: Send>(items: &[T], map: impl Fn(&T) -> Option<R> + Sync) -> Vec<R> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let part = items.len().div_ceil(cores).max(ITEMS_PER_THREAD_MIN);
    let map = &map;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items
            .chunks(part)
            .map(|part| scope.spawn(move || part.iter().filter_map(map).collect::<Vec<R>>()))
            .collect();
        let results =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        results.flatten().collect()
    })
}

#[cfg(test)]
mod tests;
