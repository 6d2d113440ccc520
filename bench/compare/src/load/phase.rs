//! One phase of a run: the operations left, and the results so far.
//!
//! The lanes of the one thread share it in cells. A phase without a single success stops after some
//! failures.

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many operations, failed ones included.
    Count(u64),
    /// Operations start for this long.
    Time(Duration),
}

impl Amount {
    /// Why a complete run ended.
    pub fn stopped(self) -> Stopped {
        match self {
            Self::Count(_) => Stopped::Count,
            Self::Time(_) => Stopped::Time,
        }
    }
}

/// The latency of one successful operation.
pub(super) struct Sample {
    /// From the first packet to the last byte of the response.
    pub total: Duration,
    /// TCP and TLS together, when the operation had a handshake.
    pub handshake: Option<Duration>,
}

impl Sample {
    /// Counts a wait before the operation as part of it.
    pub(super) fn after(self, waited: Duration) -> Self {
        Self { total: self.total + waited, handshake: self.handshake }
    }
}

/// The results of a phase.
pub(super) struct Meter {
    /// Latencies of whole operations.
    pub total: Histogram<u64>,
    /// Latencies of their handshakes.
    pub handshake: Histogram<u64>,
    pub failures: Failures,
}

impl Default for Meter {
    fn default() -> Self {
        Self { total: latencies(), handshake: latencies(), failures: Failures::default() }
    }
}

/// Longer latencies count as this one, in nanoseconds: an hour.
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

pub(super) struct Phase {
    left: Cell<u64>,
    until: Instant,
    timeout: Duration,
    limit: Instant,
    started: Instant,
    pub meter: RefCell<Meter>,
}

impl Phase {
    /// Starts now.
    pub(super) fn new(amount: Amount, timeout: Duration, limit: Duration) -> Self {
        let started = Instant::now();
        let limit = started + limit;
        let (left, until) = match amount {
            Amount::Count(count) => (count, limit),
            Amount::Time(time) => (u64::MAX, (started + time).min(limit)),
        };
        Self { left: Cell::new(left), until, timeout, limit, started, meter: RefCell::default() }
    }

    /// Whether one more operation may start.
    pub(super) fn take(&self) -> bool {
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
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The hard limit of the phase.
    pub(super) fn limit(&self) -> Instant {
        self.limit
    }

    /// Counts one operation.
    pub(super) fn count(&self, outcome: Result<Sample, Failure>) {
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

/// Prints progress to standard error: each second over itself on a terminal, else each 10 s.
pub(super) async fn tick(phase: Rc<Phase>, label: String) {
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
        // Without a reader of standard error the measurement goes on.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// Clears the progress line of a terminal.
pub(super) fn end_line() {
    if std::io::stderr().is_terminal() {
        let _ = std::io::stderr().write_all(b"\r\x1b[K");
    }
}
