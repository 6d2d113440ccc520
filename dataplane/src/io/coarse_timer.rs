//! Coarse timers, for timeouts that many tasks set and that seldom fire: of an upstream's
//! response, of an idle connection.
//!
//! The tick of `timeouts` drives them, so a timer costs an entry in a table, not a timer of the
//! runtime. A timer fires up to two ticks late, never early.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;

/// The resolution of coarse timers and of connection timeouts.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// The number of ticks that last at least `duration`, wherever in a tick they start.
pub(crate) fn to_ticks(duration: Duration) -> u32 {
    let ticks = duration.as_millis().div_ceil(TICK.as_millis());
    u32::try_from(ticks).unwrap_or(u32::MAX).saturating_add(1)
}

/// The coarse timers of a worker, and its clock in ticks.
#[derive(Debug, Default)]
pub(crate) struct CoarseTimers {
    now: Cell<u32>,
    slots: RefCell<Slab<TimerSlot>>,
}

#[derive(Debug)]
struct TimerSlot {
    due: u32,
    waker: Waker,
}

impl CoarseTimers {
    /// Ticks since the worker started. Wraps after 13 years.
    pub(crate) fn current_tick(&self) -> u32 {
        self.now.get()
    }

    /// Whether at least `duration` has passed since a tick; true up to two ticks late.
    pub(crate) fn has_elapsed(&self, since: u32, duration: Duration) -> bool {
        self.current_tick().wrapping_sub(since) >= to_ticks(duration)
    }

    /// A timer that fires after `duration`.
    pub(crate) fn after(self: &Rc<Self>, duration: Duration) -> CoarseTimer {
        let mut timer = CoarseTimer { timers: Rc::clone(self), since: 0, limit: 0, key: None };
        timer.reset(duration);
        timer
    }

    /// Moves the clock, and wakes the tasks of all timers that are due. `passed`: ticks since the
    /// last call, several after a busy time.
    pub(crate) fn advance(&self, passed: u32) {
        let now = self.now.get().wrapping_add(passed);
        self.now.set(now);
        let mut wakers = Vec::new();
        for (_, slot) in self.slots.borrow_mut().iter_mut() {
            // True for one call: a slot stays until its timer is reset or dropped.
            if now.wrapping_sub(slot.due) < passed {
                wakers.push(slot.waker.clone());
            }
        }
        // The borrow ends before the wakes: a task may drop its timer at once.
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// One timer. It does not fire once it is dropped.
#[derive(Debug)]
pub(crate) struct CoarseTimer {
    timers: Rc<CoarseTimers>,
    since: u32,
    limit: u32,
    key: Option<usize>,
}

impl CoarseTimer {
    /// Makes it fire `duration` from now.
    pub(crate) fn reset(&mut self, duration: Duration) {
        self.since = self.timers.current_tick();
        self.limit = to_ticks(duration);
    }

    /// Ready once the timer has fired.
    pub(crate) fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.timers.current_tick().wrapping_sub(self.since) >= self.limit {
            return Poll::Ready(());
        }
        let due = self.since.wrapping_add(self.limit);
        let mut slots = self.timers.slots.borrow_mut();
        let replaced = match self.key.and_then(|key| slots.get_mut(key)) {
            Some(slot) => {
                slot.due = due;
                let other_task = !slot.waker.will_wake(cx.waker());
                other_task.then(|| std::mem::replace(&mut slot.waker, cx.waker().clone()))
            }
            None => {
                self.key = Some(slots.insert(TimerSlot { due, waker: cx.waker().clone() }));
                None
            }
        };
        drop(slots);
        // After the borrow, as in `drop`.
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for CoarseTimer {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let slot = self.timers.slots.borrow_mut().try_remove(key);
            // After the borrow: the last waker of a task drops the task, and perhaps its timers.
            drop(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct WakeCount(AtomicUsize);

    impl WakeCount {
        fn get(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_timer_fires_once_and_never_early() {
        let timers = Rc::<CoarseTimers>::default();
        let wakes = Arc::<WakeCount>::default();
        let waker = Waker::from(Arc::clone(&wakes));
        let cx = Context::from_waker(&waker);
        let mut timer = timers.after(TICK * 2);
        for _ in 0..3 {
            assert_eq!((timer.poll(&cx), wakes.get()), (Poll::Pending, 0));
            timers.advance(1);
        }
        assert_eq!((timer.poll(&cx), wakes.get()), (Poll::Ready(()), 1));
        timers.advance(1);
        assert_eq!(wakes.get(), 1);
        timer.reset(Duration::ZERO);
        assert_eq!(timer.poll(&cx), Poll::Pending);
        timers.advance(1);
        assert_eq!((timer.poll(&cx), wakes.get()), (Poll::Ready(()), 2));
    }

    #[test]
    fn several_ticks_at_once_fire_all_timers_that_are_due() {
        let timers = Rc::<CoarseTimers>::default();
        let wakes = Arc::<WakeCount>::default();
        let waker = Waker::from(Arc::clone(&wakes));
        let cx = Context::from_waker(&waker);
        let (mut first, mut second, mut later) =
            (timers.after(TICK), timers.after(TICK * 4), timers.after(TICK * 60));
        assert!(first.poll(&cx).is_pending() && second.poll(&cx).is_pending());
        assert!(later.poll(&cx).is_pending());
        timers.advance(0);
        assert_eq!(wakes.get(), 0);
        timers.advance(50);
        assert_eq!((wakes.get(), timers.current_tick()), (2, 50));
        assert!(first.poll(&cx).is_ready() && second.poll(&cx).is_ready());
        assert!(later.poll(&cx).is_pending());
    }

    #[test]
    fn a_dropped_timer_does_not_fire() {
        let timers = Rc::<CoarseTimers>::default();
        let wakes = Arc::<WakeCount>::default();
        let waker = Waker::from(Arc::clone(&wakes));
        let cx = Context::from_waker(&waker);
        let mut timer = timers.after(TICK);
        assert_eq!(timer.poll(&cx), Poll::Pending);
        drop(timer);
        assert!(timers.slots.borrow().is_empty());
        timers.advance(1);
        timers.advance(1);
        assert_eq!(wakes.get(), 0);
    }

    #[test]
    fn a_wake_may_drop_another_timer() {
        thread_local! { static OTHER: RefCell<Option<CoarseTimer>> = const { RefCell::new(None) }; }
        // As a task that ends as soon as it is woken.
        struct DropsOther;
        impl Wake for DropsOther {
            fn wake(self: Arc<Self>) {
                OTHER.with_borrow_mut(Option::take);
            }
        }
        let timers = Rc::<CoarseTimers>::default();
        let waker = Waker::from(Arc::new(DropsOther));
        let cx = Context::from_waker(&waker);
        let (mut timer, mut other) = (timers.after(TICK), timers.after(TICK));
        assert!(timer.poll(&cx).is_pending() && other.poll(&cx).is_pending());
        OTHER.set(Some(other));
        timers.advance(1);
        timers.advance(1);
        assert!(OTHER.take().is_none());
        assert_eq!(timers.slots.borrow().len(), 1);
    }
}
