//! Pauses in long work that waits for nothing: other tasks of the runtime's worker run in between.

use std::time::{Duration, Instant};

/// How long a task works without a pause.
const STRETCH: Duration = Duration::from_millis(2);

/// The pauses of one task.
pub(crate) struct Pauses {
    last: Instant,
}

impl Pauses {
    pub(crate) fn new() -> Self {
        Self { last: Instant::now() }
    }

    /// Lets other tasks run if a pause is due. After each document.
    pub(crate) async fn let_others_run(&mut self) {
        if self.last.elapsed() >= STRETCH {
            tokio::task::yield_now().await;
            self.last = Instant::now();
        }
    }
}
