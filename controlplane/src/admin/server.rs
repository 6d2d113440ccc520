//! The listeners of the Admin API.
//!
//! `listener` accepts, with the listener's own share of the connections, so that clients of one
//! listener cannot take those of another; `connection` has the handshake and HTTP/1.1. Everything
//! that a client can delay is bounded: connections, the handshake, a request's head and body, and
//! the time in which it must read its response.

mod connection;
mod listener;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use connection::ConnectionServer;
use listener::Listener;
use telemetry::{Heartbeats, Readiness};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::addresses::AllowedAddresses;
use super::handler::AdminApi;
use super::tls::ReloadingTls;

/// Limits on what clients use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of all listeners at a time; more wait in the accept queue. Each listener has an
    /// equal share.
    pub connections_max: usize,
    /// From accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// For a request's head, between two requests, and from the handshake to the first authorized
    /// request.
    pub header_timeout: Duration,
    /// Bytes of a request's head, at least 8192.
    pub header_bytes_max: usize,
    /// Between two writes of a response.
    pub send_timeout: Duration,
    /// For open requests during shutdown.
    pub shutdown_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(60),
            header_bytes_max: 64 << 10,
            send_timeout: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(10),
        }
    }
}

/// A bound listener with its TLS and its addresses.
pub struct BoundListener {
    pub listener: TcpListener,
    /// `None`: plain HTTP.
    pub tls: Option<ReloadingTls>,
    pub allowed: AllowedAddresses,
}

pub struct AdminServer(Vec<Listener>);

impl AdminServer {
    /// Serves these listeners. Their heartbeats are `admin`, `admin-2` and so on.
    pub fn new(
        listeners: Vec<BoundListener>,
        admin: AdminApi,
        limits: Limits,
        heartbeats: &Heartbeats,
    ) -> Self {
        let api = Arc::new(admin);
        let connections_max = (limits.connections_max / listeners.len().max(1)).max(1);
        let limits = Limits { connections_max, ..limits };
        let serve = |(nth, bound): (usize, BoundListener)| {
            let name = if nth == 1 { "admin".to_owned() } else { format!("admin-{nth}") };
            let connections = ConnectionServer {
                api: Arc::clone(&api),
                tls: bound.tls,
                allowed: Arc::new(bound.allowed),
                limits,
                denied_slots: Arc::new(Semaphore::new((limits.connections_max / 4).max(1))),
            };
            Listener {
                socket: bound.listener,
                heartbeat: heartbeats.add(name, Readiness::Required),
                connections: Arc::new(connections),
            }
        };
        Self((1..).zip(listeners).map(serve).collect())
    }

    /// The bound addresses, in the order of the listeners.
    ///
    /// # Errors
    /// When the operating system fails to report one.
    pub fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.0.iter().map(|listener| listener.socket.local_addr()).collect()
    }

    /// Serves until `stop` turns true, then lets open requests finish within the limit.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let mut running = JoinSet::new();
        for listener in self.0 {
            running.spawn(listener.run(stop.clone()));
        }
        while let Some(ended) = running.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a listener of the Admin API did not end in order");
            }
        }
    }
}

/// Returns when the server must stop, also when the sender is gone.
async fn wait_for_stop(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}
