//! Graceful drain of one worker: open connections may finish, and the worker waits for them.
//!
//! A connection enters the [`Drain`] and holds a [`DrainGuard`], which tells it when the worker
//! drains or when this connection alone is to drain ([`DrainHandle`]). The worker waits on
//! [`Drain::wait_idle`]. Local to its thread: no locks, no atomics.
//!
//! After a hand-over there is no hurry ([`DrainMode::HandedOver`]): an idle HTTP/1 connection stays
//! open, because its client may just be sending a request that it would not repeat, and a silent
//! TCP connection is not cut.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// Why a worker drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DrainMode {
    /// A successor accepts the connections of clients.
    HandedOver,
    /// The process stops.
    Stop,
}

/// The drain of one worker, with the connections it waits for.
#[derive(Default)]
pub(crate) struct Drain {
    begun: Cell<Option<DrainMode>>,
    entries: RefCell<Slab<DrainEntry>>,
    idle_waker: RefCell<Option<Waker>>,
}

#[derive(Default)]
struct DrainEntry {
    /// This connection drains, whether or not the worker does.
    draining: bool,
    waker: Option<Waker>,
}

/// Drains one connection. It names the entry of the connection's [`DrainGuard`] and must be dropped
/// before that guard.
pub(crate) struct DrainHandle {
    drain: Rc<Drain>,
    key: usize,
}

impl DrainHandle {
    /// The connection finishes its requests in flight, takes no new one, and closes.
    pub(crate) fn drain(&self) {
        let waker = self.drain.entries.borrow_mut().get_mut(self.key).and_then(|entry| {
            entry.draining = true;
            entry.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// One entered connection, or another task that the drain waits for, until it is dropped.
pub(crate) struct DrainGuard {
    drain: Rc<Drain>,
    key: usize,
}

impl Drain {
    /// Drains all connections. A stop may follow a hand-over.
    pub(crate) fn begin(&self, mode: DrainMode) {
        self.begun.set(self.begun.get().max(Some(mode)));
        let wakers: Vec<Waker> =
            self.entries.borrow_mut().iter_mut().filter_map(|(_, entry)| entry.waker.take()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The number of entered connections.
    pub(crate) fn active(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Enters a connection.
    pub(crate) fn enter(self: &Rc<Self>) -> DrainGuard {
        let key = self.entries.borrow_mut().insert(DrainEntry::default());
        DrainGuard { drain: Rc::clone(self), key }
    }

    /// Waits until no connection is entered. One waiter at a time.
    pub(crate) async fn wait_idle(&self) {
        poll_fn(|cx| {
            if self.active() == 0 {
                return Poll::Ready(());
            }
            *self.idle_waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl DrainGuard {
    /// Ready once the worker or this connection drains.
    pub(crate) fn poll_draining(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_mode(DrainMode::HandedOver, cx)
    }

    /// The same, but not for a hand-over: ready once the process stops or this connection drains.
    pub(crate) fn poll_stopping(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_mode(DrainMode::Stop, cx)
    }

    fn poll_mode(&self, mode: DrainMode, cx: &mut Context<'_>) -> Poll<()> {
        if self.drain.begun.get() >= Some(mode) {
            return Poll::Ready(());
        }
        if let Some(entry) = self.drain.entries.borrow_mut().get_mut(self.key) {
            if entry.draining {
                return Poll::Ready(());
            }
            if !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                entry.waker = Some(cx.waker().clone());
            }
        }
        Poll::Pending
    }

    /// A handle that drains this connection.
    pub(crate) fn handle(&self) -> DrainHandle {
        DrainHandle { drain: Rc::clone(&self.drain), key: self.key }
    }
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        self.drain.entries.borrow_mut().try_remove(self.key);
        if self.drain.active() == 0
            && let Some(waker) = self.drain.idle_waker.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;

    use futures_util::task::noop_waker;

    use super::*;

    #[test]
    fn drain_reaches_entered_connections_and_waits_for_them() {
        let drain = Rc::new(Drain::default());
        let guard = drain.enter();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(guard.poll_draining(&mut cx).is_pending());
        drain.begin(DrainMode::HandedOver);
        assert!(guard.poll_draining(&mut cx).is_ready());
        assert!(guard.poll_stopping(&mut cx).is_pending());
        drain.begin(DrainMode::Stop);
        assert!(guard.poll_stopping(&mut cx).is_ready());
        drain.begin(DrainMode::HandedOver);
        assert!(guard.poll_stopping(&mut cx).is_ready(), "a stop stays one");
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let mut idle = pin!(drain.wait_idle());
        assert!(idle.as_mut().poll(&mut cx).is_pending());
        drop(guard);
        assert!(idle.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn a_handle_drains_its_connection_alone() {
        let drain = Rc::new(Drain::default());
        let (one, other) = (drain.enter(), drain.enter());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(one.poll_draining(&mut cx).is_pending() && other.poll_draining(&mut cx).is_pending());
        one.handle().drain();
        assert!(one.poll_draining(&mut cx).is_ready() && other.poll_draining(&mut cx).is_pending());
        assert_eq!(drain.begun.get(), None);
        drop(one);
        assert!(drain.enter().poll_draining(&mut cx).is_pending(), "a reused entry does not drain");
    }
}
