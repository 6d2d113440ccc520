//! The queues of the workers' recorded requests.
//!
//! Invariant: a full queue delays no worker: what it does not hold is dropped, and its spans are
//! counted.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::finished::FinishedRequest;
use crate::observability::metrics::counter::Counter;

/// The workers' ends, one for each.
#[derive(Debug, Default)]
pub struct TraceQueues(Vec<SpanSender>);

/// A worker's end.
#[derive(Debug, Clone)]
pub(crate) struct SpanSender {
    sender: mpsc::Sender<Box<FinishedRequest>>,
    /// Spans that found the queue full.
    dropped: Arc<Counter>,
}

/// The exporter's end of one queue.
pub(crate) type SpanReceiver = mpsc::Receiver<Box<FinishedRequest>>;

impl TraceQueues {
    /// A queue of `size` requests for each worker.
    pub(crate) fn new(workers: usize, size: usize) -> (Self, Vec<SpanReceiver>) {
        let queue = || {
            let (sender, receiver) = mpsc::channel(size);
            (SpanSender { sender, dropped: Arc::default() }, receiver)
        };
        let (senders, receivers) = std::iter::repeat_with(queue).take(workers).unzip();
        (Self(senders), receivers)
    }

    /// Queues without an exporter, for measurements of workers.
    pub fn unread(workers: usize) -> Self {
        Self::new(workers, 1).0
    }

    /// The queue of the worker with this number.
    pub(crate) fn of_worker(&self, worker: usize) -> Option<SpanSender> {
        self.0.get(worker).cloned()
    }

    /// The spans that found each queue full.
    pub(crate) fn dropped(&self) -> Vec<Arc<Counter>> {
        self.0.iter().map(|queue| Arc::clone(&queue.dropped)).collect()
    }
}

impl SpanSender {
    pub(super) fn send(&self, request: Box<FinishedRequest>) {
        let spans = request.span_count() as u64;
        // Closed: the exporter has ended, with the process.
        if self.sender.try_send(request).is_err() {
            self.dropped.inc_by(spans);
        }
    }
}
