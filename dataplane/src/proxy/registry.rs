//! The registry of a worker's TLS connections, and their revalidation.
//!
//! A connection registers after its handshake and stays registered until it closes.
//! [`run_revalidation`] sweeps the registry when sites have changed and when certificates may have
//! expired. Invariants: a connection whose client the current policy rejects is closed within a
//! second, with its requests in flight, and no other connection is affected. A connection whose
//! site is gone and never had a client policy finishes its requests in flight, within
//! `worker_shutdown_timeout` ([decision 42](../../../docs/decisions/0042-when-a-site-is-gone.md)).
//! A sweep runs in batches so small that requests between them are not delayed, and no change runs
//! one that touches no site.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::Snapshot;
use rustls::pki_types::UnixTime;
use slab::Slab;

use super::client_auth::{ClientAuthState, CloseMode};
use super::connection_counts::{ConnectionCounts, Counting};
use crate::io::timeouts::TimeoutHandle;
use crate::lifecycle::drain::{DrainGuard, DrainHandle};
use crate::observability::metrics::Counters;
use crate::reason::Reason;
use crate::runtime;

/// How often a worker checks whether the sites have changed.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// How often it checks for expired certificates.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);
/// Batches of a sweep at most; a pause of a timer's granularity follows each.
const BATCHES_MAX: usize = 400;
/// Connections of a batch at least; one takes about a microsecond.
const BATCH_MIN: usize = 16;
const BATCH_PAUSE: Duration = Duration::from_millis(1);
/// Connections of a batch when they are counted; one takes less than a microsecond.
const COUNT_BATCH: usize = 256;

/// The open TLS connections of one worker.
#[derive(Default)]
pub(super) struct ConnectionRegistry(RefCell<Slab<Rc<RegisteredConnection>>>);

struct RegisteredConnection {
    client_auth: Rc<ClientAuthState>,
    timeouts: TimeoutHandle,
    drain_handle: DrainHandle,
    draining_since: Cell<Option<Instant>>,
}

impl RegisteredConnection {
    /// Drains the connection; whether it was not draining before. A TCP connection has no message
    /// after which it could close: it continues until its sides close it or its time is up.
    fn drain(&self) -> bool {
        let is_first = self.draining_since.get().is_none();
        if is_first {
            self.draining_since.set(Some(Instant::now()));
            if self.client_auth.is_http() {
                self.drain_handle.drain();
            }
        }
        is_first
    }

    /// Whether it has been draining for `limit`; true once.
    fn is_overdue(&self, limit: Duration) -> bool {
        let overdue = self.draining_since.get().is_some_and(|since| since.elapsed() >= limit);
        if overdue {
            self.draining_since.take();
        }
        overdue
    }
}

/// A registered connection, until it is dropped: before the connection's [`DrainGuard`].
pub(super) struct RegistryGuard {
    registry: Rc<ConnectionRegistry>,
    key: usize,
}

impl Drop for RegistryGuard {
    fn drop(&mut self) {
        self.registry.0.borrow_mut().try_remove(self.key);
    }
}

impl ConnectionRegistry {
    /// Registers a connection after its handshake.
    ///
    /// # Errors
    /// The reason why it must close: the sites may have changed during the handshake.
    pub(super) fn register(
        self: &Rc<Self>,
        client_auth: &Rc<ClientAuthState>,
        timeouts: TimeoutHandle,
        drain: &DrainGuard,
        snapshot: &Snapshot,
    ) -> Result<RegistryGuard, Reason> {
        let mode = if client_auth.is_current(snapshot) { None } else { client_auth.revalidate(snapshot) };
        let connection = RegisteredConnection {
            client_auth: Rc::clone(client_auth),
            timeouts,
            drain_handle: drain.handle(),
            draining_since: Cell::new(None),
        };
        match mode {
            None => {}
            Some(CloseMode::Immediate(reason)) => return Err(reason),
            // A TCP connection has nothing in flight yet.
            Some(CloseMode::Graceful) if !client_auth.is_http() => return Err(Reason::NoSite),
            Some(CloseMode::Graceful) => drop(connection.drain()),
        }
        let key = self.0.borrow_mut().insert(Rc::new(connection));
        Ok(RegistryGuard { registry: Rc::clone(self), key })
    }

