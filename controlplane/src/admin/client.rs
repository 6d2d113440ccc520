//! The client of an Admin API connection: its address and the verification result of its
//! certificate.

use std::net::SocketAddr;

use pki::Identity;
use rustls_pki_types::UnixTime;

#[derive(Clone, Debug)]
pub struct AdminClient {
    /// The socket's address; for a request, the address that a trusted proxy's header carries.
    pub address: SocketAddr,
    pub certificate: ClientCertStatus,
}

/// The verification result of a client certificate.
#[derive(Clone, Debug)]
pub enum ClientCertStatus {
    /// The listener requests none.
    NotRequested,
    /// The client sent none.
    Missing,
    /// The certificate is rejected; the reason is for the log only.
    Rejected(String),
    Verified {
        identity: Identity,
        /// The verification result is void after this time.
        expires: UnixTime,
    },
}

impl ClientCertStatus {
    /// The subject of a verified certificate, for the log.
    pub fn subject(&self) -> Option<&str> {
        match self {
            Self::Verified { identity, .. } => Some(identity.subject()),
            Self::NotRequested | Self::Missing | Self::Rejected(_) => None,
        }
    }
}
