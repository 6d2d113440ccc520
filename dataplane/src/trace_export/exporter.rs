//! The exporter: batches of spans, and what becomes of one that the collector does not take.
//!
//! Invariant: at most one batch is under way; while it is, the workers' queues fill, and drop what
//! they do not hold. The log has a line when the collector fails otherwise than before, never one
//! a batch.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use process::throttle::TokenBucket;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use super::collector::CollectorClient;
use super::{ExportSettings, otlp};
use crate::observability::error_chain;
use crate::observability::traces::TraceCounters;
use crate::reporting::trace::finished::FinishedRequest;
use crate::reporting::trace::queue::SpanReceiver;

/// A batch is sent when it has so many spans,
const BATCH_SPANS: usize = 512;
/// or so long after its first one.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// How often the queues are looked into while a batch is incomplete: rarely enough that workers
/// wake this thread once a batch, and often enough that a full queue is emptied.
const COLLECT_INTERVAL: Duration = Duration::from_millis(50);
/// How often a batch is sent, before it is dropped.
const TRIES: u32 = 5;
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long the end of the process waits for the last batches.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// Lines about a collector that fails in changing ways: three, and one more a minute.
const LINES: u32 = 3;
const LINE_INTERVAL: Duration = Duration::from_secs(60);
/// The bytes of a collector's text that the log has.
const TEXT_MAX: usize = 300;

/// Sends the spans of all workers.
pub struct TraceExporter {
    settings: watch::Receiver<Option<Arc<ExportSettings>>>,
    queues: Vec<SpanReceiver>,
    counters: Arc<TraceCounters>,
    client: Option<CollectorClient>,
    /// Spans that are to be sent.
    batch: Vec<Span>,
    /// The failure of the last export, as logged.
    failure: Option<String>,
    lines: TokenBucket,
}

/// Why an export failed.
enum ExportFailure {
    /// The same batch may be taken later.
    Transient(String),
    /// The collector will not take this batch.
    Permanent(String),
}

impl TraceExporter {
    pub(crate) fn new(
        settings: watch::Receiver<Option<Arc<ExportSettings>>>,
        queues: Vec<SpanReceiver>,
        counters: Arc<TraceCounters>,
    ) -> Self {
        Self {
            settings,
            queues,
            counters,
            client: None,
            batch: Vec::new(),
            failure: None,
            lines: TokenBucket::new(LINES, LINE_INTERVAL),
        }
    }

