//! The revisions that the whole fleet serves, where several control planes share a store.
//!
//! Each control plane keeps one entry in the store with those of its nodes that lag most
//! (`store::ReportEntries`), written when it changes, at most five times a second. A query for the
//! fleet reads the others' entries. Invariant: "all have acknowledged" requires the entry of every
//! control plane; one that is unreadable counts as behind.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use super::fleet::{ConnectedNode, Fleet, FleetView};
use crate::store::{ReportEntries, ReportEntry, Store};

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
/// Entries of `behind` in a response.
const BEHIND_MAX: usize = 50;

/// A control plane's stored report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FleetReport {
    host: String,
    /// The push listener's address.
    push: String,
    version: String,
    /// The newest revision that it knows.
    revision: u64,
    nodes: usize,
    /// At most [`NODES_MAX`] nodes, the oldest revisions first.
    oldest: Vec<ConnectedNode>,
    written_at: u64,
    /// As [`ControlPlaneIdentity::place`].
    #[serde(default)]
    place: Option<String>,
}

/// The names of a control plane's nodes, kept longer than its report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct NodeNames {
    host: String,
    push: String,
    names: BTreeSet<String>,
    /// There are more than [`NAMES_MAX`].
    more: bool,
    #[serde(default)]
    place: Option<String>,
}

/// Another control plane's entry.
#[derive(Debug, Clone)]
struct ControlPlaneEntry {
    /// The entry's name: one process's life.
    process: String,
    /// `None`: its lease expired without a withdrawal.
    report: Option<Result<FleetReport, String>>,
    nodes: Option<NodeNames>,
}

impl ControlPlaneEntry {
    fn place(&self) -> Option<&String> {
        let reported = self.report.as_ref().and_then(|report| report.as_ref().ok()?.place.as_ref());
        reported.or_else(|| self.nodes.as_ref()?.place.as_ref())
    }
}

type Entries = Result<Arc<Vec<ControlPlaneEntry>>, String>;

/// The identity of this control plane.
#[derive(Debug, Clone)]
pub(super) struct ControlPlaneIdentity {
    pub host: String,
    /// Where it listens for data planes.
    pub push: String,
    pub version: &'static str,
    /// What only one process at a time can have: the push address within a running kernel's network
    /// namespace. An entry with ours belongs to a dead process.
    pub place: Option<String>,
}

impl ControlPlaneIdentity {
    pub(super) fn of(push: SocketAddr, version: &'static str) -> Self {
        let place = || {
            let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
            let network = std::fs::read_link("/proc/self/ns/net").ok()?;
            Some(format!("{} {} {push}", boot.trim(), network.display()))
        };
        Self { host: super::machine_name(), push: push.to_string(), version, place: place() }
    }
}

/// Our report and the others'. Without [`ReportEntries`] the fleet is that of this control plane.
pub struct Reports {
    fleet: Arc<Fleet>,
    store: Arc<dyn Store>,
    us: ControlPlaneIdentity,
    /// True once the process stops.
    stopping: watch::Receiver<bool>,
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
    said: Option<ReportView>,
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

/// A node or control plane that has not acknowledged a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BehindView {
    /// The other control plane; left out: this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    control_plane: Option<String>,
    /// The node; left out when unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    /// The acknowledged revision, if any counts.
    acknowledged: Option<u64>,
    problem: String,
}

