//! In which order control planes are tried, and after which pause. No IO and no clock: `link` dials
//! and waits.
//!
//! One after the other, in the order of the settings; a node stays where it is served and does not
//! go back to the first one. What fails is followed by the next one at once, and a round in which
//! all failed by a pause that grows. Invariant: no way to end a session, however often, has a node
//! dial without pauses.
//!
//! While every control plane refuses the TCP connection, pauses stay short for the first rounds:
//! both planes start or restart together then, and a PUT that is answered right after must not wait
//! for a back-off of seconds. A refused connection costs the kernel of that machine one packet.

use std::time::Duration;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// After a round in which one was behind: it needs a moment, not a repair.
const BACKOFF_STALE_MAX: Duration = Duration::from_secs(1);
/// After a round of refused connections, for the first [`REFUSED_ROUNDS`].
const BACKOFF_REFUSED: Duration = Duration::from_millis(200);
/// About 20 seconds of pauses with their jitter: longer than a control plane needs to start.
const REFUSED_ROUNDS: usize = 130;
/// A session that lasted so long was a good one.
const HEALTHY_SESSION: Duration = Duration::from_secs(5);

/// How a visit went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SessionOutcome {
    /// It served us for a while.
    Succeeded,
    /// It was not reached, or its session did not last.
    Failed,
    /// It knows an older state than ours, and could not catch up.
    Stale,
    /// Its machine refused the TCP connection: no process listens there yet.
    ConnectionRefused,
    /// We left it to come back with a renewed certificate.
    Renewed,
}

/// Whose turn it is.
pub(super) struct EndpointRotation {
    endpoints: usize,
    next: usize,
    /// Visits since the last one that went well.
    failures: usize,
    stale: bool,
    /// Every visit of this round met a refused connection.
    refused: bool,
    /// Rounds of refused connections since the last visit that went otherwise.
    refused_rounds: usize,
    backoff: Duration,
}

impl EndpointRotation {
    pub(super) fn new(planes: usize) -> Self {
        let pause = BACKOFF_MIN;
        Self {
            endpoints: planes,
            next: 0,
            failures: 0,
            stale: false,
            refused: true,
            refused_rounds: 0,
            backoff: pause,
        }
    }

    /// Whom to visit now.
    pub(super) fn next(&self) -> usize {
        self.next
    }

    /// A session ended after this time, a while after its Welcome if there was one.
    pub(super) fn classify(served: Option<Duration>) -> SessionOutcome {
        if served.is_some_and(|served| served >= HEALTHY_SESSION) {
            SessionOutcome::Succeeded
        } else {
            SessionOutcome::Failed
        }
    }

    /// The visit is over: how long to wait, at most, before the next one.
    pub(super) fn record(&mut self, went: SessionOutcome) -> Duration {
        if went == SessionOutcome::Renewed {
            return BACKOFF_MIN;
        }
        self.next = (self.next + 1).checked_rem(self.endpoints).unwrap_or_default();
        if went == SessionOutcome::Succeeded {
            *self = Self { next: self.next, ..Self::new(self.endpoints) };
            // All its nodes leave a control plane that stops in the same moment.
            return BACKOFF_MIN;
        }
        self.failures += 1;
        self.stale |= went == SessionOutcome::Stale;
        self.refused &= went == SessionOutcome::ConnectionRefused;
        if self.failures < self.endpoints {
            return Duration::ZERO;
        }
        let (behind, refused) = (self.stale, self.refused);
        (self.failures, self.stale, self.refused) = (0, false, true);
        if refused && self.refused_rounds < REFUSED_ROUNDS {
            self.refused_rounds += 1;
            return BACKOFF_REFUSED;
        }
        let pause = if behind { self.backoff.min(BACKOFF_STALE_MAX) } else { self.backoff };
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(turns: &mut EndpointRotation, visits: &[SessionOutcome]) -> Vec<(usize, u128)> {
        visits.iter().map(|went| (turns.next(), turns.record(*went).as_millis())).collect()
    }

    use SessionOutcome::{ConnectionRefused, Failed, Renewed, Stale, Succeeded};

    #[test]
    fn all_are_tried_before_there_is_a_pause_and_pauses_grow() {
        let mut turns = EndpointRotation::new(3);
        let told = milliseconds(&mut turns, &[Failed; 9]);
        let expected = [(0, 0), (1, 0), (2, 100), (0, 0), (1, 0), (2, 200), (0, 0), (1, 0), (2, 400)];
        assert_eq!(told, expected);
        let mut alone = EndpointRotation::new(1);
        let pauses: Vec<_> =
            milliseconds(&mut alone, &[Failed; 9]).into_iter().map(|(_, pause)| pause).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
    }

    #[test]
    fn after_one_that_served_the_others_are_tried_from_the_next_one_on() {
        let mut turns = EndpointRotation::new(3);
        let told = milliseconds(&mut turns, &[Failed, Succeeded, Failed, Failed, Failed, Failed]);
        // A round is three failures, wherever it begins.
        assert_eq!(told, [(0, 0), (1, 100), (2, 0), (0, 0), (1, 100), (2, 0)]);
    }

    #[test]
    fn one_that_is_behind_is_asked_again_soon() {
        let mut turns = EndpointRotation::new(2);
        milliseconds(&mut turns, &[Failed; 12]);
        assert_eq!(milliseconds(&mut turns, &[Failed, Stale]), [(0, 0), (1, 1000)]);
        assert_eq!(milliseconds(&mut turns, &[Failed, Failed]), [(0, 0), (1, 5000)]);
        let mut alone = EndpointRotation::new(1);
        let pauses: Vec<_> =
            milliseconds(&mut alone, &[Stale; 6]).into_iter().map(|(_, pause)| pause).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn refused_connections_are_retried_soon_for_a_while() {
        let mut alone = EndpointRotation::new(1);
        let pauses: Vec<_> = milliseconds(&mut alone, &[ConnectionRefused; REFUSED_ROUNDS + 3])
            .into_iter()
            .map(|(_, pause)| pause)
            .collect();
        assert!(pauses[..REFUSED_ROUNDS].iter().all(|pause| *pause == 200), "{pauses:?}");
        assert_eq!(pauses[REFUSED_ROUNDS..], [100, 200, 400]);
        // A control plane that answers and fails is not asked at that pace.
        let mut mixed = EndpointRotation::new(2);
        let told = milliseconds(&mut mixed, &[ConnectionRefused, Failed, Failed, ConnectionRefused]);
        assert_eq!(told, [(0, 0), (1, 100), (0, 0), (1, 200)]);
        milliseconds(&mut alone, &[Succeeded]);
        assert_eq!(milliseconds(&mut alone, &[ConnectionRefused]), [(0, 200)]);
    }

    #[test]
    fn a_renewed_certificate_leads_back_to_the_same_one() {
        let mut turns = EndpointRotation::new(3);
        assert_eq!(
            milliseconds(&mut turns, &[Failed, Renewed, Renewed, Failed]),
            [(0, 0), (1, 100), (1, 100), (1, 0)]
        );
    }

    #[test]
    fn only_a_session_that_lasted_counts() {
        assert_eq!(EndpointRotation::classify(None), Failed);
        assert_eq!(EndpointRotation::classify(Some(Duration::from_millis(4999))), Failed);
        assert_eq!(EndpointRotation::classify(Some(HEALTHY_SESSION)), Succeeded);
    }
}
