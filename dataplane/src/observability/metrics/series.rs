//! The metrics of single routes and sites.
//!
//! A series has one part for each worker, which that worker alone writes. The table is locked where
//! a worker meets a route or site for the first time, where a scrape reads it, and where series of
//! removed routes and sites go. Invariants: at most `series_max` routes, and as many sites, have a
//! series of their own; further ones count under [`OTHER`]. Labels are ids of resources, status
//! codes, reasons and addresses of nodes: nothing that a client sends becomes one.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use conf::MetricsSettings;
use http::StatusCode;
use model::{Id, Snapshot};

use super::counter::{CodeCounters, Counter};
use super::histogram::{Histogram, HistogramTotals};
use crate::reason::Reason;

/// The label value of the routes, sites or nodes that have no series of their own. No id can be it.
pub const OTHER: &str = "(other)";
/// Nodes of a route with counters of their own.
const NODES_MAX: usize = 32;

/// What is counted of a request that has ended.
#[derive(Debug, Clone, Copy)]
pub struct RequestTotals {
    /// The status that the client got; 499: it went away before.
    pub status: StatusCode,
    /// Why it was denied or failed.
    pub reason: Option<Reason>,
    /// From its head to the end of the response.
    pub duration: Duration,
    /// The time that nodes took.
    pub upstream: Option<Duration>,
    /// Bytes of head and body.
    pub received: u64,
    /// Bytes of head and body.
    pub sent: u64,
    /// The node of the last attempt.
    pub node: Option<SocketAddr>,
}

/// One worker's part of a route's series.
#[derive(Debug, Default)]
pub struct RouteCounters {
    /// Of requests without a node.
    codes: CodeCounters,
    nodes: Mutex<Vec<LabelledNode>>,
    request_duration: Histogram,
    upstream_duration: Histogram,
    /// The part of the request's duration that is not the upstream's.
    gateway_duration: Histogram,
    received_bytes: Counter,
    sent_bytes: Counter,
    /// By [`Reason`].
    errors: OnceLock<Box<[Counter]>>,
}

/// One worker's counters of a node of a route.
#[derive(Debug, Default)]
struct NodeCounters {
    codes: CodeCounters,
    failed_attempts: Counter,
}

/// A node, and its counters; `None`: all further nodes.
type LabelledNode = (Option<SocketAddr>, Arc<NodeCounters>);

/// A worker's handle on its part of a route's series.
#[derive(Debug)]
pub struct RouteRecorder {
    counters: Arc<RouteCounters>,
    /// Those of `counters`, for reading without its lock.
    nodes: RefCell<Vec<LabelledNode>>,
}

impl RouteRecorder {
    fn new(counters: Arc<RouteCounters>) -> Self {
        let nodes = lock(&counters.nodes).clone();
        Self { counters, nodes: RefCell::new(nodes) }
    }

    /// Counts a request of this route.
    pub fn record(&self, request: &RequestTotals) {
        let counters = &*self.counters;
        match request.node {
            None => counters.codes.inc(request.status),
            Some(node) => self.with_node(node, |node| node.codes.inc(request.status)),
        }
        counters.request_duration.observe(request.duration);
        if let Some(upstream) = request.upstream {
            counters.upstream_duration.observe(upstream);
        }
        counters
            .gateway_duration
            .observe(request.duration.saturating_sub(request.upstream.unwrap_or_default()));
        counters.received_bytes.inc_by(request.received);
        counters.sent_bytes.inc_by(request.sent);
        if let Some(reason) = request.reason {
            let errors =
                counters.errors.get_or_init(|| Reason::ALL.iter().map(|_| Counter::default()).collect());
            if let Some(counter) = errors.get(reason.index()) {
                counter.inc();
            }
        }
    }

    /// Counts an attempt of a request that failed at this node.
    pub fn record_failed_attempt(&self, node: SocketAddr) {
        self.with_node(node, |node| node.failed_attempts.inc());
    }

