//! What the metrics count of a record: of the process, its route and its site.
//!
//! Invariant: a record is counted in all of them or in none, so that their sums agree.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::record::{ConnectionFacts, HandshakeRecord, RequestRecord, TcpRecord, TlsFacts};
use crate::observability::metrics::Counters;
use crate::observability::metrics::series::{RequestTotals, SeriesTable, WorkerSeries};
use crate::upstream::attempts::{Attempt, Attempts};

/// The status of a request whose client went away before the response, as in nginx's log.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The metrics of one worker.
pub(super) struct RequestMetrics {
    counters: Arc<Counters>,
    series: WorkerSeries,
}

impl RequestMetrics {
    pub(super) fn new(counters: Arc<Counters>, series: Arc<SeriesTable>) -> Self {
        let series = WorkerSeries::new(series, counters.worker());
        Self { counters, series }
    }

    pub(super) fn request_ended(&self, record: &RequestRecord, connection: &ConnectionFacts) {
        let totals = totals(record);
        let counters = &self.counters;
        counters.requests.inc(totals.status);
        counters.request_duration.observe(totals.duration);
        counters.http_received_bytes.inc_by(totals.received);
        counters.http_sent_bytes.inc_by(totals.sent);
        self.record_attempts(&record.attempts);
        record.attempts.all().iter().filter_map(|attempt| attempt.header).for_each(|duration| {
            counters.upstream_first_byte_duration.observe(duration);
        });
        if let Some(route) = &record.route {
            self.series.with_route(&route.series, route.id(), |route| {
                route.record(&totals);
                let failed = record.attempts.all().iter().filter(|attempt| attempt.failed.is_some());
                failed.filter_map(|attempt| attempt.addr).for_each(|node| route.record_failed_attempt(node));
            });
        }
        if let Some(tls) = connection.tls.get() {
            self.series.with_site(&tls.site.series, tls.site.id(), |site| site.requests.inc());
        }
    }

    pub(super) fn tcp_ended(&self, record: &TcpRecord) {
        self.record_attempts(&record.attempts);
    }

    fn record_attempts(&self, attempts: &Attempts) {
        let retries = attempts.all().len().saturating_sub(1);
        if retries > 0 {
            self.counters.upstream_retries.inc_by(retries as u64);
        }
    }

    pub(super) fn handshake_completed(&self, tls: &TlsFacts) {
        let resumed = tls.params.resumed;
        self.counters.record_handshake(resumed);
        self.counters.record_handshake_duration(resumed, tls.handshake);
        self.series.with_site(&tls.site.series, tls.site.id(), |site| {
            if resumed { &site.handshakes_resumed } else { &site.handshakes_full }.inc();
        });
    }

    pub(super) fn handshake_refused(&self, record: &HandshakeRecord<'_>) {
        if let Some(site) = &record.site {
            self.series.with_site(&site.series, site.id(), |site| site.handshakes_rejected.inc());
        }
    }
}

fn totals(record: &RequestRecord) -> RequestTotals {
    let client_closed = || StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::BAD_REQUEST);
    let tunnel = record.tunnel.unwrap_or_default();
    let attempts = record.attempts.all();
    // The last attempt ends with the request.
    let ended = record.started + record.total;
    let duration = |attempt: &Attempt| {
        attempt.failed.unwrap_or_else(|| ended.saturating_duration_since(attempt.started))
    };
    RequestTotals {
        status: record.status.unwrap_or_else(client_closed),
        reason: record.reason,
        duration: record.total,
        upstream: (!attempts.is_empty()).then(|| attempts.iter().map(duration).sum::<Duration>()),
        received: record.request_head_bytes + record.request_body_bytes() + tunnel.to_upstream,
        sent: record.response_head_bytes + record.response_body_bytes + tunnel.to_client,
        node: attempts.last().and_then(|attempt| attempt.addr),
    }
}
