//! When a lane's operations are due, where they come at a pace of their own instead of one right after the other.
//!
//! An operation that could not start when it was due, because the one before was still waiting for the server, has waited since then: a
//! stall of the server counts for everybody who would have come meanwhile, not for one alone. That a sleeping lane is woken late is the
//! generator's own doing (its timer ticks once a millisecond) and counts for nobody.

use std::time::Duration;

use tokio::time::Instant;

/// A lane's clock.
pub struct Pace {
    every: Duration,
    due: Instant,
}

impl Pace {
    /// Operations every so often from now on; of several lanes each has its first a little later than the one before.
    pub fn new(every: Duration, lane: usize, lanes: usize) -> Self {
        let share = lane as f64 / lanes.max(1) as f64;
        Self { every, due: Instant::now() + every.mul_f64(share) }
    }

    /// Waits until the next operation is due, and gives how long it has been.
    pub async fn next(&mut self) -> Duration {
        let due = self.due;
        self.due += self.every;
        let late = Instant::now().saturating_duration_since(due);
        if late.is_zero() {
            tokio::time::sleep_until(due).await;
        }
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn what_was_due_meanwhile_has_waited_since_then() {
        let mut pace = Pace { every: EVERY, due: Instant::now() - 2 * EVERY };
        let waited = [pace.next().await, pace.next().await];
        assert!(waited[0] >= 2 * EVERY && waited[1] >= EVERY, "{waited:?}");
        // Whoever came late once does not come late for ever.
        assert!(waited[1] < waited[0], "{waited:?}");
        assert!(pace.due > Instant::now() - EVERY);
    }

    #[tokio::test]
    async fn nothing_starts_before_it_is_due_and_a_late_timer_counts_for_nobody() {
        let started = Instant::now();
        let due = started + Duration::from_millis(20);
        let mut pace = Pace { every: EVERY, due };
        assert_eq!(pace.next().await, Duration::ZERO);
        assert!(Instant::now() >= due);
        assert_eq!(pace.due, due + EVERY);
    }

    #[test]
    fn lanes_take_turns() {
        let before = Instant::now();
        let paces = [0, 1, 2, 3].map(|lane| Pace::new(EVERY, lane, 4));
        for (lane, pace) in (0..).zip(&paces) {
            assert!(pace.due >= before + EVERY * lane / 4 && pace.due < before + EVERY * (lane + 1) / 4);
        }
    }
}
