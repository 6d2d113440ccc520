//! What is reported of each request, TCP connection and refused handshake when it has ended.
//!
//! [`record`] holds the facts, [`routes`] what a worker knows of a route or site for all of them.
//! Invariant: a record is reported exactly once, however its request or connection ends.

#![allow(dead_code, reason = "until all facts of a record are reported")]

pub(crate) mod record;
pub(crate) mod routes;

use std::sync::Arc;

use http::request::Parts;
use model::RequestTarget;

use self::record::{ConnectionFacts, HandshakeRecord, RequestRecord, TcpRecord, TlsFacts};
use self::routes::RouteTable;
use crate::observability::metrics::Counters;

/// The reporter of one worker.
pub(crate) struct Reporter {
    pub(crate) counters: Arc<Counters>,
    /// The routes and sites that this worker has served.
    pub(crate) routes: RouteTable,
}

impl Reporter {
    /// A reporter that adds to these counters.
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self { counters, routes: RouteTable::default() }
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
        let _ = (record, connection, parts, target);
    }

    /// A request has ended: its response went out, or its client went away.
    pub(crate) fn request_ended(&self, record: &mut RequestRecord, connection: &ConnectionFacts) {
        let _ = (record, connection);
    }

    /// A TCP connection has ended.
    pub(crate) fn tcp_ended(&self, record: &TcpRecord, connection: &ConnectionFacts) {
        let _ = (record, connection);
    }

    /// A TLS handshake was completed.
    pub(crate) fn handshake_completed(&self, tls: &TlsFacts) {
        self.counters.record_handshake(tls.params.resumed);
    }

    /// A TLS handshake was refused, or failed.
    pub(crate) fn handshake_refused(&self, record: &HandshakeRecord<'_>, connection: &ConnectionFacts) {
        let _ = (record, connection);
    }
}
