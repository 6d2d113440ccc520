//! The order in which control planes are tried, and the backoff between tries. No IO and no clock:
//! `sync_loop` connects and waits.
//!
//! Control planes are tried one after the other, in the order of the settings. A node stays where
//! its session runs and does not return to the first one. After a failure the next one is tried at
//! once, and after a round of failures the backoff grows. Invariant: however sessions end, a node
//! never reconnects without a pause for more than a round.
//!
//! While every control plane refuses the TCP connection, the pauses stay short for the first
//! rounds: both planes start or restart together then, and a PUT that is answered right after must
//! not wait seconds to take effect. A refused connection costs the kernel of that machine one
//! packet.

use std::time::Duration;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// After a round with a stale control plane, which needs a moment to catch up, not a repair.
const BACKOFF_STALE_MAX: Duration = Duration::from_secs(1);
/// After a round of refused connections, for the first [`REFUSED_ROUNDS`].
const BACKOFF_REFUSED: Duration = Duration::from_millis(200);
/// About 20 seconds of pauses with their jitter: longer than a control plane needs to start.
const REFUSED_ROUNDS: usize = 130;
/// A session that lasted this long counts as successful.
const HEALTHY_SESSION: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SessionOutcome {
    /// The session lasted.
    Succeeded,
    /// No connection, or the session did not last.
    Failed,
    /// The control plane has an older state than this node and could not catch up.
    Stale,
    /// The machine refused the TCP connection: no process listens there yet.
    ConnectionRefused,
    /// This node left to reconnect with a renewed certificate.
    Renewed,
}

pub(super) struct EndpointRotation {
    endpoints: usize,
    next: usize,
    /// Sessions since the last successful one, up to a round.
    failures: usize,
    /// A control plane of this round was stale.
    stale: bool,
    /// Every control plane of this round refused the connection.
    refused: bool,
    /// Rounds of refused connections since the last session that ended otherwise.
    refused_rounds: usize,
    backoff: Duration,
}

impl EndpointRotation {
    pub(crate) fn new(endpoints: usize) -> Self {
        Self {
            endpoints,
            next: 0,
            failures: 0,
            stale: false,
            refused: true,
            refused_rounds: 0,
            backoff: BACKOFF_MIN,
        }
    }

    /// The index of the control plane to try now.
    pub(crate) fn next(&self) -> usize {
        self.next
    }

    /// `served`: the time from Welcome to the end of the session; `None` without a Welcome.
    pub(crate) fn classify(served: Option<Duration>) -> SessionOutcome {
        if served.is_some_and(|served| served >= HEALTHY_SESSION) {
            SessionOutcome::Succeeded
        } else {
            SessionOutcome::Failed
        }
    }

    /// Records a session and gives the longest pause before the next one.
    pub(crate) fn record(&mut self, outcome: SessionOutcome) -> Duration {
        if outcome == SessionOutcome::Renewed {
            return BACKOFF_MIN;
        }
        self.next = (self.next + 1).checked_rem(self.endpoints).unwrap_or_default();
        if outcome == SessionOutcome::Succeeded {
            *self = Self { next: self.next, ..Self::new(self.endpoints) };
            // All nodes of a control plane that stops leave it in the same moment.
            return BACKOFF_MIN;
        }
        self.failures += 1;
        self.stale |= outcome == SessionOutcome::Stale;
        self.refused &= outcome == SessionOutcome::ConnectionRefused;
        if self.failures < self.endpoints {
            return Duration::ZERO;
        }
        let (stale, refused) = (self.stale, self.refused);
        (self.failures, self.stale, self.refused) = (0, false, true);
        if refused && self.refused_rounds < REFUSED_ROUNDS {
            self.refused_rounds += 1;
            return BACKOFF_REFUSED;
        }
        let backoff = if stale { self.backoff.min(BACKOFF_STALE_MAX) } else { self.backoff };
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        backoff
    }
}

#[cfg(test)]
mod tests {
    use SessionOutcome::{ConnectionRefused, Failed, Renewed, Stale, Succeeded};

    use super::*;

    /// The endpoint of each session, and the pause after it in milliseconds.
    fn record(rotation: &mut EndpointRotation, outcomes: &[SessionOutcome]) -> Vec<(usize, u128)> {
        let record = |outcome: &SessionOutcome| (rotation.next(), rotation.record(*outcome).as_millis());
        outcomes.iter().map(record).collect()
    }

    fn pauses(rotation: &mut EndpointRotation, outcomes: &[SessionOutcome]) -> Vec<u128> {
        record(rotation, outcomes).into_iter().map(|(_, pause)| pause).collect()
    }

    #[test]
    fn the_backoff_follows_a_round_and_grows() {
        let mut rotation = EndpointRotation::new(3);
        let recorded = record(&mut rotation, &[Failed; 9]);
        let expected = [(0, 0), (1, 0), (2, 100), (0, 0), (1, 0), (2, 200), (0, 0), (1, 0), (2, 400)];
        assert_eq!(recorded, expected);
        let mut alone = EndpointRotation::new(1);
        assert_eq!(pauses(&mut alone, &[Failed; 9]), [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
    }

    #[test]
    fn after_a_success_the_next_endpoint_is_tried() {
        let mut rotation = EndpointRotation::new(3);
        let recorded = record(&mut rotation, &[Failed, Succeeded, Failed, Failed, Failed, Failed]);
        // A round is three failures, wherever it begins.
        assert_eq!(recorded, [(0, 0), (1, 100), (2, 0), (0, 0), (1, 100), (2, 0)]);
    }

    #[test]
    fn a_stale_control_plane_is_retried_soon() {
        let mut rotation = EndpointRotation::new(2);
        record(&mut rotation, &[Failed; 12]);
        assert_eq!(record(&mut rotation, &[Failed, Stale]), [(0, 0), (1, 1000)]);
        assert_eq!(record(&mut rotation, &[Failed, Failed]), [(0, 0), (1, 5000)]);
        let mut alone = EndpointRotation::new(1);
        assert_eq!(pauses(&mut alone, &[Stale; 6]), [100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn refused_connections_are_retried_soon_for_a_while() {
        let mut alone = EndpointRotation::new(1);
        let pauses = pauses(&mut alone, &[ConnectionRefused; REFUSED_ROUNDS + 3]);
        assert!(pauses[..REFUSED_ROUNDS].iter().all(|pause| *pause == 200), "{pauses:?}");
        assert_eq!(pauses[REFUSED_ROUNDS..], [100, 200, 400]);
        // A control plane that accepts the connection and fails has the usual backoff.
        let mut mixed = EndpointRotation::new(2);
        let recorded = record(&mut mixed, &[ConnectionRefused, Failed, Failed, ConnectionRefused]);
        assert_eq!(recorded, [(0, 0), (1, 100), (0, 0), (1, 200)]);
        record(&mut alone, &[Succeeded]);
        assert_eq!(record(&mut alone, &[ConnectionRefused]), [(0, 200)]);
    }

    #[test]
    fn a_renewed_certificate_keeps_the_endpoint() {
        let mut rotation = EndpointRotation::new(3);
        assert_eq!(
            record(&mut rotation, &[Failed, Renewed, Renewed, Failed]),
            [(0, 0), (1, 100), (1, 100), (1, 0)]
        );
    }

    #[test]
    fn only_a_session_that_lasted_succeeded() {
        assert_eq!(EndpointRotation::classify(None), Failed);
        assert_eq!(EndpointRotation::classify(Some(Duration::from_millis(4999))), Failed);
        assert_eq!(EndpointRotation::classify(Some(HEALTHY_SESSION)), Succeeded);
    }
}
