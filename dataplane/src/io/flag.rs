//! A flag that one task raises and another one waits for. Local to its thread: no lock, no atomics.
//!
//! Invariant: a raised flag stays raised, and the task that polled it last is woken once.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};

/// A flag.
#[derive(Default)]
pub struct Flag {
    raised: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Flag {
    /// Ready once it is raised. For one task.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if self.raised.get() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Raises it.
    pub fn raise(&self) {
        self.raised.set(true);
        // Outside of the borrow: a waker may run its task at once.
        let waiting = self.waiting.take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}
