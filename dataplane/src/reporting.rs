//! What is reported of each request, TCP connection and refused handshake when it has ended.
//!
//! [`record`] holds the facts, [`routes`] what a worker knows of a route or site for all of them;
//! [`access_log`] writes lines, and [`trace`] makes spans of requests.
//!
//! Invariant: a record is reported exactly once, however its request or connection ends.

pub(crate) mod access_log;
mod metrics;
pub(crate) mod record;
pub(crate) mod request_trace;
pub(crate) mod routes;
pub mod trace;

use std::cell::Cell;
use std::sync::Arc;

use http::request::Parts;
use model::RequestTarget;

use self::access_log::{AccessLogConfigs, AccessLogs};
use self::metrics::RequestMetrics;
use self::record::{ConnectionFacts, HandshakeRecord, RequestRecord, TcpRecord, TlsFacts};
use self::routes::RouteTable;
use self::trace::Tracer;
use crate::observability::metrics::Counters;
use crate::observability::metrics::series::SeriesTable;

/// The reporter of one worker.
pub(crate) struct Reporter {
    metrics: RequestMetrics,
    /// The routes and sites that this worker has served.
    pub(crate) routes: RouteTable,
    pub(crate) tracer: Tracer,
    pub(crate) access_logs: AccessLogs,
    /// Connections accepted so far.
    connections: Cell<u64>,
}

impl Reporter {
    /// A reporter that adds to these counters and series, and writes these logs.
    pub(crate) fn new(
        counters: Arc<Counters>,
        series: Arc<SeriesTable>,
        tracer: Tracer,
        access_logs: &AccessLogConfigs,
    ) -> Self {
        Self {
            metrics: RequestMetrics::new(counters, series),
            routes: RouteTable::default(),
            tracer,
            access_logs: AccessLogs::new(access_logs),
            connections: Cell::new(0),
        }
    }

    /// The number of a connection that has just been accepted.
    pub(crate) fn next_connection(&self) -> u64 {
        self.connections.set(self.connections.get() + 1);
        self.connections.get()
    }

    /// The head of a request is there, as the client sent it. `target` is missing where the head
    /// is malformed.
    pub(crate) fn request_begun(
        &self,
        record: &mut RequestRecord,
        connection: &ConnectionFacts,
        parts: &Parts,
        target: Option<&RequestTarget>,
    ) {
        self.tracer.begin(record, parts);
        self.access_logs.request_begun(record, connection, parts, target);
    }

    /// A request has ended: its response went out, or its client went away.
    pub(crate) fn request_ended(&self, record: &mut RequestRecord, connection: &ConnectionFacts) {
        self.metrics.request_ended(record, connection);
        self.access_logs.request_ended(record, connection);
        self.tracer.end(record, connection);
    }

    /// A TCP connection has ended.
    pub(crate) fn tcp_ended(&self, record: &TcpRecord, connection: &ConnectionFacts) {
        self.metrics.tcp_ended(record);
        self.access_logs.tcp_ended(record, connection);
    }

    /// A TLS handshake was completed.
    pub(crate) fn handshake_completed(&self, tls: &TlsFacts) {
        self.metrics.handshake_completed(tls);
    }

    /// A TLS handshake was refused, or failed.
    pub(crate) fn handshake_refused(&self, record: &HandshakeRecord<'_>, connection: &ConnectionFacts) {
        self.metrics.handshake_refused(record);
        self.access_logs.handshake_refused(record, connection);
    }
}
