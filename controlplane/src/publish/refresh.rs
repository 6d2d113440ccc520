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
    begun: u64,
    results: watch::Sender<RefreshResult>,
}

/// The result of a load.
#[derive(Default)]
struct RefreshResult {
    /// The last request that the load answers.
    until: u64,
    /// The store's error, if it was unreadable.
    problem: Option<String>,
}

/// Both sides.
pub(super) fn channel() -> (RefreshHandle, RefreshRequests) {
    let (asked, asking) = watch::channel(0);
    let (answers, answered) = watch::channel(RefreshResult::default());
    (
        RefreshHandle { requests: asked, results: answered },
        RefreshRequests { requests: asking, begun: 0, results: answers },
    )
}

impl RefreshHandle {
    /// Waits until the current snapshot has everything that the store held at the time of the call.
    ///
    /// # Errors
    /// The store's error.
    pub async fn refresh(&self) -> Result<(), String> {
        let mut answered = self.results.clone();
        let mut ours = 0;
        self.requests.send_modify(|asked| {
            *asked += 1;
            ours = *asked;
        });
        match answered.wait_for(|answer| answer.until >= ours).await {
            Ok(answer) => answer.problem.clone().map_or(Ok(()), Err),
            Err(_) => Err("the store is not followed any more".to_owned()),
        }
    }
}

impl RefreshRequests {
    /// Waits for a request that no load covers.
    pub(super) async fn requested(&mut self) {
        let begun = self.begun;
        if self.requests.wait_for(|asked| *asked > begun).await.is_err() {
            // All handles are dropped: no request will come.
            std::future::pending().await
        }
    }

    /// Begins a load; returns the last request that it answers.
    pub(super) fn begin(&mut self) -> u64 {
        self.begun = *self.requests.borrow();
        self.begun
    }

    /// Completes a load whose state is published.
    pub(super) fn complete(&self, until: u64, problem: Option<String>) {
        self.results.send_replace(RefreshResult { until, problem });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_result_is_of_a_load_that_began_after_the_request() {
        let (nudge, mut nudged) = channel();
        let mut first = Box::pin(nudge.refresh());
        assert!(first.as_mut().now_or_never().is_none());
        nudged.requested().await;
        // A request stays open until a load begins.
        nudged.requested().await;
        let running = nudged.begin();
        let mut second = Box::pin(nudge.refresh());
        assert!(second.as_mut().now_or_never().is_none());
        nudged.complete(running, None);
        assert_eq!(first.await, Ok(()));
        assert!(second.as_mut().now_or_never().is_none(), "that load began before the question");
        let mut third = Box::pin(nudge.refresh());
        assert!(third.as_mut().now_or_never().is_none());
        nudged.requested().await;
        let until = nudged.begin();
        nudged.complete(until, Some("gone".to_owned()));
        assert_eq!((second.await, third.await), (Err("gone".to_owned()), Err("gone".to_owned())));
        assert!(nudged.requested().now_or_never().is_none(), "nothing is left to answer");
    }

    #[tokio::test]
    async fn a_request_fails_when_the_watcher_has_ended() {
        let (nudge, nudged) = channel();
        drop(nudged);
        assert!(nudge.refresh().await.is_err());
    }
}