    fn with_node(&self, node: SocketAddr, record: impl FnOnce(&NodeCounters)) {
        let mut nodes = self.nodes.borrow_mut();
        let label = if nodes.len() < NODES_MAX { Some(node) } else { None };
        let known = nodes.iter().find(|(known, _)| *known == Some(node));
        if let Some((_, counters)) = known.or_else(|| nodes.iter().find(|(known, _)| *known == label)) {
            return record(counters);
        }
        let counters = Arc::<NodeCounters>::default();
        record(&counters);
        nodes.push((label, counters));
        lock(&self.counters.nodes).clone_from(&nodes);
    }
}

/// One worker's part of a site's series.
#[derive(Debug, Default)]
pub struct SiteCounters {
    /// Full handshakes.
    pub handshakes_full: Counter,
    /// Handshakes that resumed a session.
    pub handshakes_resumed: Counter,
    /// Handshakes that failed.
    pub handshakes_rejected: Counter,
    /// Requests on the site's connections.
    pub requests: Counter,
}

/// What a series has counted on all workers.
#[derive(Debug, Default, Clone)]
pub struct RouteTotals {
    /// By node, and by status code; [`OTHER`] where there is no series of its own.
    pub codes: BTreeMap<(Option<NodeLabel>, Option<u16>), u64>,
    /// By node; those with a count.
    pub failed_attempts: BTreeMap<NodeLabel, u64>,
    /// From a request's head to the end of its response.
    pub request_duration: HistogramTotals,
    /// The time that nodes took.
    pub upstream_duration: HistogramTotals,
    /// The part of the requests' durations that is not the upstream's.
    pub gateway_duration: HistogramTotals,
    /// Bytes from clients.
    pub received_bytes: u64,
    /// Bytes to clients.
    pub sent_bytes: u64,
    /// Those with a count.
    pub errors: Vec<(Reason, u64)>,
}

/// A node as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeLabel {
    /// Its address.
    Addr(SocketAddr),
    /// The nodes that have no counters of their own.
    Other,
}

impl fmt::Display for NodeLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Other => f.write_str(OTHER),
        }
    }
}

impl RouteTotals {
    /// The requests by status code; `None`: codes beyond 599.
    pub fn by_code(&self) -> BTreeMap<Option<u16>, u64> {
        let mut codes = BTreeMap::new();
        for ((_, code), count) in &self.codes {
            *codes.entry(*code).or_default() += count;
        }
        codes
    }

    fn add(&mut self, counters: &RouteCounters) {
        let mut add = |node: Option<NodeLabel>, codes: &CodeCounters| {
            for (code, count) in codes.counts() {
                *self.codes.entry((node, code)).or_default() += count;
            }
        };
        add(None, &counters.codes);
        let nodes = lock(&counters.nodes).clone();
        for (node, counters) in nodes {
            let label = node.map_or(NodeLabel::Other, NodeLabel::Addr);
            add(Some(label), &counters.codes);
            let failed = counters.failed_attempts.get();
            if failed > 0 {
                *self.failed_attempts.entry(label).or_default() += failed;
            }
        }
        self.request_duration.add(&counters.request_duration);
        self.upstream_duration.add(&counters.upstream_duration);
        self.gateway_duration.add(&counters.gateway_duration);
        self.received_bytes += counters.received_bytes.get();
        self.sent_bytes += counters.sent_bytes.get();
        let errors = counters.errors.get().map(|errors| errors.iter().map(Counter::get));
        for (reason, count) in Reason::ALL.iter().zip(errors.into_iter().flatten()) {
            match self.errors.iter_mut().find(|(known, _)| known == reason) {
                Some((_, total)) => *total += count,
                None if count > 0 => self.errors.push((*reason, count)),
                None => {}
            }
        }
    }
}

/// What a site's series has counted on all workers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SiteTotals {
    /// Full handshakes.
    pub handshakes_full: u64,
    /// Handshakes that resumed a session.
    pub handshakes_resumed: u64,
    /// Handshakes that failed.
    pub handshakes_rejected: u64,
    /// Requests on the site's connections.
    pub requests: u64,
}

impl SiteTotals {
    fn add(&mut self, counters: &SiteCounters) {
        self.handshakes_full += counters.handshakes_full.get();
        self.handshakes_resumed += counters.handshakes_resumed.get();
        self.handshakes_rejected += counters.handshakes_rejected.get();
        self.requests += counters.requests.get();
    }
}

