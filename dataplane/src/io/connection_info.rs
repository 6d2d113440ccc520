//! The addresses of a client connection, and the options of its listener.

use std::fmt;
use std::net::SocketAddr;

use conf::ProxyProtocolVersion;

/// The protocol of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
    /// A listener of `stream_proxy.tcp`: the bytes are relayed to an upstream.
    Tcp(TcpMode),
}

/// What a listener of `stream_proxy.tcp` does with TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpMode {
    /// The bytes are relayed, whatever they mean.
    Plain,
    /// `tls`: TLS is terminated.
    Terminate,
    /// `tls_passthrough`: TLS is relayed by the SNI in its ClientHello.
    Passthrough,
    /// Both: the stream route decides which of the two.
    ByRoute,
}

impl ListenerProtocol {
    /// Whether HTTP is spoken.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }
}

/// A listener: its protocol, and the PROXY protocol on both sides of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerOptions {
    pub protocol: ListenerProtocol,
    /// A connection begins with a header of the PROXY protocol, before TLS.
    pub proxy_protocol: bool,
    /// The header that upstreams of TCP connections get.
    pub proxy_protocol_to_upstream: Option<ProxyProtocolVersion>,
}

impl From<ListenerProtocol> for ListenerOptions {
    /// Without the PROXY protocol.
    fn from(protocol: ListenerProtocol) -> Self {
        Self { protocol, proxy_protocol: false, proxy_protocol_to_upstream: None }
    }
}

/// The addresses of a client connection, and its listener.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionInfo {
    /// The client's address: the connection's peer, or the client that a trusted peer names with
    /// the PROXY protocol.
    pub peer: SocketAddr,
    /// The connection's peer, which may be a proxy.
    pub direct_peer: SocketAddr,
    /// The address that the client, or the proxy, connected to.
    pub local: SocketAddr,
    pub listener: ListenerOptions,
}

impl ConnectionInfo {
    /// A connection from `peer`, accepted at `local`.
    pub fn new(peer: SocketAddr, local: SocketAddr, listener: impl Into<ListenerOptions>) -> Self {
        Self { peer, direct_peer: peer, local, listener: listener.into() }
    }

    /// Whether a proxy named the client.
    pub fn is_proxied(&self) -> bool {
        self.peer != self.direct_peer
    }
}

/// For the log: the client, and the proxy that named it.
impl fmt::Display for ConnectionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_proxied(), self.peer) {
            (false, peer) => write!(f, "{peer}"),
            (true, client) if client.port() == 0 => write!(f, "{} via {}", client.ip(), self.direct_peer),
            (true, client) => write!(f, "{client} via {}", self.direct_peer),
        }
    }
}
