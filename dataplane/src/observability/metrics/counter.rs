//! Counters and gauges of one thread.
//!
//! Invariant: one thread writes each of them, and any may read it. So a write is a load and a
//! store, which cost no more than those of a plain number, and no core waits for another.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;

/// A monotonic counter, which one thread writes.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// Adds `n`.
    pub fn inc_by(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    /// Takes over a total that is counted elsewhere.
    pub fn set(&self, total: u64) {
        self.0.store(total, Ordering::Relaxed);
    }

    /// The total.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A gauge, which one thread writes.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Adds one until the guard is dropped, on the same thread.
    pub fn track(&self) -> GaugeGuard<'_> {
        self.inc();
        GaugeGuard(self)
    }

    /// Adds one. Where a guard cannot borrow the gauge.
    pub fn inc(&self) {
        self.set(self.get().wrapping_add(1));
    }

    /// Subtracts one.
    pub fn dec(&self) {
        self.set(self.get().wrapping_sub(1));
    }

    /// Sets the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One tracked item of a [`Gauge`].
#[must_use = "dropping the guard ends the tracking"]
#[derive(Debug)]
pub struct GaugeGuard<'a>(&'a Gauge);

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The first status code that has no counter of its own.
const CODE_END: u16 = 600;
/// The status codes of a class.
const CLASS_SIZE: u16 = 100;

/// A counter for each status code from 100 to 599, and one for all others. The counters of a class
/// exist once a code of it has been counted.
#[derive(Debug, Default)]
pub struct CodeCounters {
    classes: [OnceLock<Box<[Counter]>>; 5],
    other: Counter,
}

impl CodeCounters {
    /// Counts a response with this status.
    pub fn inc(&self, status: StatusCode) {
        let code = status.as_u16();
        let (class, index) = (usize::from(code / CLASS_SIZE).wrapping_sub(1), usize::from(code % CLASS_SIZE));
        let counters = self
            .classes
            .get(class)
            .map(|class| class.get_or_init(|| (0..CLASS_SIZE).map(|_| Counter::default()).collect()));
        counters.and_then(|counters| counters.get(index)).unwrap_or(&self.other).inc();
    }

    /// Every code with a count; `None` is the codes beyond 599.
    pub fn counts(&self) -> impl Iterator<Item = (Option<u16>, u64)> {
        let codes = (CLASS_SIZE..CODE_END).step_by(usize::from(CLASS_SIZE)).zip(&self.classes);
        let counted = codes.filter_map(|(first, class)| Some((first, class.get()?)));
        counted
            .flat_map(|(first, counters)| (first..).zip(counters.iter()))
            .map(|(code, counter)| (Some(code), counter.get()))
            .chain([(None, self.other.get())])
            .filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_counts_until_its_guard_is_dropped() {
        let gauge = Gauge::default();
        let guards = [gauge.track(), gauge.track()];
        assert_eq!(gauge.get(), 2);
        drop(guards);
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn each_status_code_is_counted_and_their_number_is_bounded() {
        let counters = CodeCounters::default();
        assert_eq!(counters.counts().count(), 0);
        for code in 100..1000 {
            counters.inc(StatusCode::from_u16(code).unwrap());
        }
        counters.inc(StatusCode::OK);
        let counts: Vec<_> = counters.counts().collect();
        assert_eq!(counts.len(), 501);
        assert_eq!((counts[0], counts[100], counts[499]), ((Some(100), 1), (Some(200), 2), (Some(599), 1)));
        assert_eq!(counts[500], (None, 400));
    }
}
