//! TLS towards an upstream: the client certificate, and whose servers are accepted.
//!
//! Invariant: what is absent here is decided by the settings file, and not by a default of a
//! document.

use std::sync::Arc;

use super::KeyPair;
use crate::id::Id;
use crate::server_identity::ServerIdentity;

/// TLS settings of an upstream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UpstreamTls {
    /// The client certificate.
    pub identity: Option<UpstreamIdentity>,
    /// Whether the server certificate is verified; `None` uses the settings file.
    pub verify: Option<bool>,
    /// `ca_certs`: the trust anchors; `None` uses those of the settings file.
    pub anchors: Option<Arc<pki::TrustAnchors>>,
    /// The servers that are accepted, in place of those for the name in the handshake.
    pub verify_identity: Option<Arc<ServerIdentity>>,
}

impl UpstreamTls {
    /// Whether the server certificate is verified, where `default` is what the settings file says
    /// for upstreams that say nothing. A server that is accepted by its identity always is.
    pub fn verifies(&self, default: bool) -> bool {
        self.verify_identity.is_some() || self.verify.unwrap_or(default)
    }
}

/// The client certificate for an upstream.
#[derive(Debug, Clone, PartialEq)]
pub enum UpstreamIdentity {
    /// `client_cert` and `client_key`.
    Inline(KeyPair),
    /// `client_cert_id`: an ssl of `type: client`.
    Ssl(Id),
}
