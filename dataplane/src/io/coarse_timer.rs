//! Coarse alarms, for what many wait for at once and hardly ever comes true: a pause of an
//! upstream, a connection at rest.
//!
//! The watchdog rings them, once a tick: setting an alarm costs a place in a table, not a timer of
//! the runtime's. What a connection's client may take has no alarm of its own; the watchdog sees to
//! it by itself.
//!
//! Precision: an alarm rings up to two ticks late, never early.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;

/// How often the watchdog looks.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// A time limit in ticks, so that what is over it has lasted at least as long.
pub(crate) fn to_ticks(limit: Duration) -> u32 {
    u32::try_from(limit.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u32::MAX).saturating_add(1)
}

/// A worker's alarms, and its coarse time.
#[derive(Debug, Default)]
pub struct CoarseTimers {
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
    pub fn current_tick(&self) -> u32 {
        self.now.get()
    }

    /// Whether at least so long has passed since that tick; it may have been for up to two ticks
    /// more.
    pub fn has_elapsed(&self, since: u32, duration: Duration) -> bool {
        self.current_tick().wrapping_sub(since) >= to_ticks(duration)
    }

    /// One that rings after `duration`.
    pub fn after(self: &Rc<Self>, duration: Duration) -> CoarseTimer {
        let mut alarm = CoarseTimer { timers: Rc::clone(self), since: 0, limit: 0, key: None };
        alarm.reset(duration);
        alarm
    }

    /// So many ticks have passed since the last call: a worker that was busy is late, and its time
    /// is not.
    pub fn advance(&self, passed: u32) {
        let now = self.now.get().wrapping_add(passed);
        self.now.set(now);
        let mut ringing = Vec::new();
        for (_, set) in self.slots.borrow_mut().iter_mut() {
            // Rings once; who polls it again says what to wait for then.
            if now.wrapping_sub(set.due) < passed {
                ringing.push(set.waker.clone());
            }
        }
        // Not before the table is free again: what is woken may drop its alarm at once.
        ringing.into_iter().for_each(Waker::wake);
    }
}

/// One alarm. Dropped, it does not ring.
#[derive(Debug)]
pub struct CoarseTimer {
    timers: Rc<CoarseTimers>,
    since: u32,
    limit: u32,
    key: Option<usize>,
}

impl CoarseTimer {
    /// Sets it to ring `duration` from now.
    pub fn reset(&mut self, duration: Duration) {
        self.since = self.timers.current_tick();
        self.limit = to_ticks(duration);
    }

    /// Ready once the time has passed.
    pub fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.timers.current_tick().wrapping_sub(self.since) >= self.limit {
            return Poll::Ready(());
        }
        let due = self.since.wrapping_add(self.limit);
        let mut table = self.timers.slots.borrow_mut();
        let replaced = match self.key.and_then(|key| table.get_mut(key)) {
            Some(set) => {
                set.due = due;
                let other = !set.waker.will_wake(cx.waker());
                other.then(|| std::mem::replace(&mut set.waker, cx.waker().clone()))
            }
            None => {
                self.key = Some(table.insert(TimerSlot { due, waker: cx.waker().clone() }));
                None
            }
        };
        drop(table);
        // Outside of the borrow, as below.
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for CoarseTimer {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let removed = self.timers.slots.borrow_mut().try_remove(key);
            // Outside of the borrow: the last waker of a task ends the task, and with it perhaps an alarm.
            drop(removed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Rung(AtomicUsize);

    impl std::task::Wake for Rung {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn it_rings_once_and_never_early() {
        let alarms = Rc::<CoarseTimers>::default();
        let rung = Arc::<Rung>::default();
        let waker = Waker::from(Arc::clone(&rung));
        let cx = Context::from_waker(&waker);
        let mut alarm = alarms.after(TICK * 2);
        for _ in 0..3 {
            assert_eq!((alarm.poll(&cx), rung.0.load(Ordering::Relaxed)), (Poll::Pending, 0));
            alarms.advance(1);
        }
        assert_eq!((alarm.poll(&cx), rung.0.load(Ordering::Relaxed)), (Poll::Ready(()), 1));
        alarms.advance(1);
        assert_eq!(rung.0.load(Ordering::Relaxed), 1);
        alarm.reset(Duration::ZERO);
        assert_eq!(alarm.poll(&cx), Poll::Pending);
        alarms.advance(1);
        assert_eq!((alarm.poll(&cx), rung.0.load(Ordering::Relaxed)), (Poll::Ready(()), 2));
    }

    #[test]
    fn several_ticks_at_once_ring_all_that_are_due() {
        let alarms = Rc::<CoarseTimers>::default();
        let rung = Arc::<Rung>::default();
        let waker = Waker::from(Arc::clone(&rung));
        let cx = Context::from_waker(&waker);
        let (mut one, mut two, mut late) =
            (alarms.after(TICK), alarms.after(TICK * 4), alarms.after(TICK * 60));
        assert!(one.poll(&cx).is_pending() && two.poll(&cx).is_pending() && late.poll(&cx).is_pending());
        alarms.advance(0);
        assert_eq!(rung.0.load(Ordering::Relaxed), 0);
        alarms.advance(50);
        assert_eq!((rung.0.load(Ordering::Relaxed), alarms.current_tick()), (2, 50));
        assert!(one.poll(&cx).is_ready() && two.poll(&cx).is_ready() && late.poll(&cx).is_pending());
    }

    #[test]
    fn one_that_is_gone_is_forgotten() {
        let alarms = Rc::<CoarseTimers>::default();
        let rung = Arc::<Rung>::default();
        let waker = Waker::from(Arc::clone(&rung));
        let cx = Context::from_waker(&waker);
        let mut alarm = alarms.after(TICK);
        assert_eq!(alarm.poll(&cx), Poll::Pending);
        drop(alarm);
        assert!(alarms.slots.borrow().is_empty());
        alarms.advance(1);
        alarms.advance(1);
        assert_eq!(rung.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_alarm_may_go_while_others_ring() {
        struct Holder(std::cell::RefCell<Option<CoarseTimer>>);
        // A waker that drops an alarm when it wakes: what a task that ends at once does.
        thread_local! { static HELD: Holder = const { Holder(RefCell::new(None)) }; }
        struct Ends;
        impl std::task::Wake for Ends {
            fn wake(self: Arc<Self>) {
                HELD.with(|held| held.0.borrow_mut().take());
            }
        }
        let alarms = Rc::<CoarseTimers>::default();
        let waker = Waker::from(Arc::new(Ends));
        let cx = Context::from_waker(&waker);
        let (mut one, mut other) = (alarms.after(TICK), alarms.after(TICK));
        assert!(one.poll(&cx).is_pending() && other.poll(&cx).is_pending());
        HELD.with(|held| held.0.replace(Some(other)));
        alarms.advance(1);
        alarms.advance(1);
        HELD.with(|held| assert!(held.0.borrow().is_none()));
        assert_eq!(alarms.slots.borrow().len(), 1);
    }
}
