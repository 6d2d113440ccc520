//! Shared state of the process: the handles on the snapshot and the ticket ring, whether the
//! process is ready, and how it drains.

pub(crate) mod drain;
pub mod handles;

use tokio::sync::watch;

/// A stage of the shutdown; stages only advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum ShutdownStage {
    /// No shutdown.
    #[default]
    Serving,
    /// A successor has the listeners: this process accepts nothing, and open connections end with
    /// their next response, or at their time limits.
    HandedOver,
    /// `drain_delay` runs: all requests are served, and HTTP/1 responses close their connections.
    LameDuck,
    /// Listeners close, and open connections drain.
    Draining,
}

/// Observes the stage. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ShutdownWatch(watch::Receiver<ShutdownStage>);

impl ShutdownWatch {
    /// The sender that sets the stage, and a watch on it.
    pub fn new() -> (watch::Sender<ShutdownStage>, Self) {
        let (sender, receiver) = watch::channel(ShutdownStage::default());
        (sender, Self(receiver))
    }

    /// The current stage.
    pub fn stage(&self) -> ShutdownStage {
        *self.0.borrow()
    }

    /// Waits until the shutdown is at this stage or later; ends, too, when the sender is dropped.
    pub async fn wait_for(&mut self, stage: ShutdownStage) {
        let _reached_or_sender_dropped = self.0.wait_for(|current| *current >= stage).await.is_ok();
    }
}
