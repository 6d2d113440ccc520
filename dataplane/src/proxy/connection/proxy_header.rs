//! The PROXY protocol header at the beginning of a connection, and whether its peer may name a
//! client.
//!
//! Invariant: the header is read from every peer, and its address counts from a trusted one only.
//! To skip the reading would hand the header's bytes to the next stage.

use std::net::SocketAddr;

use crate::io::buffered::BufferedSocket;
use crate::io::connection_info::ConnectionInfo;
use crate::io::proxy_protocol::{self, ProxyProtocolError};
use crate::io::timeouts::{TimeoutHandle, TimeoutKind};
use crate::observability::HasReason;
use crate::observability::log;
use crate::proxy::worker::Worker;
use crate::reason::Reason;

/// Reads the header. Gives the client's address, or `None` where the connection must close, which
/// is recorded then.
pub(super) async fn read(
    worker: &Worker,
    socket: &mut BufferedSocket,
    info: &ConnectionInfo,
    timeouts: &TimeoutHandle,
) -> Option<SocketAddr> {
    match proxy_protocol::read(socket).await {
        Ok(header) => {
            let is_trusted = is_trusted(worker, info);
            worker.counters.record_proxy_header(is_trusted);
            Some(header.source.filter(|_| is_trusted).unwrap_or(info.direct_peer))
        }
        Err(error) => {
            let reason = match (timeouts.expired(), &error) {
                (Some(TimeoutKind::Handshake), _) => Reason::HandshakeTimeout,
                (Some(TimeoutKind::Head), _) => Reason::HeadTimeout,
                // A health check of the proxy.
                (_, ProxyProtocolError::Empty) => return None,
                (_, error) => error.reason(),
            };
            worker.counters.record_error(reason);
            log::proxy_header_rejected(info.direct_peer, info.local, reason, &error);
            None
        }
    }
}

/// Whether the peer is in the `real_ip_from` of its kind of listener.
fn is_trusted(worker: &Worker, info: &ConnectionInfo) -> bool {
    let (config, peer) = (worker.config(), info.direct_peer.ip().to_canonical());
    if info.listener.protocol.is_http() {
        config.real_ip.as_ref().is_some_and(|real_ip| real_ip.reads_proxy_protocol_from(peer))
    } else {
        config.stream_real_ip_from.iter().any(|network| network.contains(&peer))
    }
}
