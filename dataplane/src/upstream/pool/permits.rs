//! The limit on a worker's open connections to upstreams, so that requests, however many, leave the
//! descriptors that clients, the push client and the status listener need.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Pool;

/// A connection holds its permit until its descriptor is closed. Without a free permit the oldest
/// idle connection is closed, and the next permit goes to the request that has waited longest.
pub(crate) struct ConnectionPermits {
    semaphore: Arc<Semaphore>,
    max: Cell<usize>,
    /// Permits of open connections above a lowered maximum: they end with their connections.
    excess: Cell<usize>,
    pool: Rc<Pool>,
}

impl ConnectionPermits {
    /// At least one permit. `pool` has the idle connections that may be closed.
    pub(crate) fn new(max: usize, pool: Rc<Pool>) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        Self { semaphore: Arc::new(Semaphore::new(max)), max: max.into(), excess: Cell::default(), pool }
    }

    /// Changes the number of permits. Open connections go on.
    pub(crate) fn set_max(&self, max: usize) {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        let (old, excess) = (self.max.replace(max), self.excess.get());
        // The permits there are.
        let permits = old.saturating_add(excess);
        self.excess.set(permits.saturating_sub(max));
        self.semaphore.add_permits(max.saturating_sub(permits));
        self.forget_excess();
    }

    fn forget_excess(&self) {
        let excess = self.excess.get();
        if excess > 0 {
            self.excess.set(excess - self.semaphore.forget_permits(excess));
        }
    }

    /// Waits for a free permit.
    pub(crate) async fn acquire(&self) -> Option<OwnedSemaphorePermit> {
        self.forget_excess();
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

    #[test]
    fn another_maximum_holds_for_later_connections() {
        let permits = ConnectionPermits::new(2, Rc::default());
        let acquire = || {
            let mut cx = Context::from_waker(Waker::noop());
            match pin!(permits.acquire()).as_mut().poll(&mut cx) {
                std::task::Poll::Ready(permit) => permit,
                std::task::Poll::Pending => None,
            }
        };
        let mut open: Vec<_> = (0..2).map(|_| acquire().unwrap()).collect();
        permits.set_max(1);
        open.pop();
        assert!(acquire().is_none(), "one connection is open, and one is allowed");
        open.pop();
        open.push(acquire().unwrap());
        assert!(acquire().is_none());
        permits.set_max(0);
        permits.set_max(3);
        open.extend((0..2).map(|_| acquire().unwrap()));
        assert!(acquire().is_none());
        drop(open);
        assert_eq!((0..4).filter_map(|_| acquire()).collect::<Vec<_>>().len(), 3);
    }
}
