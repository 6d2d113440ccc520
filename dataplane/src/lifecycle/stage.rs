//! How far the stop of the process has come: set by `boot`, read by workers, agent and status
//! listener.

use tokio::sync::watch;

/// How far the stop of the process has come. It only ever moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum ShutdownStage {
    /// No stop.
    #[default]
    Serving,
    /// `drain_delay` runs: everything is served, and HTTP/1 answers end their connections.
    LameDuck,
    /// Listeners close, and what runs may finish.
    Draining,
}

/// Follows the stage. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ShutdownWatch(watch::Receiver<ShutdownStage>);

impl ShutdownWatch {
    /// The one that sets the stage, and those who follow it.
    pub fn new() -> (watch::Sender<ShutdownStage>, Self) {
        let (sender, receiver) = watch::channel(ShutdownStage::default());
        (sender, Self(receiver))
    }

    /// The stage now.
    pub fn stage(&self) -> ShutdownStage {
        *self.0.borrow()
    }

    /// Waits until the stop has come so far; also ends when the sender is gone.
    pub async fn wait_for(&mut self, wanted: ShutdownStage) {
        let _reached_or_abandoned = self.0.wait_for(|stage| *stage >= wanted).await.is_ok();
    }
}
