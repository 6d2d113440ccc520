//! How many client connections a worker serves at a time. A full worker stops accepting:
//! connections wait in the kernel's queue of its listeners, and are accepted as others end.
//!
//! Invariant: a connection that was accepted is served. Above the limit each listener adds at most
//! two: one whose accept had completed when the worker became full, and one from the queue of a
//! listener that closes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use process::throttle::TokenBucket;

use crate::observability::metrics::Counters;
use crate::runtime::AcceptCanceller;

/// A full worker is one line at once, then one a minute.
const LOG_LIMIT: TokenBucket = TokenBucket::new(1, Duration::from_secs(60));

/// A worker's places for client connections.
pub struct ConnectionLimit {
    max: usize,
    active: Cell<usize>,
    closing: Cell<bool>,
    wakers: RefCell<Vec<Waker>>,
    accepts: AcceptCanceller,
    counters: Arc<Counters>,
    log_limit: RefCell<TokenBucket>,
}

/// A connection's place; dropped, it is free.
pub struct ConnectionPermit(Rc<ConnectionLimit>);

/// What a listener does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerAction {
    /// Accept the next connection.
    Accept,
    /// Accept what is in the queue as places become free, and close.
    Close,
}

impl ConnectionLimit {
    /// Room for `max` connections; at least one.
    pub fn new(max: usize, counters: Arc<Counters>) -> Rc<Self> {
        Rc::new(Self {
            max: max.max(1),
            active: Cell::new(0),
            closing: Cell::new(false),
            wakers: RefCell::default(),
            accepts: AcceptCanceller::default(),
            counters,
            log_limit: RefCell::new(LOG_LIMIT),
        })
    }

    /// Ends the accepts of a worker that is full or closing.
    pub fn accept_interrupt(&self) -> &AcceptCanceller {
        &self.accepts
    }

    /// Waits while the worker is full and not closing.
    pub async fn next_action(&self) -> ListenerAction {
        poll_fn(|cx| {
            if self.closing.get() {
                return Poll::Ready(ListenerAction::Close);
            }
            self.poll_below_limit(cx).map(|()| ListenerAction::Accept)
        })
        .await
    }

    /// Waits while the worker is full.
    pub async fn wait_below_limit(&self) {
        poll_fn(|cx| self.poll_below_limit(cx)).await;
    }

    fn poll_below_limit(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.is_full() {
            return Poll::Ready(());
        }
        self.wakers.borrow_mut().push(cx.waker().clone());
        Poll::Pending
    }

    /// The place of a connection that was accepted.
    pub fn acquire(self: &Rc<Self>) -> ConnectionPermit {
        self.counters.connections.inc();
        self.active.set(self.active.get() + 1);
        if self.active.get() == self.max {
            self.counters.workers_full.set(1);
            self.accepts.cancel();
            self.log_full();
        }
        ConnectionPermit(Rc::clone(self))
    }

    /// From now on listeners accept what is in their queues, and close, however full the worker is.
    pub fn close(&self) {
        self.closing.set(true);
        self.accepts.cancel();
        self.wake_listeners();
    }

    fn is_full(&self) -> bool {
        self.active.get() >= self.max
    }

    fn wake_listeners(&self) {
        self.wakers.take().into_iter().for_each(Waker::wake);
    }

    fn log_full(&self) {
        let mut line = self.log_limit.borrow_mut();
        if !line.try_acquire(Instant::now()) {
            return;
        }
        tracing::warn!(
            connections = self.max,
            earlier = line.take_suppressed(),
            "a worker is full and accepts no connection until one ends: countersign.limits.connections_per_worker, or what \
             the limit on descriptors leaves of it, is reached; countersign_workers_full has how many workers are"
        );
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let admission = &self.0;
        let was_full = admission.is_full();
        admission.active.set(admission.active.get().saturating_sub(1));
        if was_full && !admission.is_full() {
            admission.counters.workers_full.set(0);
            admission.wake_listeners();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;

    use super::*;

    fn turn(admission: &ConnectionLimit) -> Poll<ListenerAction> {
        pin!(admission.next_action()).as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_full_worker_waits_until_a_place_is_free() {
        let counters = Arc::<Counters>::default();
        let admission = ConnectionLimit::new(2, Arc::clone(&counters));
        let one = admission.acquire();
        assert_eq!((turn(&admission), counters.workers_full.get()), (Poll::Ready(ListenerAction::Accept), 0));
        // The third came by another listener, whose accept had completed.
        let (two, three) = (admission.acquire(), admission.acquire());
        assert_eq!((turn(&admission), counters.workers_full.get()), (Poll::Pending, 1));
        drop(one);
        assert_eq!((turn(&admission), counters.workers_full.get()), (Poll::Pending, 1));
        drop(two);
        assert_eq!((turn(&admission), counters.workers_full.get()), (Poll::Ready(ListenerAction::Accept), 0));
        drop(three);
    }

    #[test]
    fn a_full_worker_closes_at_once_and_takes_what_waits() {
        let admission = ConnectionLimit::new(1, Arc::default());
        let only = admission.acquire();
        assert_eq!(turn(&admission), Poll::Pending);
        admission.close();
        assert_eq!(turn(&admission), Poll::Ready(ListenerAction::Close));
        let place =
            || pin!(admission.wait_below_limit()).as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(place().is_pending());
        drop(only);
        assert!(place().is_ready());
    }
}
