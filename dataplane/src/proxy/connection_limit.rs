//! The limit on the client connections of a worker. A full worker stops accepting: new connections
//! wait in the kernel's accept queues until others close.
//!
//! Invariant: an accepted connection is served. Above the limit each listener adds one at most,
//! from its queue when it closes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use process::throttle::TokenBucket;

use crate::observability::metrics::Counters;

/// One line when a worker becomes full, then one a minute.
const LOG_LIMIT: TokenBucket = TokenBucket::new(1, Duration::from_secs(60));

/// The connection limit of one worker.
pub(crate) struct ConnectionLimit {
    max: Cell<usize>,
    active: Cell<usize>,
    wakers: RefCell<Vec<Waker>>,
    counters: Arc<Counters>,
    log_limit: RefCell<TokenBucket>,
}

/// One connection of the limit, until it is dropped.
pub(crate) struct ConnectionPermit(Rc<ConnectionLimit>);

impl ConnectionLimit {
    /// A limit of `max` connections, at least one.
    pub(crate) fn new(max: usize, counters: Arc<Counters>) -> Rc<Self> {
        Rc::new(Self {
            max: Cell::new(max.max(1)),
            active: Cell::new(0),
            wakers: RefCell::default(),
            counters,
            log_limit: RefCell::new(LOG_LIMIT),
        })
    }

    /// Changes the limit. Connections above a lower one go on.
    pub(crate) fn set_max(&self, max: usize) {
        let was_full = self.is_full();
        self.max.set(max.max(1));
        self.counters.workers_full.set(self.is_full().into());
        if was_full && !self.is_full() {
            self.wake_listeners();
        }
    }

    /// Waits until the worker is below its limit.
    pub(crate) async fn wait_below_limit(&self) {
        poll_fn(|cx| self.poll_below_limit(cx)).await;
    }

    /// Ready while the worker is below its limit.
    pub(crate) fn poll_below_limit(&self, cx: &Context<'_>) -> Poll<()> {
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
        if self.active.get() == self.max.get() {
            self.counters.workers_full.set(1);
            self.log_full();
        }
        ConnectionPermit(Rc::clone(self))
    }

    fn is_full(&self) -> bool {
        self.active.get() >= self.max.get()
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
            connections = self.max.get(),
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
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn is_below(limit: &ConnectionLimit) -> bool {
        limit.poll_below_limit(&Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_full_worker_waits_until_a_connection_closes() {
        let counters = Arc::<Counters>::default();
        let limit = ConnectionLimit::new(2, Arc::clone(&counters));
        let one = limit.acquire();
        assert_eq!((is_below(&limit), counters.workers_full.get()), (true, 0));
        // From the queue of a listener that closes.
        let (two, three) = (limit.acquire(), limit.acquire());
        assert_eq!((is_below(&limit), counters.workers_full.get()), (false, 1));
        drop(one);
        assert_eq!((is_below(&limit), counters.workers_full.get()), (false, 1));
        drop(two);
        assert_eq!((is_below(&limit), counters.workers_full.get()), (true, 0));
        drop(three);
    }

    #[test]
    fn another_limit_applies_at_once() {
        let counters = Arc::<Counters>::default();
        let limit = ConnectionLimit::new(1, Arc::clone(&counters));
        let _open = limit.acquire();
        let mut waiting = pin!(limit.wait_below_limit());
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(Arc::clone(&woken));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        limit.set_max(2);
        assert!(woken.0.load(Ordering::Relaxed) && is_below(&limit) && counters.workers_full.get() == 0);
        limit.set_max(1);
        assert_eq!((is_below(&limit), counters.workers_full.get()), (false, 1));
    }
}
