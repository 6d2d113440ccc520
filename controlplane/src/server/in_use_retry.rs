//! Retries what a stopping control plane still holds: its ports while `drain_delay` runs, and the
//! lock of its store until it ends.
//!
//! The retries end after the longest time that such a stop takes, for all resources together, so a
//! second control plane that is started by mistake still fails with the error.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

const RETRY_INTERVAL: Duration = Duration::from_millis(25);

/// A deadline that all attempts of one start share.
pub(crate) struct InUseRetry {
    deadline: Instant,
    logged: bool,
}

impl InUseRetry {
    /// Retries for `max_wait` from now on.
    pub(crate) fn new(max_wait: Duration) -> Self {
        let now = Instant::now();
        Self { deadline: now.checked_add(max_wait).unwrap_or(now), logged: false }
    }

    /// The attempt's result. An attempt whose error is `in_use` is repeated until the deadline.
    /// Dropping the future ends the retries.
    pub(crate) async fn run<T, E, F>(
        &mut self,
        in_use: impl Fn(&E) -> bool,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, E>
    where
        E: Display,
        F: Future<Output = Result<T, E>>,
    {
        loop {
            match attempt().await {
                Err(error) if in_use(&error) && Instant::now() < self.deadline => {
                    if !std::mem::replace(&mut self.logged, true) {
                        let seconds = self.deadline.saturating_duration_since(Instant::now()).as_secs();
                        tracing::info!(seconds, "waiting for a stopping control plane: {error}");
                    }
                    sleep(RETRY_INTERVAL).await;
                }
                result => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn retries_end_at_the_deadline() {
        let mut left = 3;
        let attempt = || {
            left -= 1;
            ready(if left == 0 { Ok(()) } else { Err("in use") })
        };
        let in_use = |error: &&str| *error == "in use";
        let mut long = InUseRetry::new(Duration::from_secs(60));
        long.run(in_use, attempt).await.unwrap();
        // Any other error ends the retries.
        assert_eq!(long.run(in_use, || ready(Err::<(), _>("no such address"))).await, Err("no such address"));
        let mut short = InUseRetry::new(RETRY_INTERVAL);
        assert_eq!(short.run(in_use, || ready(Err::<(), _>("in use"))).await, Err("in use"));
    }
}
