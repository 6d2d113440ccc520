//! Rate limits for log lines, so that a peer that causes them cannot fill the disk.
//!
//! A token bucket: a burst is written in full, then one line per interval. Suppressed lines are
//! counted; the next written line reports their number.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The rate limit of one kind of line, for one thread.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    burst: u32,
    interval: Duration,
    /// When `spent` was last reduced.
    refilled_at: Option<Instant>,
    /// Lines written whose tokens are not refilled yet.
    spent: u32,
    suppressed: u64,
}

impl TokenBucket {
    /// Allows `burst` lines at once, and one more per `interval` (at least a millisecond).
    pub const fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, refilled_at: None, spent: 0, suppressed: 0 }
    }

    /// Whether a line may be written now; otherwise counts it as suppressed.
    pub fn try_acquire(&mut self, now: Instant) -> bool {
        let since = *self.refilled_at.get_or_insert(now);
        let interval = self.interval.as_millis().max(1);
        let earned = now.saturating_duration_since(since).as_millis() / interval;
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        self.spent = self.spent.saturating_sub(earned);
        self.refilled_at = Some(if self.spent == 0 { now } else { since + self.interval * earned });
        let admitted = self.spent < self.burst;
        if admitted {
            self.spent += 1;
        } else {
            self.suppressed += 1;
        }
        admitted
    }

    /// The number of lines suppressed since the last call.
    pub fn take_suppressed(&mut self) -> u64 {
        std::mem::take(&mut self.suppressed)
    }
}

/// A rate limit shared by all threads, as a `static` beside its log line.
#[derive(Debug)]
pub struct LogThrottle(Mutex<TokenBucket>);

impl LogThrottle {
    /// As [`TokenBucket::new`].
    pub const fn new(burst: u32, interval: Duration) -> Self {
        Self(Mutex::new(TokenBucket::new(burst, interval)))
    }

    /// `Some` when a line may be written now, with the number of lines suppressed before it.
    pub fn try_acquire(&self) -> Option<u64> {
        let mut allowance = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        allowance.try_acquire(Instant::now()).then(|| allowance.take_suppressed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_then_one_line_per_interval() {
        const STEP: Duration = Duration::from_millis(100);
        let (mut allowance, start) = (TokenBucket::new(3, STEP), Instant::now());
        let mut written = |now| (0..10).filter(|_| allowance.try_acquire(now)).count();
        assert_eq!((written(start), written(start)), (3, 0));
        assert_eq!(written(start + STEP * 3 / 2), 1);
        assert_eq!(written(start + STEP * 2), 1, "a begun interval is not lost");
        assert_eq!(written(start + STEP * 1000), 3, "and no more than the burst is saved up");
        assert_eq!(allowance.take_suppressed(), 7 + 10 + 9 + 9 + 7);
        assert_eq!(allowance.take_suppressed(), 0);
    }

    #[test]
    fn a_line_reports_the_suppressed_ones() {
        let throttle = LogThrottle::new(1, Duration::from_secs(3600));
        assert_eq!((throttle.try_acquire(), throttle.try_acquire()), (Some(0), None));
    }
}
