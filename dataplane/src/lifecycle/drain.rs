//! Graceful stop: what runs may finish, nothing new begins, and there is a deadline.
//!
//! One `Drain` a worker. A connection enters it and holds a [`Running`], through which it hears
//! that the stop has begun, or that it alone is to finish ([`Notice`]); the worker waits for
//! [`Drain::idle`]. Local to its thread: no lock, no atomics.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// A worker's stop signal and the list of what runs on it.
#[derive(Default)]
pub struct Drain {
    begun: Cell<bool>,
    entries: RefCell<Slab<DrainEntry>>,
    idle_waker: RefCell<Option<Waker>>,
}

/// What the drain knows of one running connection.
#[derive(Default)]
struct DrainEntry {
    /// It alone is to finish.
    draining: bool,
    waker: Option<Waker>,
}

/// Tells one connection to finish. It holds the place of the connection's [`Running`] and must be
/// dropped before that.
pub struct DrainHandle {
    drain: Rc<Drain>,
    key: usize,
}

impl DrainHandle {
    /// The connection finishes what is under way, takes nothing new, and ends.
    pub fn drain(&self) {
        let waker = self.drain.entries.borrow_mut().get_mut(self.key).and_then(|slot| {
            slot.draining = true;
            slot.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// One running connection; dropping it tells the drain that it is over.
pub struct DrainGuard {
    drain: Rc<Drain>,
    key: usize,
}

impl Drain {
    /// Begins the stop: every running connection is told.
    pub fn begin(&self) {
        self.begun.set(true);
        let wakers: Vec<Waker> =
            self.entries.borrow_mut().iter_mut().filter_map(|(_, slot)| slot.waker.take()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether the stop has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// How many connections run now.
    pub fn active(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Counts a connection in.
    pub fn enter(self: &Rc<Self>) -> DrainGuard {
        let key = self.entries.borrow_mut().insert(DrainEntry::default());
        DrainGuard { drain: Rc::clone(self), key }
    }

    /// Waits until nothing runs any more. One waiter.
    pub async fn wait_idle(&self) {
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
    /// Ready once the stop has begun, or this connection was told to finish.
    pub fn poll_draining(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.drain.has_begun() {
            return Poll::Ready(());
        }
        if let Some(slot) = self.drain.entries.borrow_mut().get_mut(self.key) {
            if slot.draining {
                return Poll::Ready(());
            }
            if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                slot.waker = Some(cx.waker().clone());
            }
        }
        Poll::Pending
    }

    /// What tells this connection to finish.
    pub fn handle(&self) -> DrainHandle {
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
    fn the_stop_reaches_what_runs_and_waits_for_it() {
        let drain = Rc::new(Drain::default());
        let running = drain.enter();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(running.poll_draining(&mut cx).is_pending());
        drain.begin();
        assert!(running.poll_draining(&mut cx).is_ready());
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let mut idle = pin!(drain.wait_idle());
        assert!(idle.as_mut().poll(&mut cx).is_pending());
        drop(running);
        assert!(idle.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn one_connection_is_told_and_the_others_are_not() {
        let drain = Rc::new(Drain::default());
        let (one, other) = (drain.enter(), drain.enter());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(one.poll_draining(&mut cx).is_pending() && other.poll_draining(&mut cx).is_pending());
        one.handle().drain();
        assert!(one.poll_draining(&mut cx).is_ready() && other.poll_draining(&mut cx).is_pending());
        assert!(!drain.has_begun());
        drop(one);
        assert!(drain.enter().poll_draining(&mut cx).is_pending(), "the next one in its place is not told");
    }
}
