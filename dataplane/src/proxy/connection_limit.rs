//! The limit on the client connections of a worker. A full worker stops accepting: new connections
//! wait in the kernel's accept queues until others close.
//!
//! Invariant: an accepted connection is served. Above the limit each listener adds two at most: one
//! whose accept had completed when the worker became full, and one from the queue of a listener
//! that closes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use process::throttle::TokenBucket;

use crate::observability::metrics::Counters;
use crate::runtime::AcceptCanceller;

/// One line when a worker becomes full, then one a minute.
const LOG_LIMIT: TokenBucket = TokenBucket::new(1, Duration::from_secs(60));

/// The connection limit of one worker.
pub(crate) struct ConnectionLimit {
    max: usize,
    active: Cell<usize>,
    closing: Cell<bool>,
    wakers: RefCell<Vec<Waker>>,
    accept_canceller: AcceptCanceller,
    counters: Arc<Counters>,
    log_limit: RefCell<TokenBucket>,
}

/// One connection of the limit, until it is dropped.
pub(crate) struct ConnectionPermit(Rc<ConnectionLimit>);

/// The next action of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListenerAction {
    /// Accept the next connection.
    Accept,
    /// Accept what is in the queue, below the limit, and close.
    Close,
}

impl ConnectionLimit {
    /// A limit of `max` connections, at least one.
    pub(crate) fn new(max: usize, counters: Arc<Counters>) -> Rc<Self> {
        Rc::new(Self {
            max: max.max(1),
            active: Cell::new(0),
            closing: Cell::new(false),
            wakers: RefCell::default(),
            accept_canceller: AcceptCanceller::default(),
            counters,
            log_limit: RefCell::new(LOG_LIMIT),
        })
    }

    /// Cancels accepts in flight when the worker becomes full or closes its listeners.
    pub(crate) fn accept_canceller(&self) -> &AcceptCanceller {
        &self.accept_canceller
    }

    /// Waits until the worker is below its limit or closes its listeners.
    pub(crate) async fn next_action(&self) -> ListenerAction {
        poll_fn(|cx| {
            if self.closing.get() {
                return Poll::Ready(ListenerAction::Close);
            }
            self.poll_below_limit(cx).map(|()| ListenerAction::Accept)
        })
        .await
    }

    /// Waits until the worker is below its limit.
    pub(crate) async fn wait_below_limit(&self) {
        poll_fn(|cx| self.poll_below_limit(cx)).await;
    }

    fn poll_below_limit(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.is_full() {
            return Poll::Ready(());
        }
        self.wakers.borrow_mut().push(cx.waker().clone());
        Poll::Pending
    }

    /// Counts an accepted connection.
    pub(crate) fn acquire(self: &Rc<Self>) -> ConnectionPermit {
        self.counters.connections.inc();
        self.active.set(self.active.get() + 1);
        if self.active.get() == self.max {
            self.counters.workers_full.set(1);
            self.accept_canceller.cancel();
            self.log_full();
        }
        ConnectionPermit(Rc::clone(self))
    }

    /// Lets listeners accept what is in their queues, and close, however full the worker is.
    pub(crate) fn close(&self) {
        self.closing.set(true);
        self.accept_canceller.cancel();
        self.wake_listeners();
    }

    fn is_full(&self) -> bool {
        self.active.get() >= self.max
    }

    fn wake_listeners(&self) {
        self.wakers.take().into_iter().for_each(Waker::wake);
    }

    fn log_full(&self) {
        let mut log_limit = self.log_limit.borrow_mut();
        if !log_limit.try_acquire(Instant::now()) {
            return;
        }
        tracing::warn!(
            connections = self.max,
            suppressed = log_limit.take_suppressed(),
            "a worker is full and accepts no connection until one ends: countersign.limits.connections_per_worker, or what \
             the limit on descriptors leaves of it, is reached; countersign_workers_full has how many workers are"
        );
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let limit = &self.0;
        let was_full = limit.is_full();
        limit.active.set(limit.active.get().saturating_sub(1));
        if was_full && !limit.is_full() {
            limit.counters.workers_full.set(0);
            limit.wake_listeners();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;

    use super::*;

    fn next_action(limit: &ConnectionLimit) -> Poll<ListenerAction> {
        pin!(limit.next_action()).as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_full_worker_waits_until_a_connection_closes() {
        let counters = Arc::<Counters>::default();
        let limit = ConnectionLimit::new(2, Arc::clone(&counters));
        let one = limit.acquire();
        assert_eq!(
            (next_action(&limit), counters.workers_full.get()),
            (Poll::Ready(ListenerAction::Accept), 0)
        );
        // The accept of another listener had completed when the worker became full.
        let (two, three) = (limit.acquire(), limit.acquire());
        assert_eq!((next_action(&limit), counters.workers_full.get()), (Poll::Pending, 1));
        drop(one);
        assert_eq!((next_action(&limit), counters.workers_full.get()), (Poll::Pending, 1));
        drop(two);
        assert_eq!(
            (next_action(&limit), counters.workers_full.get()),
            (Poll::Ready(ListenerAction::Accept), 0)
        );
        drop(three);
    }

    #[test]
    fn a_full_worker_closes_at_once_and_serves_its_queue() {
        let limit = ConnectionLimit::new(1, Arc::default());
        let only = limit.acquire();
        assert_eq!(next_action(&limit), Poll::Pending);
        limit.close();
        assert_eq!(next_action(&limit), Poll::Ready(ListenerAction::Close));
        let below_limit =
            || pin!(limit.wait_below_limit()).as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(below_limit().is_pending());
        drop(only);
        assert!(below_limit().is_ready());
    }
}
