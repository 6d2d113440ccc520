//! Coalesced requests to reload the store, for a session whose node knows a newer revision.
//!
//! Invariant: the result of a request is that of a load that began after it. Requests during a load
//! share the next one, so a whole fleet that reconnects at once costs two loads.

use tokio::sync::watch;

/// The requesting side.
#[derive(Clone)]
pub struct RefreshHandle {
    /// The number of requests.
    requests: watch::Sender<u64>,
    results: watch::Receiver<RefreshResult>,
}

/// The store watcher's side.
pub(super) struct RefreshRequests {
    requests: watch::Receiver<u64>,
    /// The last request that a load covers.
    covered: u64,
    results: watch::Sender<RefreshResult>,
}

/// The result of a load.
#[derive(Default)]
struct RefreshResult {
    /// The last request that the load answers.
    request: u64,
    /// The store's error, if it was unreadable.
    error: Option<String>,
}

/// Both sides.
pub(super) fn channel() -> (RefreshHandle, RefreshRequests) {
    let (request_sender, requests) = watch::channel(0);
    let (result_sender, results) = watch::channel(RefreshResult::default());
    (
        RefreshHandle { requests: request_sender, results },
        RefreshRequests { requests, covered: 0, results: result_sender },
    )
}

impl RefreshHandle {
    /// Waits until the current snapshot has everything that the store held at the time of the call.
    ///
    /// # Errors
    /// The store's error.
    pub async fn refresh(&self) -> Result<(), String> {
        let mut results = self.results.clone();
        let mut request = 0;
        self.requests.send_modify(|requests| {
            *requests += 1;
            request = *requests;
        });
        match results.wait_for(|result| result.request >= request).await {
            Ok(result) => result.error.clone().map_or(Ok(()), Err),
            Err(_) => Err("the store is not followed any more".to_owned()),
        }
    }
}

impl RefreshRequests {
    /// Waits for a request that no load covers.
    pub(super) async fn requested(&mut self) {
        let covered = self.covered;
        if self.requests.wait_for(|requests| *requests > covered).await.is_err() {
            // All handles are dropped: no request will come.
            std::future::pending().await
        }
    }

    /// Begins a load; returns the last request that it answers.
    pub(super) fn begin(&mut self) -> u64 {
        self.covered = *self.requests.borrow();
        self.covered
    }

    /// Completes a load whose state is published.
    pub(super) fn complete(&self, request: u64, error: Option<String>) {
        self.results.send_replace(RefreshResult { request, error });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_result_is_of_a_load_that_began_after_the_request() {
        let (handle, mut requests) = channel();
        let mut first = Box::pin(handle.refresh());
        assert!(first.as_mut().now_or_never().is_none());
        requests.requested().await;
        // A request stays open until a load begins.
        requests.requested().await;
        let running = requests.begin();
        let mut second = Box::pin(handle.refresh());
        assert!(second.as_mut().now_or_never().is_none());
        requests.complete(running, None);
        assert_eq!(first.await, Ok(()));
        assert!(second.as_mut().now_or_never().is_none(), "that load began before the question");
        let mut third = Box::pin(handle.refresh());
        assert!(third.as_mut().now_or_never().is_none());
        requests.requested().await;
        let request = requests.begin();
        requests.complete(request, Some("gone".to_owned()));
        assert_eq!((second.await, third.await), (Err("gone".to_owned()), Err("gone".to_owned())));
        assert!(requests.requested().now_or_never().is_none(), "nothing is left to answer");
    }

    #[tokio::test]
    async fn a_request_fails_when_the_watcher_has_ended() {
        let (handle, requests) = channel();
        drop(requests);
        assert!(handle.refresh().await.is_err());
    }
}
