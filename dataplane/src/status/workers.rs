//! Questions to the workers, which only they can answer.
//!
//! Invariant: an answer waits for a worker for a second at most, and names a worker that has not
//! answered.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};

use crate::proxy::worker::WorkerCommand;

/// The longest wait for the workers.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// The commands of all workers, with the workers' names.
#[derive(Debug, Clone)]
pub(crate) struct WorkerQuestions(Vec<(String, mpsc::UnboundedSender<WorkerCommand>)>);

/// What the workers answered.
pub(super) struct Answers<T> {
    pub(super) answers: Vec<(String, T)>,
    /// The workers that have not answered in time.
    pub(super) silent: Vec<String>,
}

impl WorkerQuestions {
    /// The senders by the number of the worker.
    pub(crate) fn new(workers: impl IntoIterator<Item = mpsc::UnboundedSender<WorkerCommand>>) -> Self {
        let named = workers.into_iter().enumerate();
        Self(named.map(|(index, commands)| (format!("worker-{index}"), commands)).collect())
    }

    /// Asks every worker. `question` has what the worker answers with.
    pub(super) async fn ask<T>(&self, question: impl Fn(oneshot::Sender<T>) -> WorkerCommand) -> Answers<T> {
        let deadline = tokio::time::Instant::now() + ANSWER_MAX;
        let asked = self.0.iter().map(|(name, commands)| {
            let (sender, answer) = oneshot::channel();
            // A worker that has ended drops the sender.
            let _worker_runs = commands.send(question(sender)).is_ok();
            async move { (name, tokio::time::timeout_at(deadline, answer).await) }
        });
        let mut result = Answers { answers: Vec::new(), silent: Vec::new() };
        for (name, answer) in join_all(asked).await {
            match answer {
                Ok(Ok(answer)) => result.answers.push((name.clone(), answer)),
                _ => result.silent.push(name.clone()),
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_hangs_is_named_after_a_second() {
        let (first, mut commands) = mpsc::unbounded_channel();
        let (hangs, _kept) = mpsc::unbounded_channel();
        let (ended, _) = mpsc::unbounded_channel();
        let questions = WorkerQuestions::new([first, hangs, ended]);
        let answering = async {
            if let Some(WorkerCommand::Pools(answer)) = commands.recv().await {
                answer.send(Vec::new()).unwrap();
            }
        };
        let begun = tokio::time::Instant::now();
        let (answers, ()) = tokio::join!(questions.ask(WorkerCommand::Pools), answering);
        assert_eq!(begun.elapsed(), ANSWER_MAX);
        assert_eq!(answers.silent, ["worker-1", "worker-2"]);
        assert_eq!((answers.answers.len(), answers.answers[0].0.as_str()), (1, "worker-0"));
    }
}
