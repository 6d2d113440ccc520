//! The start of a control plane that takes over from a predecessor.

use std::io;
use std::time::Duration;

use process::handover::{Generations, OfferedSuccession, PermittedSuccession, ServingSuccession, Wait};
use process::signals::Signals;
use process::socket_activation::UnknownSocket;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::StartupError;
use super::sockets::InheritedSockets;

/// How long one step of a hand-over may take: to read the settings, to prepare, to release.
pub(super) const STEP_MAX: Duration = Duration::from_secs(30);
/// How long the predecessor may take to pause: its open requests finish first.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Where this process comes from.
pub(super) struct Origin {
    pub(super) sockets: InheritedSockets,
    pub(super) generations: Generations,
    /// The process id of the predecessor.
    pub(super) predecessor: Option<u32>,
    offer: Option<OfferedSuccession>,
}

impl Origin {
    /// # Errors
    /// When a socket of the predecessor, or of the service manager, is not what its name says.
    pub(super) fn new(mut offer: Option<OfferedSuccession>) -> Result<Self, StartupError> {
        let sockets = match offer.as_mut().map(|offer| std::mem::take(&mut offer.sockets)) {
            Some(sockets) => InheritedSockets::new(sockets)?,
            None => InheritedSockets::activated()?,
        };
        Ok(Self {
            sockets,
            generations: offer.as_ref().map_or_else(Generations::first, |offer| offer.generations.clone()),
            predecessor: offer.as_ref().map(|offer| offer.predecessor),
            offer,
        })
    }

    /// # Errors
    /// When no listener has taken a socket of the service manager. A predecessor's socket may be
    /// one that the settings name no more.
    pub(super) fn ensure_no_socket_is_left(&self) -> Result<(), UnknownSocket> {
        if self.generations.number() == 1 { self.sockets.ensure_empty() } else { Ok(()) }
    }

    /// Waits until the predecessor has paused; `None` without one.
    ///
    /// # Errors
    /// When the predecessor goes on.
    pub(super) async fn wait_permitted(
        &mut self,
        signals: &Signals,
    ) -> Result<Option<PermittedSuccession>, StartupError> {
        let Some(offer) = self.offer.take() else { return Ok(None) };
        let signals = signals.clone();
        let permitted = blocking(move || {
            let stopping = || signals.is_stopping();
            offer.started()?.ready(Value::Null, Wait::new(PAUSE_MAX, &stopping))
        });
        Ok(Some(permitted.await??))
    }
}

/// Reports that this process accepts connections, and logs the end of the hand-over. The returned
/// task ends when the predecessor has left everything to this process; `None` without one.
///
/// # Errors
/// When the report cannot be sent: the predecessor goes on.
pub(super) async fn report_serving(
    permitted: Option<PermittedSuccession>,
    signals: &Signals,
) -> Result<Option<JoinHandle<()>>, StartupError> {
    let Some(permitted) = permitted else { return Ok(None) };
    let serving: ServingSuccession = blocking(move || permitted.serving()).await??;
    let signals = signals.clone();
    Ok(Some(tokio::task::spawn_blocking(move || {
        let stopping = || signals.is_stopping();
        match serving.wait_released(Wait::new(STEP_MAX, &stopping)) {
            Ok(()) => tracing::info!("upgrade: the predecessor has left its listeners to this process"),
            Err(error) => tracing::warn!(%error, "the predecessor may still accept connections"),
        }
    })))
}

/// Runs a call that blocks.
pub(super) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(call).await.map_err(io::Error::other)
}
