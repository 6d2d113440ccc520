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

use process::throttle::Allowance;

use crate::observability::metrics::Counters;
use crate::runtime::AcceptCanceller;

/// A full worker is one line at once, then one a minute.
const LINE: Allowance = Allowance::new(1, Duration::from_secs(60));

/// A worker's places for client connections.
pub struct Admission {
    max: usize,
    open: Cell<usize>,
    closing: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
    accepts: AcceptCanceller,
    counters: Arc<Counters>,
    line: RefCell<Allowance>,
}

/// A connection's place; dropped, it is free.
pub struct Admitted(Rc<Admission>);

/// What a listener does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Accept the next connection.
    Accept,
    /// Accept what is in the queue as places become free, and close.
    Close,
}

impl Admission {
    /// Room for `max` connections; at least one.
    pub fn new(max: usize, counters: Arc<Counters>) -> Rc<Self> {
        Rc::new(Self {
            max: max.max(1),
            open: Cell::new(0),
            closing: Cell::new(false),
            waiting: RefCell::default(),
            accepts: AcceptCanceller::default(),
            counters,
            line: RefCell::new(LINE),
        })
    }

    /// Ends the accepts of a worker that is full or closing.
    pub fn accepts(&self) -> &AcceptCanceller {
        &self.accepts
    }

    /// Waits while the worker is full and not closing.
    pub async fn turn(&self) -> Turn {
        poll_fn(|cx| {
            if self.closing.get() {
                return Poll::Ready(Turn::Close);
            }
            self.poll_place(cx).map(|()| Turn::Accept)
        })
        .await
    }

    /// Waits while the worker is full.
    pub async fn place(&self) {
        poll_fn(|cx| self.poll_place(cx)).await;
    }

    fn poll_place(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.is_full() {
            return Poll::Ready(());
        }
        self.waiting.borrow_mut().push(cx.waker().clone());
        Poll::Pending
    }

    /// The place of a connection that was accepted.
    pub fn enter(self: &Rc<Self>) -> Admitted {
        self.counters.accepted.add();
        self.open.set(self.open.get() + 1);
        if self.open.get() == self.max {
            self.counters.full.set(1);
            self.accepts.cancel();
            self.tell();
        }
        Admitted(Rc::clone(self))
    }

    /// From now on listeners accept what is in their queues, and close, however full the worker is.
    pub fn close(&self) {
        self.closing.set(true);
        self.accepts.cancel();
        self.wake();
    }

    fn is_full(&self) -> bool {
        self.open.get() >= self.max
    }

    fn wake(&self) {
        self.waiting.take().into_iter().for_each(Waker::wake);
    }

    fn tell(&self) {
        let mut line = self.line.borrow_mut();
        if !line.admits(Instant::now()) {
            return;
        }
        tracing::warn!(
            connections = self.max,
            earlier = line.left_out(),
            "a worker is full and accepts no connection until one ends: countersign.limits.connections_per_worker, or what \
             the limit on descriptors leaves of it, is reached; countersign_workers_full has how many workers are"
        );
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let admission = &self.0;
        let was_full = admission.is_full();
        admission.open.set(admission.open.get().saturating_sub(1));
        if was_full && !admission.is_full() {
            admission.counters.full.set(0);
            admission.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;

    use super::*;

    fn turn(admission: &Admission) -> Poll<Turn> {
        pin!(admission.turn()).as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_full_worker_waits_until_a_place_is_free() {
        let counters = Arc::<Counters>::default();
        let admission = Admission::new(2, Arc::clone(&counters));
        let one = admission.enter();
        assert_eq!((turn(&admission), counters.full.get()), (Poll::Ready(Turn::Accept), 0));
        // The third came by another listener, whose accept had completed.
        let (two, three) = (admission.enter(), admission.enter());
        assert_eq!((turn(&admission), counters.full.get()), (Poll::Pending, 1));
        drop(one);
        assert_eq!((turn(&admission), counters.full.get()), (Poll::Pending, 1));
        drop(two);
        assert_eq!((turn(&admission), counters.full.get()), (Poll::Ready(Turn::Accept), 0));
        drop(three);
    }

    #[test]
    fn a_full_worker_closes_at_once_and_takes_what_waits() {
        let admission = Admission::new(1, Arc::default());
        let only = admission.enter();
        assert_eq!(turn(&admission), Poll::Pending);
        admission.close();
        assert_eq!(turn(&admission), Poll::Ready(Turn::Close));
        let place = || pin!(admission.place()).as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(place().is_pending());
        drop(only);
        assert!(place().is_ready());
    }
}
