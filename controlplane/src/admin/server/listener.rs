//! The accept loop of one listener.
//!
//! A listener that closes accepts the queued connections first; one that is handed over leaves them
//! to the successor. A connection accepted last gets its first response.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use telemetry::Heartbeat;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::connection::ConnectionServer;
use super::{ListenerPhase, wait_for_end};
use crate::listener_errors::ErrorReason;

/// Backoff of accept when the process has no file descriptors left; doubled each time up to the
/// maximum.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A listener that is ready to accept.
pub(super) struct Listener {
    pub(super) socket: TcpListener,
    pub(super) heartbeat: Arc<Heartbeat>,
    /// The settings of connections and requests.
    pub(super) current: watch::Receiver<Arc<ConnectionServer>>,
    pub(super) phase: watch::Receiver<ListenerPhase>,
    /// For its connections.
    pub(super) permits: Arc<Semaphore>,
}

impl Listener {
    /// Serves until the phase says otherwise, then lets open requests finish within the limit.
    pub(super) async fn run(self) {
        let Self { socket, heartbeat, current, mut phase, permits } = self;
        let mut connections = JoinSet::new();
        let mut backoff = ACCEPT_BACKOFF;
        let serve = |connections: &mut JoinSet<()>, stream, address, permit, phase| {
            let server = Arc::clone(&current.borrow());
            let Ok(denied_slot) = server.reserve_denied_slot(address) else { return };
            let current = current.clone();
            connections.spawn(async move {
                server.connection(stream, address, current, phase).await;
                drop((permit, denied_slot));
            });
        };
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                () = wait_for_end(&mut phase) => break,
                never = heartbeat.beat_forever() => match never {},
                accepted = accept(&socket, &permits) => accepted,
            };
            match accepted {
                Ok((stream, address, permit)) => {
                    backoff = ACCEPT_BACKOFF;
                    serve(&mut connections, stream, address, permit, phase.clone());
                }
                Err(error) => {
                    if let Some(suppressed) = ErrorReason::AdminAccept.record() {
                        tracing::warn!(%error, suppressed, "the Admin API cannot accept a connection");
                    }
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(ACCEPT_BACKOFF_MAX);
                }
            }
        }
        heartbeat.set_idle();
        // Clients see queued connections as established; closing the listener would reset them.
        let is_handed_over = *phase.borrow() == ListenerPhase::HandedOver;
        if let Ok(queue) = socket.into_std()
            && !is_handed_over
        {
            while let Ok(permit) = Arc::clone(&permits).try_acquire_owned()
                && let Ok((stream, address)) = queue.accept()
            {
                let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                if let Ok(stream) = stream {
                    serve(&mut connections, stream, address, permit, phase.clone());
                }
            }
        }
        let open = async { while connections.join_next().await.is_some() {} };
        let shutdown_timeout = current.borrow().limits.shutdown_timeout;
        if tokio::time::timeout(shutdown_timeout, open).await.is_err() {
            tracing::warn!(
                connections = connections.len(),
                "stopped before the last Admin API requests ended"
            );
        }
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, permit))
}