/// The parts of one series, by worker.
type Parts<C> = Vec<Option<Arc<C>>>;

/// The series of all routes, or of all sites.
#[derive(Debug)]
struct Family<C> {
    enabled: bool,
    max: usize,
    by_id: HashMap<Id, Parts<C>>,
    other: Parts<C>,
}

impl<C: Default> Family<C> {
    fn new() -> Self {
        Self { enabled: false, max: 0, by_id: HashMap::new(), other: Vec::new() }
    }

    fn part(&mut self, id: &Id, worker: usize) -> Option<Arc<C>> {
        if !self.enabled {
            return None;
        }
        let parts = if self.by_id.len() < self.max || self.by_id.contains_key(id) {
            self.by_id.entry(id.clone()).or_default()
        } else {
            &mut self.other
        };
        if parts.len() <= worker {
            parts.resize_with(worker + 1, || None);
        }
        parts.get_mut(worker).map(|part| Arc::clone(part.get_or_insert_default()))
    }

    fn configure(&mut self, enabled: bool, max: usize) {
        if (self.enabled, self.max) != (enabled, max) {
            *self = Self { enabled, max, ..Self::new() };
        }
    }

    /// Removes the series of other ids. `true`: there were some.
    fn retain(&mut self, is_current: impl Fn(&Id) -> bool) -> bool {
        let before = self.by_id.len();
        self.by_id.retain(|id, _| is_current(id));
        self.by_id.len() < before
    }

    /// Every series, sorted by its id; the last one is that of all others.
    fn all(&self) -> Vec<(String, Parts<C>)> {
        let mut all: Vec<_> = self.by_id.iter().map(|(id, parts)| (id.to_string(), parts.clone())).collect();
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        all.extend((!self.other.is_empty()).then(|| (OTHER.to_owned(), self.other.clone())));
        all
    }
}

/// The series of a process.
#[derive(Debug)]
pub struct SeriesTable {
    routes: Mutex<Family<RouteCounters>>,
    sites: Mutex<Family<SiteCounters>>,
    /// Grows when series are removed: a worker's parts of them count no more, and others may have
    /// the room.
    generation: AtomicU64,
}

impl SeriesTable {
    /// A table without series.
    pub fn new(settings: MetricsSettings) -> Self {
        let table = Self {
            routes: Mutex::new(Family::new()),
            sites: Mutex::new(Family::new()),
            generation: AtomicU64::new(1),
        };
        table.configure(settings);
        table
    }

