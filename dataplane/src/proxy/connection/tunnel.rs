//! A WebSocket after its handshake: bytes between the client's connection or stream and the
//! upstream's connection, until both have closed.
//!
//! Invariant: it holds neither a snapshot nor a connection of the pool. What ends the client's
//! connection (its site's policy, a drain) ends it, too.

use std::cell::Cell;

use hyper::rt::Write;
use model::{Id, Timeouts};

use super::Connection;
use super::active_request::ActiveRequest;
use crate::http::incoming_body::IncomingBody;
use crate::io::chunk_read::ChunkRead;
use crate::io::linger::{LingerLimits, lingering_close};
use crate::observability::log;
use crate::tcp::relay::{self, ByteCounters, DrainLimit, RelayError};
use crate::upstream::upgrade::UpstreamTunnel;

/// The upstream's side, and what its relay needs.
pub(in crate::proxy) struct WebSocketTunnel {
    pub(super) upstream: UpstreamTunnel,
    /// The client's direction over HTTP/2.
    pub(super) body: Option<IncomingBody>,
    pub(super) timeouts: Timeouts,
    pub(super) route: Id,
    /// The request is in flight until the tunnel has closed. `None` until the server has taken the
    /// tunnel.
    pub(super) request: Option<Box<ActiveRequest>>,
}

impl Connection {
    /// Relays a WebSocket, counts and records it, and closes both sides.
    pub(super) async fn relay_web_socket(
        &self,
        mut client: impl ChunkRead + Write + Unpin,
        mut tunnel: WebSocketTunnel,
    ) {
        let (worker, counters) = (&self.worker, &self.worker.counters);
        counters.websockets.inc();
        let _active = counters.websockets_active.track();
        let bytes = ByteCounters {
            to_upstream: &counters.websocket_bytes_to_upstream,
            to_client: &counters.websocket_bytes_to_client,
            relayed: Cell::default(),
        };
        let limit = DrainLimit { drain: &worker.drain, idle: worker.config().drain_idle_timeout };
        let relayed = relay::relay(&mut client, &mut tunnel.upstream, &tunnel.timeouts, &bytes, &limit).await;
        let mut record = tunnel.request.as_mut().map(|request| &mut request.record);
        if let Some(record) = &mut record {
            record.tunnel = Some(bytes.relayed.get());
            record.is_complete = relayed.is_ok();
            record.reason = relayed.as_ref().err().and_then(RelayError::reason);
        }
        match relayed {
            Ok(()) => lingering_close(&mut client, LingerLimits::CONNECTION).await,
            // Without a shutdown, so that both sides see a truncated connection.
            Err(error) => {
                let reason = error.reason();
                if let Some(reason) = reason {
                    counters.record_error(reason);
                }
                log::web_socket_failed(&self.facts.info, &tunnel.route, reason, &error);
            }
        }
    }
}
