//! A recorded request that has ended, as plain values: spans are made of it on another thread.
//!
//! Invariant: its size is bounded, whatever its client sends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{Method, StatusCode, Version};
use model::admission::ClientVerification;
use model::{HostName, Route, Scheme};

use super::super::record::{ConnectionFacts, RequestRecord};
use super::super::request_trace::{HeadTexts, RequestTrace, text};
use crate::http::trace_context::{SpanId, TraceId};
use crate::reason::Reason;
use crate::tls::params::NegotiatedParams;
use crate::upstream::attempts::Attempt;

/// The attempts that are kept of a request.
const ATTEMPTS_MAX: usize = 16;

/// A recorded request that has ended. Its fields are those of [`RequestRecord`], [`RequestTrace`]
/// and [`ConnectionFacts`].
#[derive(Debug)]
pub(crate) struct FinishedRequest {
    pub(crate) trace_id: TraceId,
    pub(crate) span_id: SpanId,
    pub(crate) parent: Option<SpanId>,
    pub(crate) attempt: SpanId,
    pub(crate) head: Box<HeadTexts>,
    /// The same moment by both clocks.
    pub(crate) now: (Instant, SystemTime),
    pub(crate) started: Instant,
    pub(crate) total: Duration,
    pub(crate) method: Option<Method>,
    pub(crate) version: Version,
    pub(crate) client_addr: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) tls: Option<(HostName, NegotiatedParams)>,
    pub(crate) client: ClientVerification,
    pub(crate) route: Option<Arc<Route>>,
    pub(crate) reason: Option<Reason>,
    pub(crate) status: Option<StatusCode>,
    pub(crate) is_complete: bool,
    pub(crate) request_body_bytes: u64,
    pub(crate) response_body_bytes: u64,
    pub(crate) upstream: Option<(Scheme, String)>,
    pub(crate) attempts: Vec<Attempt>,
}

impl FinishedRequest {
    pub(super) fn new(
        trace: &RequestTrace,
        head: Box<HeadTexts>,
        record: &RequestRecord,
        connection: &ConnectionFacts,
        now: (Instant, SystemTime),
    ) -> Self {
        let attempts = record.attempts.all();
        Self {
            trace_id: trace.trace_id,
            span_id: trace.span_id,
            parent: trace.parent,
            attempt: trace.attempt,
            head,
            now,
            started: record.started,
            total: record.total,
            method: record.method.clone(),
            version: record.version,
            client_addr: record.client_addr,
            peer: connection.info.direct_peer,
            local: connection.info.local,
            tls: connection.tls.get().map(|tls| (tls.sni.clone(), tls.params)),
            client: record.client.clone(),
            route: record.route.as_ref().map(|entry| Arc::clone(&entry.route)),
            reason: record.reason,
            status: record.status,
            is_complete: record.is_complete,
            request_body_bytes: record.request_body_bytes(),
            response_body_bytes: record.response_body_bytes,
            upstream: record
                .upstream
                .as_ref()
                .map(|upstream| (upstream.scheme, text(upstream.uri.as_str().as_bytes()))),
            attempts: attempts.get(..ATTEMPTS_MAX).unwrap_or(attempts).to_vec(),
        }
    }

    /// The spans that are made of it.
    pub(crate) fn span_count(&self) -> usize {
        1 + self.attempts.len()
    }
}
