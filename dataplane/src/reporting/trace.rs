//! The trace of a request: which one it belongs to, whether it is recorded, and what becomes spans
//! of it when it has ended.
//!
//! A request that is not recorded costs the reading of `traceparent`, ids, and the header to the
//! upstream. Invariant: a worker waits for no collector; what its queue does not hold is dropped
//! and counted.

pub(crate) mod finished;
pub mod queue;

use std::cell::{Cell, RefCell};
use std::num::{NonZeroU64, NonZeroU128};
use std::time::{Instant, SystemTime};

use conf::{SamplingRatio, TraceParents};
use http::header;
use http::request::Parts;
use model::admission::ClientVerification;
use rand::Rng as _;
use rand::rngs::SmallRng;

use self::finished::FinishedRequest;
use self::queue::SpanSender;
use super::record::{ConnectionFacts, RequestRecord};
use super::request_trace::{self, HeadTexts, RequestTrace};
use crate::http::trace_context::{self, SpanId, TraceId, TraceParent};

/// Which requests a worker traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceSettings {
    /// The share of the traces that begin here.
    pub ratio: SamplingRatio,
    /// Whose traces are continued.
    pub parents: TraceParents,
}

/// Traces the requests of one worker.
pub(crate) struct Tracer {
    /// `None`: requests are not traced.
    settings: Cell<Option<TraceSettings>>,
    /// Seeded by the system.
    random: RefCell<SmallRng>,
    /// `None`: no exporter takes them, and nothing is recorded.
    queue: Option<SpanSender>,
}

impl Tracer {
    /// A tracer whose recorded requests go to `queue`.
    pub(crate) fn new(settings: Option<TraceSettings>, queue: Option<SpanSender>) -> Self {
        Self { settings: Cell::new(settings), random: RefCell::new(rand::make_rng()), queue }
    }

    /// Traces requests by these settings from now on.
    pub(crate) fn configure(&self, settings: Option<TraceSettings>) {
        self.settings.set(settings);
    }

    /// Decides about a request, whose head is as its client sent it.
    pub(super) fn begin(&self, record: &mut RequestRecord, parts: &Parts) {
        let Some(settings) = self.settings.get() else { return };
        let is_trusted = match settings.parents {
            TraceParents::Any => true,
            TraceParents::Verified => matches!(record.client, ClientVerification::Verified(_)),
            TraceParents::None => false,
        };
        let parent = if is_trusted { TraceParent::from_headers(&parts.headers) } else { None };
        let mut random = self.random.borrow_mut();
        let trace_id = parent.map_or_else(|| new_trace_id(&mut random), |parent| parent.trace_id);
        let sampled = parent.map_or_else(|| settings.ratio.samples(trace_id.low()), |parent| parent.sampled);
        let span_id = new_span_id(&mut random);
        let trace = RequestTrace {
            trace_id,
            span_id,
            parent: parent.map(|parent| parent.span_id),
            // One random number is enough for all spans of a request.
            attempt: span_id.nth(1),
            head: sampled.then(|| Box::new(head_texts(parts, parent.is_some()))),
        };
        record.attempts.trace = Some(trace.propagation());
        record.trace = Some(trace);
    }

    /// Queues a recorded request that has ended.
    pub(super) fn end(&self, record: &mut RequestRecord, connection: &ConnectionFacts) {
        if record.trace.as_ref().is_none_or(|trace| trace.head.is_none()) {
            return;
        }
        // Other reports of the request read its ids.
        let Some(head) = record.trace.as_mut().and_then(|trace| trace.head.take()) else { return };
        let Some(trace) = &record.trace else { return };
        let now = (Instant::now(), SystemTime::now());
        let Some(queue) = &self.queue else { return };
        queue.send(Box::new(FinishedRequest::new(trace, head, record, connection, now)));
    }
}

fn new_trace_id(random: &mut SmallRng) -> TraceId {
    let id = u128::from(random.next_u64()) << 64 | u128::from(random.next_u64());
    TraceId(NonZeroU128::new(id).unwrap_or(NonZeroU128::MIN))
}

fn new_span_id(random: &mut SmallRng) -> SpanId {
    SpanId(NonZeroU64::new(random.next_u64()).unwrap_or(NonZeroU64::MIN))
}

fn head_texts(parts: &Parts, continues: bool) -> HeadTexts {
    let authority = match parts.uri.authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => parts.headers.get(header::HOST).map(|host| host.as_bytes()),
    };
    HeadTexts {
        path: request_trace::text(parts.uri.path().as_bytes()),
        query: parts.uri.query().map(|query| request_trace::text(query.as_bytes())),
        authority: authority.map(request_trace::text),
        user_agent: parts.headers.get(header::USER_AGENT).map(|value| request_trace::text(value.as_bytes())),
        trace_state: if continues { trace_context::state(&parts.headers) } else { None },
    }
}