impl Reports {
    pub(super) fn new(
        fleet: Arc<Fleet>,
        store: Arc<dyn Store>,
        us: ControlPlaneIdentity,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self { fleet, store, us, stopping, read: Mutex::default() }
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
            let (report, nodes) = (self.report(), self.nodes());
            let is_due = |(before, named, at): &(FleetReport, NodeNames, Instant)| {
                let same = (before.nodes, &before.oldest, named) == (report.nodes, &report.oldest, &nodes);
                !same || at.elapsed() >= renewal
            };
            if written.as_ref().is_none_or(is_due) {
                let text = serde_json::to_string(&report).unwrap_or_default();
                let names = serde_json::to_string(&nodes).unwrap_or_default();
                match entries.write(text, names).await {
                    Ok(()) => (written, failing) = (Some((report, nodes, Instant::now())), false),
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(%error, "the other control planes cannot be told what the data planes here serve");
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
        let ControlPlaneIdentity { host, push, version, place } = self.us.clone();
        let written_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let revision = self.fleet.revision();
        FleetReport { host, push, version: version.to_owned(), revision, nodes, oldest, written_at, place }
    }

    fn nodes(&self) -> NodeNames {
        let (names, more) = self.fleet.connected_names(NAMES_MAX);
        let ControlPlaneIdentity { host, push, place, .. } = self.us.clone();
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
        let mut stopping = self.stopping.clone();
        tokio::select! {
            biased;
            reached = self.wait_reached(revision, timeout) => return reached,
            // An error means that the process ends, too.
            _ = stopping.wait_for(|stop| *stop) => {}
        }
        self.wait_reached(revision, Duration::ZERO).await
    }

    async fn wait_reached(&self, revision: u64, timeout: Duration) -> Result<FleetWideView, FleetWideView> {
        let Some(entries) = self.store.reports() else {
            let waited = self.fleet.wait_acknowledged(revision, timeout).await;
            return waited.map(FleetWideView::local).map_err(FleetWideView::local);
        };
        let deadline = tokio::time::Instant::now() + timeout;
        let mut reading = deadline.max(tokio::time::Instant::now() + FIRST_READ);
        let mut changes = self.fleet.changes();
        loop {
            changes.borrow_and_update();
            // Bounded as well: a store that hangs does not extend the deadline.
            let late = || Err("the store did not answer in time".to_owned());
            let others = tokio::time::timeout_at(reading, self.others(entries)).await;
            reading = deadline;
            let others = others.unwrap_or_else(|_| late());
            let (connected, nodes) = self.fleet.connected(usize::MAX);
            let behind = behind(revision, &connected, nodes, &others);
            if behind.is_empty() {
                return Ok(self.to_view(Some(&others), Some(behind)));
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(self.to_view(Some(&others), Some(behind)));
            }
            let again = tokio::time::sleep_until(deadline.min(tokio::time::Instant::now() + READ_INTERVAL));
            tokio::select! {
                () = again => {}
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
        let understood = |entry: ReportEntry| {
            let report = |text: String| {
                serde_json::from_str(&text).map_err(|_| "its report cannot be read".to_owned())
            };
            // An unreadable entry has no names and counts as more nodes.
            let nodes = |text: String| {
                serde_json::from_str(&text)
                    .unwrap_or_else(|_| NodeNames { more: true, ..NodeNames::default() })
            };
            ControlPlaneEntry {
                process: entry.process,
                report: entry.text.map(report),
                nodes: entry.nodes.map(nodes),
            }
        };
        let found = entries.others().await.map_err(|error| error.to_string());
        let place = self.us.place.as_ref();
        let is_alive = |entry: &ControlPlaneEntry| place.is_none() || entry.place() != place;
        let found = found.map(|found| Arc::new(found.into_iter().map(understood).filter(is_alive).collect()));
        *read = Some((Instant::now(), found.clone()));
        found
    }

    fn to_view(&self, others: Option<&Entries>, behind: Option<Vec<BehindView>>) -> FleetWideView {
        let view = |entry: &ControlPlaneEntry| {
            let report = entry.report.clone()?;
            let problem = report.as_ref().err().cloned();
            Some(ControlPlaneView {
                process: entry.process.clone(),
                said: report.ok().map(ReportView::from),
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

impl FleetReport {
    fn name(&self) -> String {
        format!("{} ({})", self.host, self.push)
    }
}

/// Nodes and control planes that have not acknowledged `revision`; `own` are all nodes connected
/// here.
fn behind(revision: u64, own: &[ConnectedNode], nodes: usize, others: &Entries) -> Vec<BehindView> {
    let reached = |node: &ConnectedNode| node.acknowledged.is_some_and(|reached| reached >= revision);
    let mut behind: Vec<BehindView> =
        own.iter().filter(|node| !reached(node)).map(|node| BehindView::node(None, node)).collect();
    let mut nodes = nodes;
    match others {
        Err(problem) => behind.push(BehindView::unknown(
            None,
            format!("what the other control planes serve is not known: {problem}"),
        )),
        Ok(others) => {
            for entry in others.iter() {
                let (name, report) = match &entry.report {
                    None => {
                        behind.extend(behind_silent(entry, own, others));
                        continue;
                    }
                    Some(Ok(report)) => (report.name(), report),
                    Some(Err(problem)) => {
                        let name = entry.process.clone();
                        behind.push(BehindView::unknown(Some(name), problem.clone()));
                        continue;
                    }
                };
                nodes += report.nodes;
                // A dead control plane lists nodes that have reconnected elsewhere.
                let is_elsewhere = |node: &ConnectedNode| {
                    let same = |other: &ConnectedNode| {
                        (&other.name, &other.instance) == (&node.name, &node.instance) && reached(other)
                    };
                    own.iter().any(same) || live_reports(others).any(|report| report.oldest.iter().any(same))
                };
                let late = report.oldest.iter().filter(|node| !reached(node) && !is_elsewhere(node));
                behind.extend(late.map(|node| BehindView::node(Some(name.clone()), node)));
                let unnamed = report.nodes.saturating_sub(report.oldest.len());
                if unnamed > 0 && report.oldest.last().is_none_or(|last| !reached(last)) {
                    let problem = format!("more nodes may be behind: {unnamed} are not in its report");
                    behind.push(BehindView::unknown(Some(name), problem));
                }
            }
        }
    }
    if nodes == 0 {
        behind.push(BehindView::unknown(None, "no data plane is connected".to_owned()));
    }
    behind.truncate(BEHIND_MAX);
    behind
}

fn live_reports(others: &[ControlPlaneEntry]) -> impl Iterator<Item = &FleetReport> {
    others.iter().filter_map(|entry| entry.report.as_ref()?.as_ref().ok())
}

/// The nodes of a silent control plane, which may serve them still, cut off from the store. A node
/// that is connected to another control plane counts there.
fn behind_silent(
    entry: &ControlPlaneEntry,
    own: &[ConnectedNode],
    others: &[ControlPlaneEntry],
) -> Vec<BehindView> {
    let Some(nodes) = &entry.nodes else { return Vec::new() };
    let control_plane = format!("{} ({})", nodes.host, nodes.push);
    let is_named = |entry: &ControlPlaneEntry, name: &String| {
        let named = entry.nodes.as_ref().is_some_and(|nodes| nodes.names.contains(name));
        entry.report.is_some() && named
    };
    let is_elsewhere = |name: &String| {
        own.iter().any(|node| node.name == *name)
            || others.iter().any(|entry| is_named(entry, name))
            || live_reports(others).any(|report| report.oldest.iter().any(|node| node.name == *name))
    };
    let lost = nodes.names.iter().filter(|name| !is_elsewhere(name)).take(BEHIND_MAX);
    let problem = "its control plane no longer reports: it may serve on, cut off from the store";
    let view = |name: &String| BehindView {
        node: Some(name.clone()),
        ..BehindView::unknown(Some(control_plane.clone()), problem.to_owned())
    };
    let mut behind: Vec<BehindView> = lost.map(view).collect();
    if nodes.more {
        let problem = "it no longer reports, and more nodes than it names may be there".to_owned();
        behind.push(BehindView::unknown(Some(control_plane), problem));
    }
    behind
}

impl BehindView {
    fn node(control_plane: Option<String>, node: &ConnectedNode) -> Self {
        Self {
            control_plane,
            node: Some(node.name.clone()),
            instance: Some(node.instance.clone()),
            acknowledged: node.acknowledged,
            problem: "it has not acknowledged the revision".to_owned(),
        }
    }

    fn unknown(control_plane: Option<String>, problem: String) -> Self {
        Self { control_plane, node: None, instance: None, acknowledged: None, problem }
    }
}

#[cfg(test)]
mod tests;
