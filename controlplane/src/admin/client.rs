//! Who is at the other end of a connection: an address, and what its client certificate is worth.

use std::net::SocketAddr;

use pki::Identity;
use rustls_pki_types::UnixTime;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct AdminClient {
    /// Its address, or for a request that of the client that a trusted proxy names.
    pub address: SocketAddr,
    /// What its certificate is worth.
    pub certificate: ClientCertStatus,
}

/// The verdict on the client certificate of a connection.
#[derive(Clone, Debug)]
pub enum ClientCertStatus {
    /// This listener asks for none.
    NotRequested,
    /// It was asked for and none came.
    Missing,
    /// It came and is not good; the reason is for our log only.
    Rejected(String),
    /// It is good.
    Verified {
        /// Whose it is.
        identity: Identity,
        /// The moment from which the verdict no longer holds.
        expires: UnixTime,
    },
}

impl ClientCertStatus {
    /// The subject of a good certificate, for the log.
    pub fn subject(&self) -> Option<&str> {
        match self {
            Self::Verified { identity, .. } => Some(identity.subject()),
            Self::NotRequested | Self::Missing | Self::Rejected(_) => None,
        }
    }
}
