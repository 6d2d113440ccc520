//! How many connections to upstreams a worker may have open, so that requests, however many, do not
//! take the descriptors that clients, the agent and the status listener need.
//!
//! A connection holds its permit until its descriptor is closed. Where none is free the oldest idle
//! connection is closed, and the next free place goes to who has waited longest.

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::pool::Pool;

/// A worker's places.
pub struct ConnectionPermits {
    semaphore: Arc<Semaphore>,
    pool: Rc<Pool>,
}

impl ConnectionPermits {
    /// `max` of them, at least one. `pool`: whose idle connections make room.
    pub fn new(max: usize, pool: Rc<Pool>) -> Self {
        Self { semaphore: Arc::new(Semaphore::new(max.clamp(1, Semaphore::MAX_PERMITS))), pool }
    }

    /// A free place, or one that becomes free.
    pub async fn acquire(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.semaphore).try_acquire_owned() {
            return Some(permit);
        }
        self.pool.evict_oldest();
        // An error: the semaphore was closed, which nothing does.
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
    fn a_connection_beyond_the_last_place_waits() {
        let places = ConnectionPermits::new(1, Rc::default());
        let mut cx = Context::from_waker(Waker::noop());
        let first = pin!(places.acquire()).as_mut().poll(&mut cx);
        assert!(first.is_ready());
        let mut second = pin!(places.acquire());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(first);
        assert!(second.as_mut().poll(&mut cx).is_ready());
    }
}