    /// Exports until `stop` turns true, and then what is left, for a second at most.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            // A dropped sender is a stop, too.
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.export_batches() => {}
        }
        // Those that do not make it are counted below, for the last scrape.
        let _in_time = timeout(FLUSH_MAX, self.flush()).await.is_ok();
        while self.take_queued() {
            self.drop_batch();
        }
    }

    /// Never ends. May be cancelled: what was taken from a queue and is not sent is in the batch.
    async fn export_batches(&mut self) {
        loop {
            let first = self.next_request().await;
            self.add(&first);
            let full = Instant::now() + BATCH_DELAY;
            while !self.take_queued() && Instant::now() < full {
                sleep(COLLECT_INTERVAL).await;
            }
            self.export_with_retries().await;
        }
    }

    /// Sends what is left, each batch once, until one fails.
    async fn flush(&mut self) {
        while {
            self.take_queued();
            !self.batch.is_empty()
        } {
            if self.export().await.is_err() {
                return;
            }
        }
    }

    /// The next request of any queue.
    async fn next_request(&mut self) -> Box<FinishedRequest> {
        poll_fn(|cx| {
            for queue in &mut self.queues {
                if let Poll::Ready(Some(request)) = queue.poll_recv(cx) {
                    return Poll::Ready(request);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Adds what is in the queues to the batch. `true`: the batch is full.
    fn take_queued(&mut self) -> bool {
        // No worker's requests wait for those of a busier one.
        let queues = self.queues.len().min(1);
        self.queues.rotate_left(queues);
        for index in 0..self.queues.len() {
            while self.batch.len() < BATCH_SPANS
                && let Some(request) = self.queues.get_mut(index).and_then(|queue| queue.try_recv().ok())
            {
                self.add(&request);
            }
        }
        self.batch.len() >= BATCH_SPANS
    }

    fn add(&mut self, request: &FinishedRequest) {
        otlp::add_spans(request, &mut self.batch);
    }

    /// The spans of the batch are not sent.
    fn drop_batch(&mut self) {
        self.counters.undelivered.inc_by(self.batch.len() as u64);
        self.batch.clear();
    }

    async fn export_with_retries(&mut self) {
        let mut backoff = BACKOFF;
        for tries in 1..=TRIES {
            match self.export().await {
                Ok(()) => return,
                Err(ExportFailure::Permanent(_)) => {
                    self.counters.rejected.inc_by(self.batch.len() as u64);
                    self.batch.clear();
                    return;
                }
                Err(ExportFailure::Transient(_)) if tries < TRIES => {
                    // Jittered, so that the nodes of a cluster do not all return at once.
                    sleep(backoff.mul_f64(rand::random_range(0.5..1.0))).await;
                    backoff = (backoff * 3 / 2).min(BACKOFF_MAX);
                }
                Err(ExportFailure::Transient(_)) => {}
            }
        }
        self.drop_batch();
    }

    /// Sends the batch once. It is empty when the collector has taken it.
    async fn export(&mut self) -> Result<(), ExportFailure> {
        let Some(settings) = self.settings.borrow_and_update().clone() else {
            // Tracing was switched off.
            self.client = None;
            self.drop_batch();
            return Ok(());
        };
        let result = self.send(&settings).await;
        match &result {
            Ok(partial) => self.record_success(&settings, partial.as_ref()),
            Err(ExportFailure::Transient(error) | ExportFailure::Permanent(error)) => {
                self.counters.export_failures.inc();
                self.log_failure(&settings.address, error);
            }
        }
        result.map(|_| ())
    }

    async fn send(
        &mut self,
        settings: &Arc<ExportSettings>,
    ) -> Result<Option<ExportTracePartialSuccess>, ExportFailure> {
        let current = match &self.client {
            Some(client) => client.is_current(settings).await,
            None => false,
        };
        if !current {
            self.client = Some(CollectorClient::new(settings).await.map_err(ExportFailure::Transient)?);
        }
        let Some(client) = &mut self.client else { return Ok(None) };
        let resource_spans = vec![otlp::resource_spans(&settings.resource, self.batch.clone())];
        let export = client.service.export(ExportTraceServiceRequest { resource_spans });
        match timeout(settings.timeout, export).await {
            Ok(Ok(response)) => Ok(response.into_inner().partial_success),
            Ok(Err(status)) => Err(failure(&status)),
            Err(_) => {
                let within = settings.timeout.as_secs_f64();
                let text = format!("it did not answer within {within} s (countersign.tracing.timeout)");
                Err(ExportFailure::Transient(text))
            }
        }
    }

    fn record_success(&mut self, settings: &ExportSettings, partial: Option<&ExportTracePartialSuccess>) {
        let spans = self.batch.len() as u64;
        self.batch.clear();
        let rejected = partial.map_or(0, |partial| partial.rejected_spans);
        let rejected = u64::try_from(rejected).unwrap_or(0).min(spans);
        self.counters.rejected.inc_by(rejected);
        self.counters.exported.inc_by(spans - rejected);
        match partial {
            Some(partial) if rejected > 0 => {
                let text = format!("it rejected spans: {:?}", clipped(&partial.error_message));
                self.log_failure(&settings.address, &text);
            }
            _ => {
                if self.failure.take().is_some() {
                    tracing::info!(collector = settings.address, "the trace collector takes spans again");
                }
            }
        }
    }

    fn log_failure(&mut self, address: &str, error: &str) {
        if self.failure.as_deref() == Some(error) {
            return;
        }
        self.failure = Some(error.to_owned());
        if self.lines.try_acquire(std::time::Instant::now()) {
            tracing::warn!(
                collector = address,
                error,
                "the trace collector (countersign.tracing.endpoint) does not take spans; those that the queues do not hold are \
                 dropped and counted (countersign_trace_spans_dropped_total), and requests are served as ever"
            );
        }
    }
}

/// The codes that the specification of OTLP (section "Failures") allows to try again.
fn failure(status: &Status) -> ExportFailure {
    let cause = std::error::Error::source(status).map(error_chain);
    let message = clipped(status.message());
    let text = match cause {
        Some(cause) => format!("{message}: {cause}"),
        None => format!("{:?}: {message:?}", status.code()),
    };
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => ExportFailure::Transient(text),
        // Without details (RetryInfo), the collector does not expect to recover.
        Code::ResourceExhausted if !status.details().is_empty() => ExportFailure::Transient(text),
        _ => ExportFailure::Permanent(text),
    }
}

fn clipped(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retryable_codes_are_those_of_otlp() {
        let is_transient = |status: &Status| matches!(failure(status), ExportFailure::Transient(_));
        for (code, expected) in [
            (Code::Cancelled, true),
            (Code::DeadlineExceeded, true),
            (Code::Aborted, true),
            (Code::OutOfRange, true),
            (Code::Unavailable, true),
            (Code::DataLoss, true),
            (Code::ResourceExhausted, false),
            (Code::Unknown, false),
            (Code::InvalidArgument, false),
            (Code::NotFound, false),
            (Code::PermissionDenied, false),
            (Code::FailedPrecondition, false),
            (Code::Unimplemented, false),
            (Code::Internal, false),
            (Code::Unauthenticated, false),
        ] {
            assert_eq!(is_transient(&Status::new(code, "")), expected, "{code:?}");
        }
        let details = bytes::Bytes::from_static(b"RetryInfo");
        assert!(is_transient(&Status::with_details(Code::ResourceExhausted, "later", details)));
    }

    #[test]
    fn a_collectors_text_is_clipped_and_escaped() {
        let ExportFailure::Permanent(text) = failure(&Status::internal(format!("a\nb{}", "x".repeat(1_000))))
        else {
            panic!()
        };
        assert!(text.starts_with("Internal: \"a\\nbx") && text.len() < TEXT_MAX + 20, "{text}");
    }
}
