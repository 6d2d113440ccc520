//! A rate limit on the log lines of each [`Reason`], so that a flood of failures does not fill the
//! disk.
//!
//! One a worker. A flood of one reason does not suppress the lines of another, and counters stay
//! exact. Invariant: the number of suppressed lines is logged within about a second.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use process::throttle::TokenBucket;

use crate::reason::Reason;

/// Lines of a reason that are written at once after a quiet period.
pub(crate) const BURST: u32 = 200;
/// One line is allowed each time this passes: ten a second.
const REFILL: Duration = Duration::from_millis(100);

/// The allowances of one worker, by reason.
#[derive(Debug)]
pub(crate) struct LogLimiter(RefCell<Vec<TokenBucket>>);

impl Default for LogLimiter {
    fn default() -> Self {
        Self(RefCell::new(vec![TokenBucket::new(BURST, REFILL); Reason::ALL.len()]))
    }
}

impl LogLimiter {
    /// Whether a line with this reason may be written now; otherwise it counts as suppressed.
    pub(crate) fn allow(&self, reason: Reason, now: Instant) -> bool {
        let mut allowances = self.0.borrow_mut();
        allowances.get_mut(reason.index()).is_some_and(|allowance| allowance.try_acquire(now))
    }

    /// The lines suppressed since the last call, by reason.
    pub(crate) fn take_suppressed(&self) -> Vec<(Reason, u64)> {
        let mut allowances = self.0.borrow_mut();
        let by_reason = Reason::ALL.iter().zip(allowances.iter_mut());
        by_reason
            .map(|(reason, allowance)| (*reason, allowance.take_suppressed()))
            .filter(|(_, suppressed)| *suppressed > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_limited_without_suppressing_other_reasons() {
        let (limiter, start) = (LogLimiter::default(), Instant::now());
        let allowed = |now| (0..1000).filter(|_| limiter.allow(Reason::NoSni, now)).count();
        assert_eq!(allowed(start), BURST as usize);
        assert!(limiter.allow(Reason::BadCertificate, start), "each reason has its own allowance");
        assert_eq!(limiter.take_suppressed(), [(Reason::NoSni, 1000 - u64::from(BURST))]);
        assert_eq!(limiter.take_suppressed(), [], "taken once");
        assert_eq!(allowed(start + REFILL / 2), 0);
        assert_eq!(allowed(start + REFILL * 10), 10);
        assert_eq!(allowed(start + REFILL * 11), 1, "a partial refill is not lost");
        assert_eq!(allowed(start + REFILL * 1000), BURST as usize, "the allowance is bounded");
    }
}
