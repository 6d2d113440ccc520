//! The revisions that the whole fleet serves, where several control planes share a store.
//!
//! Each control plane keeps one entry in the store with those of its nodes that lag most
//! (`store::ReportEntries`), written when it changes, at most five times a second. A query for the
//! fleet reads the others' entries. Invariant: "all have acknowledged" requires the entry of every
//! control plane; one that is unreadable counts as behind.

mod entry;
mod lag;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use entry::{ControlPlaneEntry, Entries, FleetReport, NodeNames};
use lag::BehindView;
use lag::behind;
use process::handover::Generations;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::sync::{Mutex, watch};

use super::fleet::{Fleet, FleetView};
use crate::store::{ReportEntries, Store};

const WRITE_INTERVAL: Duration = Duration::from_millis(200);
const RETRY: Duration = Duration::from_secs(1);
/// Nodes in an entry: those with the oldest revisions.
const NODES_MAX: usize = 50;
/// Names in an entry; an etcd value has at most 1.5 MB.
const NAMES_MAX: usize = 5000;
/// Time-out of the first read, whatever the caller's.
const FIRST_READ: Duration = Duration::from_secs(1);
/// Between two reads of the others' entries; concurrent waiters share them.
const READ_INTERVAL: Duration = Duration::from_millis(100);

/// The identity of this control plane.
#[derive(Debug, Clone)]
pub(super) struct ControlPlaneIdentity {
    pub host: String,
    /// Where it listens for data planes.
    pub push: String,
    pub version: &'static str,
    /// What only one process at a time can have, unless it hands over: the push address within a
    /// running kernel's network namespace. An entry with ours belongs to a predecessor or to a dead
    /// process.
    pub place: Option<String>,
    pub generations: Generations,
}

impl ControlPlaneIdentity {
    pub(super) fn of(push: SocketAddr, version: &'static str, generations: Generations) -> Self {
        let place = || {
            let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
            let network = std::fs::read_link("/proc/self/ns/net").ok()?;
            Some(format!("{} {} {push}", boot.trim(), network.display()))
        };
        Self { host: super::machine_name(), push: push.to_string(), version, place: place(), generations }
    }
}

/// Our report and the others'. Without [`ReportEntries`] the fleet is that of this control plane.
pub struct Reports {
    fleet: Arc<Fleet>,
    store: Arc<dyn Store>,
    identity: ControlPlaneIdentity,
    /// True once the process stops.
    stopping: watch::Receiver<bool>,
    /// True while the store goes to a successor: waits end.
    ending_waits: watch::Sender<bool>,
    read: Mutex<Option<(Instant, Entries)>>,
}

/// The response of `GET /apisix/admin/dataplanes`.
#[derive(Debug, Clone, Serialize)]
pub struct FleetWideView {
    #[serde(flatten)]
    pub own: FleetView,
    /// The other control planes over the same store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_planes: Option<Vec<ControlPlaneView>>,
    /// Why the other control planes are unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_planes_problem: Option<String>,
    /// Nodes that have not acknowledged the requested revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind: Option<Vec<BehindView>>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ControlPlaneView {
    /// One process's life.
    pub process: String,
    /// Its last report.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    report: Option<ReportView>,
    /// Why the report is unreadable.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
struct ReportView {
    host: String,
    push: String,
    version: String,
    revision: u64,
    nodes: usize,
    /// The oldest revision that one of its nodes serves; `null`: a node has acknowledged nothing
    /// yet, or there is no node.
    acknowledged: Option<u64>,
    written_at: u64,
}

impl Reports {
    pub(super) fn new(
        fleet: Arc<Fleet>,
        store: Arc<dyn Store>,
        identity: ControlPlaneIdentity,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self {
            fleet,
            store,
            identity,
            stopping,
            ending_waits: watch::Sender::new(false),
            read: Mutex::default(),
        }
    }

    /// Ends the present and later waits at once, or allows them again.
    pub(crate) fn end_waits(&self, end: bool) {
        self.ending_waits.send_replace(end);
    }

    /// What this control plane serves.
    pub fn own(&self) -> FleetView {
        self.fleet.view()
    }

    /// Registers the store's metrics.
    pub fn register(&self, registry: &mut Registry) {
        self.store.register_metrics(registry);
    }

    /// Writes our report whenever it changes, until shutdown.
    pub(super) async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        let Some(entries) = self.store.reports() else { return };
        tokio::select! {
            () = self.write_loop(entries) => {}
            _ = shutdown.wait_for(|stop| *stop) => {}
        }
    }

    /// Removes our report, so that no caller waits for our nodes.
    pub(super) async fn withdraw(&self) {
        if let Some(entries) = self.store.reports()
            && let Ok(Err(error)) = tokio::time::timeout(RETRY, entries.withdraw()).await
        {
            tracing::warn!(%error, "the report of this control plane stays in the store until its lease ends");
        }
    }

    /// Never returns.
    async fn write_loop(&self, entries: &dyn ReportEntries) {
        let renewal = entries.ttl() / 3;
        let mut changes = self.fleet.changes();
        let mut written: Option<(FleetReport, NodeNames, Instant)> = None;
        let mut failing = false;
        loop {
            changes.borrow_and_update();
            let (report, names) = (self.report(), self.node_names());
            let is_due = |(last_report, last_names, at): &(FleetReport, NodeNames, Instant)| {
                let same = (last_report.nodes, &last_report.oldest, last_names)
                    == (report.nodes, &report.oldest, &names);
                !same || at.elapsed() >= renewal
            };
            if written.as_ref().is_none_or(is_due) {
                let text = serde_json::to_string(&report).unwrap_or_default();
                let names_text = serde_json::to_string(&names).unwrap_or_default();
                match entries.write(text, names_text).await {
                    Ok(()) => (written, failing) = (Some((report, names, Instant::now())), false),
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(%error, "the report of the data planes here cannot be written: the other control planes count them as behind");
                        }
                        written = None;
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
                tokio::time::sleep(WRITE_INTERVAL).await;
            }
            // An error means that the fleet is dropped and the process ends.
            drop(tokio::time::timeout(renewal, changes.changed()).await);
        }
    }

