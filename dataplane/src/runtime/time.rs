//! Time on a worker: sleeps, time-outs and a reusable timer, with a resolution of a millisecond.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Waits for `duration`.
pub async fn sleep(duration: Duration) {
    monoio::time::sleep(duration).await;
}

/// The time of a [`timeout`] is over, and its future is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct TimedOut;

/// Limits the time of `future`, which must not own a read or an accept in flight.
///
/// # Errors
/// [`TimedOut`] if `duration` passes first.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, TimedOut> {
    monoio::time::timeout(duration, future).await.map_err(|_| TimedOut)
}

/// A timer that its owner polls, and resets without an allocation.
pub struct Timer(Pin<Box<monoio::time::Sleep>>);

impl Timer {
    /// A timer that fires after `duration`.
    pub fn after(duration: Duration) -> Self {
        Self(Box::pin(monoio::time::sleep(duration)))
    }

    /// Makes it fire `duration` from now.
    pub fn reset(&mut self, duration: Duration) {
        self.0.as_mut().reset(monoio::time::Instant::now() + duration);
    }

    /// Ready once the timer has fired.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}
