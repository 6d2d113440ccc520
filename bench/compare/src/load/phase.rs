//! One phase of a run: how much is left to do, and what came out of it.
//!
//! Shared by all workers of the one thread, so plain cells are enough. A phase that only fails stops early:
//! thousands of refused connections say no more than fifty do.

use std::cell::{Cell, RefCell};
use std::io::{IsTerminal, Write};
use std::rc::Rc;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;

use crate::failure::{Failure, Failures};
use crate::report::Stopped;

/// Failures without a single success after which a phase gives up.
const HOPELESS: u64 = 50;

/// How much to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many operations, failed ones included.
    Count(u64),
    /// Operations are started for so long.
    Time(Duration),
}

impl Amount {
    /// Why a run that did it all came to its end.
    pub fn stopped(self) -> Stopped {
        match self {
            Self::Count(_) => Stopped::Count,
            Self::Time(_) => Stopped::Time,
        }
    }
}

/// What one successful operation took.
pub struct Sample {
    /// From the first packet to the last byte of the answer.
    pub total: Duration,
    /// TCP and TLS together, when the operation had a handshake.
    pub handshake: Option<Duration>,
}

impl Sample {
    /// The same, measured from so long before it started.
    pub fn after(self, waited: Duration) -> Self {
        Self { total: self.total + waited, handshake: self.handshake }
    }
}

/// What came out of a phase.
pub struct Meter {
    /// Whole operations.
    pub total: Histogram<u64>,
    /// Their handshakes.
    pub handshake: Histogram<u64>,
    /// What failed.
    pub failures: Failures,
}

impl Default for Meter {
    fn default() -> Self {
        Self { total: latencies(), handshake: latencies(), failures: Failures::default() }
    }
}

/// The longest latency that is counted as it was, in nanoseconds: an hour.
const LATENCY_MAX: u64 = 3_600_000_000_000;

/// An empty histogram of nanoseconds, to three significant digits.
pub fn latencies() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "the bounds are constants that a histogram can hold")]
    Histogram::new_with_bounds(1, LATENCY_MAX, 3).expect("valid bounds")
}

/// A duration as a histogram of nanoseconds counts it.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// One phase.
pub struct Phase {
    left: Cell<u64>,
    until: Instant,
    timeout: Duration,
    limit: Instant,
    started: Instant,
    /// What came out so far.
    pub meter: RefCell<Meter>,
}

impl Phase {
    /// Starts now.
    pub fn new(amount: Amount, timeout: Duration, limit: Duration) -> Self {
        let started = Instant::now();
        let limit = started + limit;
        let (left, until) = match amount {
            Amount::Count(count) => (count, limit),
            Amount::Time(time) => (u64::MAX, (started + time).min(limit)),
        };
        Self { left: Cell::new(left), until, timeout, limit, started, meter: RefCell::default() }
    }

    /// True when one more operation may start.
    pub fn take(&self) -> bool {
        let left = self.left.get();
        if left == 0 || Instant::now() >= self.until {
            return false;
        }
        let meter = self.meter.borrow();
        if meter.total.is_empty() && meter.failures.total() >= HOPELESS {
            return false;
        }
        self.left.set(left - 1);
        true
    }

    /// Limit of a single operation.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// When everything ends, done or not.
    pub fn limit(&self) -> Instant {
        self.limit
    }

    /// Counts one operation.
    pub fn count(&self, outcome: Result<Sample, Failure>) {
        let mut meter = self.meter.borrow_mut();
        match outcome {
            Ok(sample) => {
                meter.total.saturating_record(nanos(sample.total));
                if let Some(handshake) = sample.handshake {
                    meter.handshake.saturating_record(nanos(handshake));
                }
            }
            Err(failure) => meter.failures.add(failure),
        }
    }
}

/// Tells on stderr once a second how far a phase is: over itself on a terminal, else a line every 10 s.
pub async fn tick(phase: Rc<Phase>, label: String) {
    let terminal = std::io::stderr().is_terminal();
    let every = Duration::from_secs(if terminal { 1 } else { 10 });
    let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
    let mut last = (Instant::now(), 0);
    loop {
        let now = ticks.tick().await;
        let (done, failed) = {
            let meter = phase.meter.borrow();
            (meter.total.len(), meter.failures.total())
        };
        let rate = (done - last.1) as f64 / now.duration_since(last.0).as_secs_f64();
        last = (now, done);
        let seconds = now.duration_since(phase.started).as_secs();
        let (start, end) = if terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        let line = format!("{start}{label}: {seconds} s, {done} done, {failed} failed, {rate:.0}/s{end}");
        // Nobody reads stderr: no reason to stop measuring.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// Leaves the progress line of a terminal.
pub fn end_line() {
    if std::io::stderr().is_terminal() {
        let _ = std::io::stderr().write_all(b"\r\x1b[K");
    }
}
