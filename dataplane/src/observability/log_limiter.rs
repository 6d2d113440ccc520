//! How many lines a second may be written about refusals, so that who floods us cannot fill the
//! disk.
//!
//! One a worker. Each reason has its own allowance: a flood of one kind does not hide the others.
//! Counters are not concerned, they stay exact. Invariant: a line that was left out is told about,
//! as a number, within about a second.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use process::throttle::TokenBucket;

use crate::reason::Reason;

/// Lines a reason may write at once, saved up while it was quiet: what an installation sees on a
/// bad day is written in full.
pub(crate) const BURST: u32 = 200;
/// One more line is allowed each time this passes: ten a second.
const REFILL: Duration = Duration::from_millis(100);

/// One worker's allowances.
#[derive(Debug)]
pub(crate) struct LogLimiter(RefCell<Vec<TokenBucket>>);

impl Default for LogLimiter {
    fn default() -> Self {
        Self(RefCell::new(vec![TokenBucket::new(BURST, REFILL); Reason::ALL.len()]))
    }
}

impl LogLimiter {
    /// Whether a line about this reason may be written now; else it is counted as left out.
    pub(crate) fn allow(&self, reason: Reason, now: Instant) -> bool {
        let mut all = self.0.borrow_mut();
        all.get_mut(reason.index()).is_some_and(|allowance| allowance.try_acquire(now))
    }

    /// What was left out since it was last asked, by reason.
    pub(crate) fn take_suppressed(&self) -> Vec<(Reason, u64)> {
        let mut all = self.0.borrow_mut();
        let counted = Reason::ALL.iter().zip(all.iter_mut());
        counted
            .map(|(reason, allowance)| (*reason, allowance.take_suppressed()))
            .filter(|(_, left_out)| *left_out > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_writes_a_few_lines_a_second_and_hides_nothing_else() {
        let (throttle, start) = (LogLimiter::default(), Instant::now());
        let written = |now| (0..1000).filter(|_| throttle.allow(Reason::NoSni, now)).count();
        assert_eq!(written(start), BURST as usize);
        assert!(throttle.allow(Reason::BadCertificate, start), "another reason has its own allowance");
        assert_eq!(throttle.take_suppressed(), [(Reason::NoSni, 1000 - u64::from(BURST))]);
        assert_eq!(throttle.take_suppressed(), [], "told once");
        assert_eq!(written(start + REFILL / 2), 0);
        assert_eq!(written(start + REFILL * 10), 10);
        assert_eq!(written(start + REFILL * 11), 1, "what half a step began is not lost");
        assert_eq!(written(start + REFILL * 1000), BURST as usize, "and no more is saved");
    }
}
