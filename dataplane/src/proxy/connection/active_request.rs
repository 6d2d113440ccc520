//! A request that has not ended: its record, and the permit that it holds.
//!
//! Invariant: it is reported once, when it is dropped: with the body of its response, with the
//! tunnel that the response opens, or when its client goes away before the response.

use std::rc::Rc;

use crate::observability::{HasReason, log};
use crate::proxy::request_limit::RequestPermit;
use crate::proxy::worker::Worker;
use crate::reporting::record::{ConnectionFacts, RequestRecord};
use crate::upstream::response_body::UpstreamBodyError;

/// A request in flight.
pub(in crate::proxy) struct ActiveRequest {
    worker: Rc<Worker>,
    connection: Rc<ConnectionFacts>,
    pub(in crate::proxy) record: RequestRecord,
    /// `None`: its client is not limited, or it was refused before.
    pub(super) permit: Option<RequestPermit>,
}

impl ActiveRequest {
    pub(super) fn new(worker: &Rc<Worker>, connection: &Rc<ConnectionFacts>, record: RequestRecord) -> Self {
        worker.counters.requests_active.inc();
        Self { worker: Rc::clone(worker), connection: Rc::clone(connection), record, permit: None }
    }

    /// A part of the response's body goes to the client.
    pub(in crate::proxy) fn record_sent(&mut self, bytes: usize) {
        self.record.response_body_bytes += bytes as u64;
    }

    /// The response breaks off.
    pub(in crate::proxy) fn record_broken(&mut self, error: &UpstreamBodyError) {
        if error.is_upstreams() {
            self.record.reason = Some(error.reason());
            self.worker.counters.record_error(error.reason());
            log::response_broken(&self.connection.info, error);
        }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.record.total = self.record.started.elapsed();
        self.worker.counters.requests_active.dec();
        self.worker.reporter.request_ended(&mut self.record, &self.connection);
    }
}