    fn report(&self) -> FleetReport {
        let (oldest, nodes) = self.fleet.connected(NODES_MAX);
        let ControlPlaneIdentity { host, push, version, place, .. } = self.identity.clone();
        let written_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let revision = self.fleet.revision();
        FleetReport { host, push, version: version.to_owned(), revision, nodes, oldest, written_at, place }
    }

    fn node_names(&self) -> NodeNames {
        let (names, more) = self.fleet.connected_names(NAMES_MAX);
        let ControlPlaneIdentity { host, push, place, .. } = self.identity.clone();
        NodeNames { host, push, names, more, place }
    }

    pub async fn view(&self) -> FleetWideView {
        let entries = match self.store.reports() {
            Some(entries) => Some(self.others(entries).await),
            None => None,
        };
        self.to_view(entries.as_ref(), None)
    }

    /// Waits until every connected node of every control plane, and at least one, has acknowledged
    /// `revision`.
    ///
    /// # Errors
    /// The view with `behind`, when `timeout` has passed or this control plane stops.
    pub async fn wait_acknowledged(
        &self,
        revision: u64,
        timeout: Duration,
    ) -> Result<FleetWideView, FleetWideView> {
        let (mut stopping, mut ending) = (self.stopping.clone(), self.ending_waits.subscribe());
        tokio::select! {
            biased;
            reached = self.wait_reached(revision, timeout) => return reached,
            // An error means that the process ends, too.
            _ = stopping.wait_for(|stop| *stop) => {}
            _ = ending.wait_for(|end| *end) => {}
        }
        self.wait_reached(revision, Duration::ZERO).await
    }

    async fn wait_reached(&self, revision: u64, timeout: Duration) -> Result<FleetWideView, FleetWideView> {
        let Some(entries) = self.store.reports() else {
            let waited = self.fleet.wait_acknowledged(revision, timeout).await;
            return waited.map(FleetWideView::local).map_err(|own| {
                let (connected, nodes) = self.fleet.connected(usize::MAX);
                let behind = behind(revision, &connected, nodes, &Ok(Arc::default()));
                FleetWideView { behind: Some(behind), ..FleetWideView::local(own) }
            });
        };
        let deadline = tokio::time::Instant::now() + timeout;
        let mut read_deadline = deadline.max(tokio::time::Instant::now() + FIRST_READ);
        let mut changes = self.fleet.changes();
        loop {
            changes.borrow_and_update();
            // Bounded as well: a store that hangs does not extend the deadline.
            let timed_out = || Err("the store did not respond in time".to_owned());
            let others = tokio::time::timeout_at(read_deadline, self.others(entries)).await;
            read_deadline = deadline;
            let others = others.unwrap_or_else(|_| timed_out());
            let (connected, nodes) = self.fleet.connected(usize::MAX);
            let behind = behind(revision, &connected, nodes, &others);
            if behind.is_empty() {
                return Ok(self.to_view(Some(&others), Some(behind)));
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(self.to_view(Some(&others), Some(behind)));
            }
            let next_read =
                tokio::time::sleep_until(deadline.min(tokio::time::Instant::now() + READ_INTERVAL));
            tokio::select! {
                () = next_read => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// The others' entries, at most [`READ_INTERVAL`] old.
    async fn others(&self, entries: &dyn ReportEntries) -> Entries {
        let mut read = self.read.lock().await;
        if let Some((at, entries)) = &*read
            && at.elapsed() < READ_INTERVAL
        {
            return entries.clone();
        }
        let stored = entries.others().await.map_err(|error| error.to_string());
        // A predecessor serves its nodes until they have moved.
        let ours = self.identity.place.as_ref();
        let place = ours.filter(|_| self.identity.generations.draining().is_empty());
        let is_alive = |entry: &ControlPlaneEntry| place.is_none() || entry.place() != place;
        let others = stored.map(|stored| {
            let entries = stored.into_iter().map(ControlPlaneEntry::from);
            Arc::new(entries.filter(is_alive).collect())
        });
        *read = Some((Instant::now(), others.clone()));
        others
    }

    fn to_view(&self, others: Option<&Entries>, behind: Option<Vec<BehindView>>) -> FleetWideView {
        let view = |entry: &ControlPlaneEntry| {
            let report = entry.report.clone()?;
            let problem = report.as_ref().err().cloned();
            Some(ControlPlaneView {
                process: entry.process.clone(),
                report: report.ok().map(ReportView::from),
                problem,
            })
        };
        let (control_planes, control_planes_problem) = match others {
            None => (None, None),
            Some(Ok(others)) => (Some(others.iter().filter_map(view).collect()), None),
            Some(Err(problem)) => (None, Some(problem.clone())),
        };
        FleetWideView { own: self.fleet.view(), control_planes, control_planes_problem, behind }
    }
}

impl FleetWideView {
    fn local(own: FleetView) -> Self {
        Self { own, control_planes: None, control_planes_problem: None, behind: None }
    }
}

impl From<FleetReport> for ReportView {
    fn from(report: FleetReport) -> Self {
        let acknowledged = report.oldest.first().and_then(|node| node.acknowledged);
        let FleetReport { host, push, version, revision, nodes, written_at, .. } = report;
        Self { host, push, version, revision, nodes, acknowledged, written_at }
    }
}

#[cfg(test)]
mod tests;
