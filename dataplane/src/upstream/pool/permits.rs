//! The limit on a worker's open connections to upstreams, so that requests, however many, leave the
//! descriptors that clients, the push client and the status listener need.

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Pool;

/// A connection holds its permit until its descriptor is closed. Without a free permit the oldest
/// idle connection is closed, and the next permit goes to the request that has waited longest.
pub(crate) struct ConnectionPermits {
    semaphore: Arc<Semaphore>,
    pool: Rc<Pool>,
}

impl ConnectionPermits {
    /// At least one permit. `pool` has the idle connections that may be closed.
    pub(crate) fn new(max: usize, pool: Rc<Pool>) -> Self {
        Self { semaphore: Arc::new(Semaphore::new(max.clamp(1, Semaphore::MAX_PERMITS))), pool }
    }

    /// Waits for a free permit.
    pub(crate) async fn acquire(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.semaphore).try_acquire_owned() {
            return Some(permit);
        }
        self.pool.evict_oldest();
        // The semaphore is never closed, so there is no error.
        Arc::clone(&self.semaphore).acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn a_connection_beyond_the_limit_waits() {
        let permits = ConnectionPermits::new(1, Rc::default());
        let mut cx = Context::from_waker(Waker::noop());
        let first = pin!(permits.acquire()).as_mut().poll(&mut cx);
        assert!(first.is_ready());
        let mut second = pin!(permits.acquire());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(first);
        assert!(second.as_mut().poll(&mut cx).is_ready());
    }
}
