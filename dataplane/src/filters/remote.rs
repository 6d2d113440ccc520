//! Who sent a request: the peer of its connection, or the client that a trusted proxy names (`real_ip`).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use model::RealIp;

use crate::proxy::connection::ConnectionInfo;

/// The sender of one request.
#[derive(Debug, Clone, Copy)]
pub struct Remote {
    /// As of the connection, but `peer` is the client's address: nginx's `$remote_addr` and `$remote_port` (0: not known).
    pub arrival: ConnectionInfo,
    /// The other end of the connection: nginx's `$realip_remote_addr` and `$realip_remote_port`.
    pub direct: SocketAddr,
    found: bool,
}

impl Remote {
    /// The sender of a request with these headers, which are still the client's.
    pub fn of(arrival: &ConnectionInfo, real_ip: Option<&RealIp>, headers: &HeaderMap) -> Self {
        let direct = arrival.peer;
        let found = real_ip.and_then(|real_ip| real_ip.client(direct.ip(), headers));
        let arrival = ConnectionInfo { peer: found.unwrap_or(direct), ..*arrival };
        Self { arrival, direct, found: found.is_some() }
    }

    /// The client's address, where a proxy named it.
    pub fn found(&self) -> Option<IpAddr> {
        self.found.then(|| self.arrival.peer.ip())
    }
}

/// For the log: the client, and the proxy that named it.
impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.found, self.arrival.peer) {
            (false, peer) => write!(f, "{peer}"),
            (true, client) if client.port() == 0 => write!(f, "{} via {}", client.ip(), self.direct),
            (true, client) => write!(f, "{client} via {}", self.direct),
        }
    }
}
