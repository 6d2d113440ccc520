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
    /// Whether the server certificate is verified. A server that is accepted by its identity always
    /// is.
    pub fn verifies(&self, settings: VerifyPolicy) -> bool {
        self.verify_identity.is_some()
            || settings == VerifyPolicy::Always
            || self.verify.unwrap_or(settings == VerifyPolicy::UnlessExcepted)
    }
}

/// What the settings file says about the servers of all upstreams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VerifyPolicy {
    /// Only those of upstreams with `tls.verify: true` are verified.
    #[default]
    WhereAsked,
    /// Those of all upstreams but the ones with `tls.verify: false`
    /// (`apisix.ssl.upstream_verify_default`).
    UnlessExcepted,
    /// All (`proxy_ssl_verify on`). An APISIX before 3.19 stores `verify: false` where it was
    /// not written, so that it excepts nothing here.
    Always,
}

impl VerifyPolicy {
    /// `always`: `proxy_ssl_verify`; `by_default`: `upstream_verify_default`.
    pub fn of_settings(always: bool, by_default: bool) -> Self {
        match (always, by_default) {
            (true, _) => Self::Always,
            (false, true) => Self::UnlessExcepted,
            (false, false) => Self::WhereAsked,
        }
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
