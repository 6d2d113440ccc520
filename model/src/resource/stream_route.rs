//! The stream route: what TCP connections match, and where they go.

use ipnet::IpNet;

use super::{Blocked, Scheme, UpstreamRef};
use crate::id::Id;
use crate::pattern::SniPattern;

/// Matches TCP connections and selects their upstream. An absent matcher matches everything.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamRoute {
    /// The id.
    pub id: Id,
    /// Match the SNI, without duplicates; if empty, every SNI and connections without TLS.
    pub snis: Vec<SniPattern>,
    /// Whether TLS is passed on as it is: the upstream terminates it.
    pub tls_passthrough: bool,
    /// Matches the client's address.
    pub remote_addr: Option<IpNet>,
    /// Matches the local address of the connection.
    pub server_addr: Option<IpNet>,
    /// Matches the local port of the connection.
    pub server_port: Option<u16>,
    /// Overrides the service's.
    pub upstream: Option<UpstreamRef>,
    /// The service, which supplies the upstream if the route has none.
    pub service: Option<Id>,
    /// Set if the resource is blocked ([`Resource::blocked`](super::Resource::blocked)).
    pub blocked: Option<Blocked>,
}

impl StreamRoute {
    /// How to mend what [`StreamRoute::puts_tls_into_tls`] finds.
    pub const TLS_INTO_TLS_HINT: &str = "use scheme tcp, or remove tls_passthrough";

    /// Why it passes no TLS on to an upstream of this scheme, if so: it is within TLS already.
    pub fn puts_tls_into_tls(&self, scheme: Scheme) -> Option<String> {
        let scheme = Some(scheme).filter(|scheme| self.tls_passthrough && scheme.is_encrypted())?.as_str();
        Some(format!("tls_passthrough passes TLS on, and scheme {scheme} would put it into another TLS"))
    }
}
