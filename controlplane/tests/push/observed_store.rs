//! A store that a test can delay, cut off and set back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use controlplane::testing::store::{
    Batch, CommitResult, DocumentList, EventStream, InternalEntry, InternalKey, Page, ReportEntries,
    ReportEntry, Store, StoreError, StoredDocument, WatchError,
};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use model::{Key, Kind};
use tokio::sync::watch;
use zeroize::Zeroizing;

pub(crate) struct ObservedStore {
    identity: String,
    inner: RwLock<Arc<dyn Store>>,
    /// Whether the watch delivers events.
    open: watch::Sender<bool>,
    /// A change ends every watch.
    breaks: watch::Sender<u64>,
    down: AtomicBool,
    /// This control plane's reports; `None`: the store is not shared.
    reports: Option<Reports>,
}

/// A report and the time of its write.
#[derive(Default)]
pub(crate) struct Reports(Mutex<Vec<(Instant, String)>>);

impl Reports {
    pub(crate) fn written(&self) -> Vec<(Instant, String)> {
        self.0.lock().unwrap().clone()
    }
}

impl ReportEntries for Reports {
    fn ttl(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn write(&self, text: String, _nodes: String) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.lock().unwrap().push((Instant::now(), text));
        std::future::ready(Ok(())).boxed()
    }

    fn withdraw(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn others(&self) -> BoxFuture<'_, Result<Vec<ReportEntry>, StoreError>> {
        // Pending once, as a response over a network.
        async {
            tokio::task::yield_now().await;
            Ok(Vec::new())
        }
        .boxed()
    }
}

impl ObservedStore {
    pub(crate) fn new(store: &Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self::of(store, None))
    }

    /// A shared store.
    pub(crate) fn shared(store: &Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self::of(store, Some(Reports::default())))
    }

    fn of(store: &Arc<dyn Store>, reports: Option<Reports>) -> Self {
        Self {
            identity: store.identity().to_owned(),
            inner: RwLock::new(Arc::clone(store)),
            open: watch::Sender::new(true),
            breaks: watch::Sender::new(0),
            down: AtomicBool::new(false),
            reports,
        }
    }

    pub(crate) fn reports_written(&self) -> Vec<(Instant, String)> {
        self.reports.as_ref().map(Reports::written).unwrap_or_default()
    }

    /// From now on, events are delivered or delayed.
    pub(crate) fn deliver_events(&self, whether: bool) {
        self.open.send_replace(whether);
    }

    /// From now on, loads fail or succeed.
    pub(crate) fn set_down(&self, whether: bool) {
        self.down.store(whether, Ordering::SeqCst);
    }

    /// From now on, loads and watches fail.
    pub(crate) fn cut_off(&self) {
        self.set_down(true);
        self.breaks.send_modify(|count| *count += 1);
    }

    /// Replaces the store, as a restore does.
    pub(crate) fn set_back(&self, older: &Arc<dyn Store>) {
        *self.inner.write().unwrap() = Arc::clone(older);
        self.breaks.send_modify(|count| *count += 1);
    }

    fn inner(&self) -> Arc<dyn Store> {
        Arc::clone(&self.inner.read().unwrap())
    }
}

impl Store for ObservedStore {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn resync_delay(&self) -> Duration {
        Duration::from_millis(200)
    }

    fn load(&self) -> BoxFuture<'_, Result<DocumentList, StoreError>> {
        async {
            if self.down.load(Ordering::SeqCst) {
                return Err(StoreError::Unavailable { what: "the test says so".to_owned() });
            }
            self.inner().load().await
        }
        .boxed()
    }

    fn list(&self, kind: Kind) -> BoxFuture<'_, Result<DocumentList, StoreError>> {
        async move { self.inner().list(kind).await }.boxed()
    }

    fn page(&self, kind: Kind, first: usize, size: usize) -> BoxFuture<'_, Result<Page, StoreError>> {
        async move { self.inner().page(kind, first, size).await }.boxed()
    }

    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<StoredDocument>, StoreError>> {
        async move { self.inner().get(key).await }.boxed()
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<CommitResult, StoreError>> {
        async move { self.inner().commit(batch).await }.boxed()
    }

    fn reserve_id(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        async move { self.inner().reserve_id().await }.boxed()
    }

    fn internal_entry(&self, what: InternalKey) -> BoxFuture<'_, Result<Option<InternalEntry>, StoreError>> {
        async move { self.inner().internal_entry(what).await }.boxed()
    }

    fn swap_internal_entry(
        &self,
        what: InternalKey,
        expect: u64,
        text: Zeroizing<String>,
    ) -> BoxFuture<'_, Result<u64, StoreError>> {
        async move { self.inner().swap_internal_entry(what, expect, text).await }.boxed()
    }

    fn expiries(&self) -> BoxFuture<'_, Result<BTreeMap<Key, Instant>, StoreError>> {
        async move { self.inner().expiries().await }.boxed()
    }

    fn reports(&self) -> Option<&dyn ReportEntries> {
        self.reports.as_ref().map(|reports| reports as &dyn ReportEntries)
    }

    fn watch(&self, after: u64) -> EventStream {
        let state = Some((self.inner().watch(after), self.open.subscribe(), self.breaks.subscribe()));
        stream::unfold(state, |state| async {
            let (mut events, mut open, mut breaks) = state?;
            let delivered = async {
                let event = events.next().await;
                open.wait_for(|open| *open).await.unwrap();
                event
            };
            let event = tokio::select! {
                event = delivered => event?,
                _ = breaks.changed() => {
                    let broken = WatchError::Unavailable { what: "the connection broke".to_owned() };
                    return Some((Err(broken), None));
                }
            };
            Some((event, Some((events, open, breaks))))
        })
        .boxed()
    }
}