    /// Applies settings. Series begin again where theirs have changed.
    pub fn configure(&self, settings: MetricsSettings) {
        lock(&self.routes).configure(settings.by_route, settings.series_max);
        lock(&self.sites).configure(settings.by_site, settings.series_max);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The most routes, or sites, with series of their own.
    pub fn max(&self) -> usize {
        lock(&self.sites).max
    }

    fn route(&self, id: &Id, worker: usize) -> Option<RouteRecorder> {
        lock(&self.routes).part(id, worker).map(RouteRecorder::new)
    }

    fn site(&self, id: &Id, worker: usize) -> Option<Arc<SiteCounters>> {
        lock(&self.sites).part(id, worker)
    }

    /// Removes the series of routes and sites that a snapshot has no more.
    pub fn retain(&self, snapshot: &Snapshot) {
        let is_removed = lock(&self.routes).retain(|id| snapshot.route(id).is_some())
            | lock(&self.sites).retain(|id| snapshot.ssl(id).is_some());
        if is_removed {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// Every route's series by the route's id, sorted, and that of all others ([`OTHER`]).
    pub fn routes(&self) -> Vec<(String, RouteTotals)> {
        totals(lock(&self.routes).all(), RouteTotals::add)
    }

    /// As [`Self::routes`], of sites.
    pub fn sites(&self) -> Vec<(String, SiteTotals)> {
        totals(lock(&self.sites).all(), SiteTotals::add)
    }
}

/// A worker's access to the table.
#[derive(Debug)]
pub struct WorkerSeries {
    table: Arc<SeriesTable>,
    worker: usize,
}

/// A worker's part of the series of one route or site, once it is needed.
#[derive(Debug)]
pub struct SeriesSlot<T> {
    /// Of the table when `part` was taken from it; 0: never.
    generation: Cell<u64>,
    part: RefCell<Option<T>>,
}

impl<T> Default for SeriesSlot<T> {
    fn default() -> Self {
        Self { generation: Cell::new(0), part: RefCell::new(None) }
    }
}

impl<T> SeriesSlot<T> {
    fn with(&self, generation: u64, take: impl FnOnce() -> Option<T>, record: impl FnOnce(&T)) {
        let mut part = self.part.borrow_mut();
        if self.generation.get() != generation {
            self.generation.set(generation);
            *part = take();
        }
        if let Some(part) = &*part {
            record(part);
        }
    }
}

impl WorkerSeries {
    /// Access of the worker with this number.
    pub fn new(table: Arc<SeriesTable>, worker: usize) -> Self {
        Self { table, worker }
    }

    /// Records in a route's series, where routes have series.
    pub fn with_route(&self, slot: &SeriesSlot<RouteRecorder>, id: &Id, record: impl FnOnce(&RouteRecorder)) {
        let generation = self.table.generation.load(Ordering::Acquire);
        slot.with(generation, || self.table.route(id, self.worker), record);
    }

    /// Records in a site's series, where sites have series.
    pub fn with_site(
        &self,
        slot: &SeriesSlot<Arc<SiteCounters>>,
        id: &Id,
        record: impl FnOnce(&SiteCounters),
    ) {
        let generation = self.table.generation.load(Ordering::Acquire);
        slot.with(generation, || self.table.site(id, self.worker), |part| record(part));
    }
}

fn totals<C, T: Default>(series: Vec<(String, Parts<C>)>, add: impl Fn(&mut T, &C)) -> Vec<(String, T)> {
    let sum = |parts: Parts<C>| {
        let mut totals = T::default();
        parts.iter().flatten().for_each(|part| add(&mut totals, part));
        totals
    };
    series.into_iter().map(|(id, parts)| (id, sum(parts))).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(series_max: usize) -> MetricsSettings {
        MetricsSettings { by_route: true, by_site: true, series_max }
    }

    fn id(number: usize) -> Id {
        Id::parse(&number.to_string()).unwrap()
    }

    fn request(status: u16, node: Option<u16>) -> RequestTotals {
        RequestTotals {
            status: StatusCode::from_u16(status).unwrap(),
            reason: None,
            duration: Duration::from_millis(7),
            upstream: node.map(|_| Duration::from_millis(4)),
            received: 10,
            sent: 100,
            node: node.map(|port| SocketAddr::from(([127, 0, 0, 1], port))),
        }
    }

    fn snapshot(routes: usize) -> Snapshot {
        let route = |number: usize| {
            let document = serde_json::json!({
                "uri": format!("/{number}"), "upstream": {"type": "roundrobin", "nodes": {"10.0.0.1:80": 1}},
            });
            let resource =
                model::compile(model::Kind::Route, &id(number), &document, &pki::Keyring::empty()).unwrap();
            model::Versioned { version: 1, resource }
        };
        Snapshot::from_resources(1, (0..routes).map(route))
    }

    #[test]
    fn ten_thousand_routes_have_a_bounded_number_of_series() {
        let table = SeriesTable::new(settings(1000));
        for number in 0..10_000 {
            for worker in 0..2 {
                table.route(&id(number), worker).unwrap().record(&request(200, None));
                table.site(&id(number), worker).unwrap().requests.inc();
            }
        }
        let (routes, sites) = (table.routes(), table.sites());
        assert_eq!((routes.len(), sites.len()), (1001, 1001));
        let (last, other) = routes.last().unwrap();
        assert_eq!((last.as_str(), other.by_code()), (OTHER, [(Some(200), 18_000)].into()));
        assert!(routes[..1000].iter().all(|(_, totals)| totals.by_code() == [(Some(200), 2)].into()));
        assert_eq!(sites.last().unwrap().1.requests, 18_000);
        assert!(Id::parse(OTHER).is_err());
    }

    #[test]
    fn a_series_sums_its_workers_and_nodes() {
        let table = SeriesTable::new(settings(10));
        let [a, b] = [0, 1].map(|worker| table.route(&id(1), worker).unwrap());
        a.record(&request(200, Some(1)));
        a.record(&request(502, Some(2)));
        b.record(&request(200, Some(1)));
        a.record_failed_attempt(SocketAddr::from(([127, 0, 0, 1], 2)));
        b.record(&RequestTotals { reason: Some(Reason::NotAllowed), ..request(403, None) });
        let [(name, totals)] = &table.routes()[..] else { panic!() };
        assert_eq!(name, "1");
        let node = |port| Some(NodeLabel::Addr(SocketAddr::from(([127, 0, 0, 1], port))));
        let expected = [((None, Some(403)), 1), ((node(1), Some(200)), 2), ((node(2), Some(502)), 1)];
        assert_eq!(totals.codes, expected.into());
        assert_eq!(totals.failed_attempts, [(node(2).unwrap(), 1)].into());
        assert_eq!((totals.received_bytes, totals.sent_bytes), (40, 400));
        let durations = [&totals.request_duration, &totals.upstream_duration, &totals.gateway_duration];
        let sums = durations.map(|totals| (totals.count(), totals.sum().as_millis()));
        assert_eq!(sums, [(4, 28), (3, 12), (4, 16)]);
        assert_eq!(totals.errors, [(Reason::NotAllowed, 1)]);
    }

    #[test]
    fn the_nodes_of_a_route_are_bounded() {
        let table = SeriesTable::new(settings(10));
        let recorder = table.route(&id(1), 0).unwrap();
        for port in 1..=1000 {
            recorder.record(&request(200, Some(port)));
            recorder.record(&request(200, Some(1)));
        }
        let (_, totals) = table.routes().remove(0);
        assert_eq!(totals.codes.len(), NODES_MAX + 1);
        let others = 1000 - NODES_MAX as u64;
        assert_eq!(totals.codes.get(&(Some(NodeLabel::Other), Some(200))), Some(&others));
        assert_eq!(totals.by_code(), [(Some(200), 2000)].into());
    }

    #[test]
    fn series_vanish_with_their_routes_and_settings() {
        let table = SeriesTable::new(settings(3));
        for number in 0..5 {
            table.route(&id(number), 0).unwrap().record(&request(200, None));
        }
        let names =
            |table: &SeriesTable| table.routes().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&table), ["0", "1", "2", OTHER]);
        table.retain(&snapshot(2));
        assert_eq!(names(&table), ["0", "1", OTHER]);
        table.route(&id(4), 0).unwrap().record(&request(200, None));
        assert_eq!(names(&table), ["0", "1", "4", OTHER], "there is room again");
        table.configure(settings(3));
        assert_eq!(names(&table).len(), 4, "nothing has changed");
        table.configure(MetricsSettings { by_route: false, ..settings(3) });
        assert!(names(&table).is_empty() && table.route(&id(1), 0).is_none());
        assert!(table.site(&id(1), 0).is_some());
    }

    #[test]
    fn a_worker_takes_its_parts_again_when_series_go() {
        let table = Arc::new(SeriesTable::new(settings(1)));
        let series = WorkerSeries::new(Arc::clone(&table), 0);
        let slots = [SeriesSlot::default(), SeriesSlot::default()];
        let count = |number: usize| {
            series.with_route(&slots[number], &id(number), |route| route.record(&request(200, None)));
        };
        let counted = || table.routes().into_iter().map(|(name, t)| (name, t.request_duration.count()));
        for number in [1, 0, 0] {
            count(number);
        }
        assert_eq!(counted().collect::<Vec<_>>(), [("1".to_owned(), 1), (OTHER.to_owned(), 2)]);
        table.retain(&snapshot(1));
        for number in [0, 0, 0] {
            count(number);
        }
        assert_eq!(counted().collect::<Vec<_>>(), [("0".to_owned(), 3), (OTHER.to_owned(), 2)]);
    }
}