    /// The connections with the `count` keys from `from`; `None` past the last key.
    fn batch(&self, from: usize, count: usize) -> Option<Vec<Rc<RegisteredConnection>>> {
        let connections = self.0.borrow();
        let keys = from..from.saturating_add(count);
        (from < connections.capacity())
            .then(|| keys.filter_map(|key| connections.get(key).cloned()).collect())
    }

    fn batch_size(&self) -> usize {
        BATCH_MIN.max(self.0.borrow().capacity().div_ceil(BATCHES_MAX))
    }
}

/// Counts the connections by site and client.
pub(super) async fn count_connections(
    registry: Rc<ConnectionRegistry>,
    snapshot: Arc<Snapshot>,
) -> ConnectionCounts {
    let mut counting = Counting::default();
    let mut from = 0;
    while let Some(batch) = registry.batch(from, COUNT_BATCH) {
        batch.iter().for_each(|connection| counting.add(&connection.client_auth, &snapshot));
        drop(batch);
        from = from.saturating_add(COUNT_BATCH);
        runtime::sleep(BATCH_PAUSE).await;
    }
    counting.finish()
}

/// Closes the connections that are no longer valid, for as long as the worker runs. `snapshot`
/// gives the current snapshot, `drain_timeout` limits a graceful close.
pub(super) async fn run_revalidation(
    registry: Rc<ConnectionRegistry>,
    snapshot: impl Fn() -> Rc<Arc<Snapshot>>,
    counters: Arc<Counters>,
    drain_timeout: impl Fn() -> Duration,
) {
    let mut site_generation = snapshot().site_generation();
    let mut last_sweep = Instant::now();
    loop {
        runtime::sleep(CHECK_INTERVAL).await;
        let current = snapshot().site_generation();
        let sites_changed = current != site_generation;
        if sites_changed || last_sweep.elapsed() >= EXPIRY_INTERVAL {
            (site_generation, last_sweep) = (current, Instant::now());
            sweep(&registry, &snapshot, &counters, drain_timeout(), sites_changed).await;
        }
    }
}

/// Revalidates all connections once. Those that register meanwhile are valid by the current
/// snapshot.
async fn sweep(
    registry: &ConnectionRegistry,
    snapshot: &impl Fn() -> Rc<Arc<Snapshot>>,
    counters: &Counters,
    drain_timeout: Duration,
    sites_changed: bool,
) {
    let count = registry.batch_size();
    let (mut from, mut draining) = (0, 0_usize);
    while let Some(connections) = registry.batch(from, count) {
        let (snapshot, now) = (snapshot(), UnixTime::now());
        for connection in &connections {
            let client_auth = &connection.client_auth;
            let mut mode = if sites_changed && !client_auth.is_current(&snapshot) {
                client_auth.revalidate(&snapshot)
            } else {
                client_auth.revalidate_expiry(&snapshot, now)
            };
            if !matches!(mode, Some(CloseMode::Immediate(_))) && connection.is_overdue(drain_timeout) {
                mode = Some(CloseMode::Immediate(Reason::NoSite));
            }
            match mode {
                None => {}
                Some(CloseMode::Graceful) => draining += usize::from(connection.drain()),
                Some(CloseMode::Immediate(reason)) => {
                    client_auth.record_termination(counters, reason);
                    connection.timeouts.shutdown();
                }
            }
        }
        from += count;
        if !connections.is_empty() {
            runtime::sleep(BATCH_PAUSE).await;
        }
    }
    if draining > 0 {
        tracing::info!(
            connections = draining,
            "the site of these connections is gone: they finish their requests in flight"
        );
    }
}
