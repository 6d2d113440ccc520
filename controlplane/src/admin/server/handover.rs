//! The listeners of the Admin API during a hand-over to another process.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{AdminServer, ListenerPhase, StdListener};

/// Between two looks at the open connections.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

impl AdminServer {
    /// Duplicates of the sockets, in the order of the listeners.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub(crate) fn sockets(&self) -> io::Result<Vec<std::net::TcpListener>> {
        self.listeners.iter().map(|listener| listener.socket.try_clone()).collect()
    }

    /// Ends each connection with its next response, so that no client loses a request on one that
    /// closes. Returns when none is open, or after `max`: an idle client may never send one.
    pub(crate) async fn retire(&self, max: Duration) {
        for listener in &self.listeners {
            listener.phase.send_replace(ListenerPhase::Retiring);
        }
        let none_open = async {
            while self.listeners.iter().any(|listener| listener.connections.has_connections()) {
                tokio::time::sleep(CHECK_INTERVAL).await;
            }
        };
        let _idle_ones_remain = tokio::time::timeout(max, none_open).await;
    }

    /// Leaves the queues to a successor and lets open requests finish within the limit. The sockets
    /// stay open.
    pub(crate) async fn pause(&mut self) {
        for listener in &self.listeners {
            listener.phase.send_replace(ListenerPhase::HandedOver);
        }
        self.wait_for_tasks().await;
    }

    /// Serves again after [`Self::retire`] or [`Self::pause`].
    ///
    /// # Errors
    /// When the operating system has no descriptor left.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        let mut first_error = None;
        for listener in std::mem::take(&mut self.listeners) {
            if listener.phase.borrow().accepts() {
                listener.phase.send_replace(ListenerPhase::Serving);
                self.listeners.push(listener);
                continue;
            }
            let settings = Arc::clone(&listener.settings.borrow());
            match listener.socket.try_clone().and_then(StdListener::new) {
                Ok(socket) => {
                    self.heartbeats.remove(&listener.heartbeat);
                    self.spawn(listener.number, socket, settings);
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}
