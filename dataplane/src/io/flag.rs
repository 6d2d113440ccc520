//! A flag that one task raises and another task waits for, without a lock or an atomic.
//!
//! Invariant: a raised flag stays raised until it is lowered, and wakes the task that polled it
//! last once.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};

/// An event of a worker.
#[derive(Default)]
pub(crate) struct Flag {
    raised: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Flag {
    /// Ready once the flag is raised. Only one task may poll it.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if self.raised.get() {
            return Poll::Ready(());
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The next poll waits again.
    pub(crate) fn lower(&self) {
        self.raised.set(false);
    }

    pub(crate) fn raise(&self) {
        self.raised.set(true);
        // The borrow ends before the wake, which may run the task at once.
        let waker = self.waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
