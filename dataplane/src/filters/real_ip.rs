//! Who sent a request: the peer of its connection, or the client that a trusted proxy names
//! (`real_ip`).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use model::RealIp;

use crate::proxy::connection::ConnectionInfo;

/// The sender of one request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientAddress {
    /// As of the connection, but `peer` is the client's address: nginx's `$remote_addr` and
    /// `$remote_port` (0: not known).
    pub info: ConnectionInfo,
    /// The other end of the connection: nginx's `$realip_remote_addr` and `$realip_remote_port`.
    pub direct_peer: SocketAddr,
    from_proxy: bool,
}

impl ClientAddress {
    /// The sender of a request with these headers, which are still the client's.
    pub(crate) fn resolve(arrival: &ConnectionInfo, real_ip: Option<&RealIp>, headers: &HeaderMap) -> Self {
        let direct = arrival.peer;
        let found = real_ip.and_then(|real_ip| real_ip.client_addr(direct.ip(), headers));
        let arrival = ConnectionInfo { peer: found.unwrap_or(direct), ..*arrival };
        Self { info: arrival, direct_peer: direct, from_proxy: found.is_some() }
    }

    /// The client's address, where a proxy named it.
    pub(crate) fn real_ip(&self) -> Option<IpAddr> {
        self.from_proxy.then(|| self.info.peer.ip())
    }
}

/// For the log: the client, and the proxy that named it.
impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from_proxy, self.info.peer) {
            (false, peer) => write!(f, "{peer}"),
            (true, client) if client.port() == 0 => write!(f, "{} via {}", client.ip(), self.direct_peer),
            (true, client) => write!(f, "{client} via {}", self.direct_peer),
        }
    }
}
