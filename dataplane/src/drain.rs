//! Graceful stop: what runs may finish, nothing new begins, and there is a deadline.
//!
//! One `Drain` a worker. A connection enters it and holds a [`Running`], through which it hears that the stop
//! has begun; the worker waits for [`Drain::idle`]. Local to its thread: no lock, no atomics.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use slab::Slab;

/// A worker's stop signal and the list of what runs on it.
#[derive(Default)]
pub struct Drain {
    begun: Cell<bool>,
    running: RefCell<Slab<Option<Waker>>>,
    idle: RefCell<Option<Waker>>,
}

/// One running connection; dropping it tells the drain that it is over.
pub struct Running {
    drain: Rc<Drain>,
    key: usize,
}

impl Drain {
    /// Begins the stop: every running connection is told.
    pub fn begin(&self) {
        self.begun.set(true);
        let wakers: Vec<Waker> =
            self.running.borrow_mut().iter_mut().filter_map(|(_, waker)| waker.take()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether the stop has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// How many connections run now.
    pub fn running(&self) -> usize {
        self.running.borrow().len()
    }

    /// Counts a connection in.
    pub fn enter(self: &Rc<Self>) -> Running {
        let key = self.running.borrow_mut().insert(None);
        Running { drain: Rc::clone(self), key }
    }

    /// Waits until nothing runs any more. One waiter.
    pub async fn idle(&self) {
        poll_fn(|cx| {
            if self.running() == 0 {
                return Poll::Ready(());
            }
            *self.idle.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Running {
    /// Ready once the stop has begun.
    pub fn poll_begun(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.drain.has_begun() {
            return Poll::Ready(());
        }
        if let Some(slot) = self.drain.running.borrow_mut().get_mut(self.key)
            && !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *slot = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.drain.running.borrow_mut().try_remove(self.key);
        if self.drain.running() == 0
            && let Some(waker) = self.drain.idle.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin};

    use futures_util::task::noop_waker;

    use super::*;

    #[test]
    fn the_stop_reaches_what_runs_and_waits_for_it() {
        let drain = Rc::new(Drain::default());
        let running = drain.enter();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(running.poll_begun(&mut cx).is_pending());
        drain.begin();
        assert!(running.poll_begun(&mut cx).is_ready());
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let mut idle = pin!(drain.idle());
        assert!(idle.as_mut().poll(&mut cx).is_pending());
        drop(running);
        assert!(idle.as_mut().poll(&mut cx).is_ready());
    }
}
