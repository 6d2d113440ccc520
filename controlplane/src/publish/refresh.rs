//! How a stream asks the follower of the store to read it anew, because a node has come that knows
//! of a newer state.
//!
//! Invariant: an answer is about a load that began after the question. Questions that come while
//! one is running share the next one, so a whole fleet that moves at once costs two loads.

use tokio::sync::watch;

/// The asking end.
#[derive(Clone)]
pub struct RefreshHandle {
    /// How many questions there were.
    requests: watch::Sender<u64>,
    results: watch::Receiver<RefreshResult>,
}

/// The follower's end.
pub(super) struct RefreshRequests {
    requests: watch::Receiver<u64>,
    /// The last question that a load was begun for.
    begun: u64,
    results: watch::Sender<RefreshResult>,
}

/// The outcome of a load.
#[derive(Default)]
struct RefreshResult {
    /// Questions up to this one are answered by it.
    until: u64,
    /// Why the store could not be read.
    problem: Option<String>,
}

/// Both ends.
pub(super) fn channel() -> (RefreshHandle, RefreshRequests) {
    let (asked, asking) = watch::channel(0);
    let (answers, answered) = watch::channel(RefreshResult::default());
    (
        RefreshHandle { requests: asked, results: answered },
        RefreshRequests { requests: asking, begun: 0, results: answers },
    )
}

impl RefreshHandle {
    /// Waits until everything that the store held at the time of the call is in the newest
    /// snapshot.
    ///
    /// # Errors
    /// Why the store cannot be read.
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
    /// Waits until there is a question that no load was begun for.
    pub(super) async fn requested(&mut self) {
        let begun = self.begun;
        if self.requests.wait_for(|asked| *asked > begun).await.is_err() {
            // Nobody is left who could ask.
            std::future::pending().await
        }
    }

    /// A load begins: it will answer the questions up to this number.
    pub(super) fn begin(&mut self) -> u64 {
        self.begun = *self.requests.borrow();
        self.begun
    }

    /// It is over, and its state published.
    pub(super) fn complete(&self, until: u64, problem: Option<String>) {
        self.results.send_replace(RefreshResult { until, problem });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn an_answer_is_about_a_load_that_began_after_the_question() {
        let (nudge, mut nudged) = channel();
        let mut first = Box::pin(nudge.refresh());
        assert!(first.as_mut().now_or_never().is_none());
        nudged.requested().await;
        // Noticed, but not dealt with yet: it is not forgotten.
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
    async fn nobody_waits_for_a_follower_that_ended() {
        let (nudge, nudged) = channel();
        drop(nudged);
        assert!(nudge.refresh().await.is_err());
    }
}
