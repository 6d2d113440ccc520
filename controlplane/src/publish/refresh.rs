//! How a stream asks the follower of the store to read it anew, because a node has come that knows of a newer state.
//!
//! Invariant: an answer is about a load that began after the question. Questions that come while one is running share the next one,
//! so a whole fleet that moves at once costs two loads.

use tokio::sync::watch;

/// The asking end.
#[derive(Clone)]
pub struct Nudge {
    /// How many questions there were.
    asked: watch::Sender<u64>,
    answered: watch::Receiver<Answer>,
}

/// The follower's end.
pub(super) struct Nudged {
    asked: watch::Receiver<u64>,
    /// The last question that a load was begun for.
    begun: u64,
    answers: watch::Sender<Answer>,
}

/// The outcome of a load.
#[derive(Default)]
struct Answer {
    /// Questions up to this one are answered by it.
    until: u64,
    /// Why the store could not be read.
    problem: Option<String>,
}

/// Both ends.
pub(super) fn pair() -> (Nudge, Nudged) {
    let (asked, asking) = watch::channel(0);
    let (answers, answered) = watch::channel(Answer::default());
    (Nudge { asked, answered }, Nudged { asked: asking, begun: 0, answers })
}

impl Nudge {
    /// Waits until everything that the store held at the time of the call is in the newest snapshot.
    ///
    /// # Errors
    /// Why the store cannot be read.
    pub async fn fresh(&self) -> Result<(), String> {
        let mut answered = self.answered.clone();
        let mut ours = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            ours = *asked;
        });
        match answered.wait_for(|answer| answer.until >= ours).await {
            Ok(answer) => answer.problem.clone().map_or(Ok(()), Err),
            Err(_) => Err("the store is not followed any more".to_owned()),
        }
    }
}

impl Nudged {
    /// Waits until there is a question that no load was begun for.
    pub async fn asked(&mut self) {
        let begun = self.begun;
        if self.asked.wait_for(|asked| *asked > begun).await.is_err() {
            // Nobody is left who could ask.
            std::future::pending().await
        }
    }

    /// A load begins: it will answer the questions up to this number.
    pub fn begin(&mut self) -> u64 {
        self.begun = *self.asked.borrow();
        self.begun
    }

    /// It is over, and its state published.
    pub fn answer(&self, until: u64, problem: Option<String>) {
        self.answers.send_replace(Answer { until, problem });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn an_answer_is_about_a_load_that_began_after_the_question() {
        let (nudge, mut nudged) = pair();
        let mut first = Box::pin(nudge.fresh());
        assert!(first.as_mut().now_or_never().is_none());
        nudged.asked().await;
        // Noticed, but not dealt with yet: it is not forgotten.
        nudged.asked().await;
        let running = nudged.begin();
        let mut second = Box::pin(nudge.fresh());
        assert!(second.as_mut().now_or_never().is_none());
        nudged.answer(running, None);
        assert_eq!(first.await, Ok(()));
        assert!(second.as_mut().now_or_never().is_none(), "that load began before the question");
        let mut third = Box::pin(nudge.fresh());
        assert!(third.as_mut().now_or_never().is_none());
        nudged.asked().await;
        let until = nudged.begin();
        nudged.answer(until, Some("gone".to_owned()));
        assert_eq!((second.await, third.await), (Err("gone".to_owned()), Err("gone".to_owned())));
        assert!(nudged.asked().now_or_never().is_none(), "nothing is left to answer");
    }

    #[tokio::test]
    async fn nobody_waits_for_a_follower_that_ended() {
        let (nudge, nudged) = pair();
        drop(nudged);
        assert!(nudge.fresh().await.is_err());
    }
}
