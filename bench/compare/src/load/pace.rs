//! The schedule of a lane whose operations come at a fixed rate.
//!
//! An operation that was due while the one before waited for the server has waited since then: a
//! stall of the server counts for every operation due meanwhile (no coordinated omission). The
//! lateness of the generator's own timer, which ticks once a millisecond, does not count.

use std::time::Duration;

use tokio::time::Instant;

pub(super) struct Pace {
    every: Duration,
    due: Instant,
}

impl Pace {
    /// Lanes start evenly spread over the first interval.
    pub(super) fn new(every: Duration, lane: usize, lanes: usize) -> Self {
        let share = lane as f64 / lanes.max(1) as f64;
        Self { every, due: Instant::now() + every.mul_f64(share) }
    }

    /// Waits until the next operation is due; gives its lateness.
    pub(super) async fn next(&mut self) -> Duration {
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
    async fn an_operation_waits_since_it_was_due() {
        let mut pace = Pace { every: EVERY, due: Instant::now() - 2 * EVERY };
        let waited = [pace.next().await, pace.next().await];
        assert!(waited[0] >= 2 * EVERY && waited[1] >= EVERY, "{waited:?}");
        // A late operation does not delay the later ones for ever.
        assert!(waited[1] < waited[0], "{waited:?}");
        assert!(pace.due > Instant::now() - EVERY);
    }

    #[tokio::test]
    async fn an_operation_starts_when_due_without_timer_lateness() {
        let started = Instant::now();
        let due = started + Duration::from_millis(20);
        let mut pace = Pace { every: EVERY, due };
        assert_eq!(pace.next().await, Duration::ZERO);
        assert!(Instant::now() >= due);
        assert_eq!(pace.due, due + EVERY);
    }

    #[test]
    fn lanes_start_evenly_spread() {
        let before = Instant::now();
        let paces = [0, 1, 2, 3].map(|lane| Pace::new(EVERY, lane, 4));
        for (lane, pace) in (0..).zip(&paces) {
            assert!(pace.due >= before + EVERY * lane / 4 && pace.due < before + EVERY * (lane + 1) / 4);
        }
    }
}
