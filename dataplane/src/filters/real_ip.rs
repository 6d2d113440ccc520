//! The client's address: the connection's peer, or the client that a trusted proxy names
//! (`real_ip`), in a header of the request or with the PROXY protocol.

use std::fmt;
use std::net::IpAddr;

use http::HeaderMap;
use model::RealIp;

use crate::io::connection_info::ConnectionInfo;

/// The client's address for one request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientAddress {
    /// The connection's, with the client's address as `peer`: nginx's `$remote_addr` and
    /// `$remote_port` (0: unknown).
    pub(crate) info: ConnectionInfo,
    /// A proxy names the client.
    from_proxy: bool,
}

impl ClientAddress {
    /// The address for a request with these headers, which must be as the client sent them.
    pub(crate) fn resolve(info: &ConnectionInfo, real_ip: Option<&RealIp>, headers: &HeaderMap) -> Self {
        let named = real_ip.and_then(|real_ip| real_ip.client_addr(info.direct_peer.ip(), headers));
        let from_proxy = named.is_some() || info.is_proxied();
        let info = ConnectionInfo { peer: named.unwrap_or(info.peer), ..*info };
        Self { info, from_proxy }
    }

    /// The client's address, if a proxy names it.
    pub(crate) fn real_ip(&self) -> Option<IpAddr> {
        self.from_proxy.then(|| self.info.peer.ip())
    }
}

/// The client, and the proxy that names it.
impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}
