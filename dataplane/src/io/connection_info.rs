//! The addresses and the protocol of a client connection.

use std::net::SocketAddr;

/// The protocol of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
    /// A listener of `stream_proxy.tcp`: the bytes are relayed to an upstream.
    Tcp {
        /// TLS is terminated here.
        tls: bool,
    },
}

impl ListenerProtocol {
    /// Whether a connection begins with a TLS handshake.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tcp { tls: true })
    }
}

/// The addresses and the protocol of a client connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionInfo {
    /// The client's address.
    pub peer: SocketAddr,
    /// The address that the client connected to.
    pub local: SocketAddr,
    /// The listener's protocol.
    pub protocol: ListenerProtocol,
}
