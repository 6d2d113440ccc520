//! How many lines a second may be written about refusals, so that who floods us cannot fill the disk.
//!
//! One a worker. Each reason has its own allowance: a flood of one kind does not hide the others. Counters are not
//! concerned, they stay exact. Invariant: a line that was left out is told about, as a number, within about a second.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use crate::outcome::Reason;

/// Lines a reason may write in one [`WINDOW`].
pub const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// One worker's allowances.
#[derive(Debug)]
pub struct Throttle(RefCell<Vec<Allowance>>);

#[derive(Debug, Clone, Default)]
struct Allowance {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Default for Throttle {
    fn default() -> Self {
        Self(RefCell::new(vec![Allowance::default(); Reason::ALL.len()]))
    }
}

impl Throttle {
    /// Whether a line about this reason may be written now; else it is counted as left out.
    pub fn admits(&self, reason: Reason, now: Instant) -> bool {
        let mut all = self.0.borrow_mut();
        let Some(allowance) = all.get_mut(reason.index()) else { return false };
        if allowance.since.is_none_or(|since| now.duration_since(since) >= WINDOW) {
            allowance.since = Some(now);
            allowance.written = 0;
        }
        let admitted = allowance.written < LINES;
        if admitted {
            allowance.written += 1;
        } else {
            allowance.left_out += 1;
        }
        admitted
    }

    /// What was left out since it was last asked, by reason.
    pub fn left_out(&self) -> Vec<(Reason, u64)> {
        let mut all = self.0.borrow_mut();
        let counted = Reason::ALL.iter().zip(all.iter_mut());
        counted
            .map(|(reason, allowance)| (*reason, std::mem::take(&mut allowance.left_out)))
            .filter(|(_, left_out)| *left_out > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_writes_a_few_lines_a_second_and_hides_nothing_else() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        let written = (0..1000).filter(|_| throttle.admits(Reason::NoSni, start)).count();
        assert_eq!(written, LINES as usize);
        assert!(throttle.admits(Reason::BadCertificate, start), "another reason has its own allowance");
        assert_eq!(throttle.left_out(), [(Reason::NoSni, 1000 - u64::from(LINES))]);
        assert_eq!(throttle.left_out(), [], "told once");
        assert!(!throttle.admits(Reason::NoSni, start + WINDOW / 2));
        assert!(throttle.admits(Reason::NoSni, start + WINDOW));
    }
}
