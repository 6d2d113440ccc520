//! TLS, in the order of a connection: the ClientHello selects the site, the site's configuration
//! drives the handshake (in full or from a ticket), `pki` verifies the client, and the transport
//! encrypts what follows.

pub(crate) mod alert;
#[cfg(feature = "engine-boring")]
pub(crate) mod boring;
pub mod client_hello;
pub mod client_verifier;
pub(crate) mod failure;
pub mod handshake;
pub mod handshake_state;
mod key_schedule;
pub mod params;
pub mod record;
pub mod site_config;
pub mod sni_reader;
pub mod stream;
pub(crate) mod ticket;
pub mod transport;

use pki::ClientAuth;

/// The subsystem that a handshake leads to, as in nginx and APISIX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subsystem {
    /// HTTP requests. A site with skip rules accepts every client, and authorizes each request.
    Http,
    /// A TCP connection. Nothing is authorized after the handshake, so a site with a client policy
    /// always requires a certificate.
    Stream,
}

impl Subsystem {
    /// Whether a handshake under this policy requires a verified client (rustls:
    /// `client_auth_mandatory`).
    pub fn requires_client_cert(self, policy: &ClientAuth) -> bool {
        policy.requires_client_cert() || self == Self::Stream
    }
}

/// Whether an established connection has plaintext to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaintextState {
    Available,
    /// The peer has ended its direction with `close_notify`.
    CloseNotify,
    /// The connection ended without `close_notify`, so data may be missing.
    Truncated,
    NeedMoreData,
}
