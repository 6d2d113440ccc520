//! The runtime of a worker: monoio on io_uring, or on epoll where io_uring is not available.
//!
//! Only this folder names monoio. [`Driver`] selects io_uring or epoll, [`block_on`] runs a
//! worker's thread, [`Listener`] and [`Socket`] are its TCP sockets, and [`sleep`], [`timeout`] and
//! [`Timer`] keep its time.
//!
//! monoio's rules, which the types here keep:
//! - Only the thread that created a ring may use it (SINGLE_ISSUER): [`block_on`] builds the
//!   runtime on the calling thread.
//! - A read in flight must not be dropped. [`ShutdownHandle`] ends a connection with `shutdown(2)`,
//!   which completes the operation.
//! - A runtime with operations in flight must not be dropped: [`block_on`] leaks it, and the
//!   process exits right after.

pub(crate) mod descriptors;
mod driver;
mod socket;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

pub use self::driver::{Driver, block_on, spawn};
pub(crate) use self::driver::{pin_to_cpu, thread_cpu_time};
pub use self::socket::{Listener, Reader, ShutdownHandle, Writer};
pub(crate) use self::socket::{ReadHalf, Socket, WriteHalf};

/// Waits for `duration`.
pub(crate) async fn sleep(duration: Duration) {
    monoio::time::sleep(duration).await;
}

/// The time of a [`timeout`] is over, and its future is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub(crate) struct TimedOut;

/// Limits the time of `future`, which must not own a read in flight.
///
/// # Errors
/// [`TimedOut`] if `duration` passes first.
pub(crate) async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, TimedOut> {
    monoio::time::timeout(duration, future).await.map_err(|_| TimedOut)
}

/// A timer that its owner polls, and resets without an allocation.
pub(crate) struct Timer(Pin<Box<monoio::time::Sleep>>);

impl Timer {
    /// A timer that fires after `duration`.
    pub(crate) fn after(duration: Duration) -> Self {
        Self(Box::pin(monoio::time::sleep(duration)))
    }

    /// Makes it fire `duration` from now.
    pub(crate) fn reset(&mut self, duration: Duration) {
        self.0.as_mut().reset(monoio::time::Instant::now() + duration);
    }

    /// Ready once the timer has fired.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}
