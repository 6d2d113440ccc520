//! The addresses that a listener allows (`allow_admin`, contract 2.1).
//!
//! Addresses are compared in canonical form: `::ffff:127.0.0.1` is `127.0.0.1`.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;
use model::RealIp;

/// `allow_admin` of one listener, for the addresses that clients have behind trusted proxies.
#[derive(Clone, Debug, Default)]
pub struct AllowedAddresses {
    /// `None` allows every address.
    networks: Option<Vec<IpNet>>,
    /// The proxies whose headers carry the client's address.
    real_ip: Option<RealIp>,
}

impl AllowedAddresses {
    /// `networks`: `None` allows every address. `real_ip`: `nginx_config.http.real_ip_*`, which
    /// nginx applies to every server.
    pub fn new(networks: Option<Vec<IpNet>>, real_ip: Option<RealIp>) -> Self {
        Self { networks, real_ip }
    }

    /// The client's address, where a trusted proxy's header carries it.
    pub fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> Option<SocketAddr> {
        self.real_ip.as_ref()?.client_addr(peer, headers)
    }

    /// Whether `allow_admin` contains this address.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.as_ref().is_none_or(|networks| networks.iter().any(|net| net.contains(&address)))
    }

    /// Whether the address is denied whatever headers the request has.
    pub fn always_denies(&self, address: IpAddr) -> bool {
        !self.allows(address)
            && !self.real_ip.as_ref().is_some_and(|real_ip| real_ip.reads_header_from(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_compared_in_canonical_form() {
        let only = AllowedAddresses::new(Some(vec!["127.0.0.0/24".parse().unwrap()]), None);
        assert!(only.allows("127.0.0.1".parse().unwrap()));
        assert!(only.allows("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!only.allows("127.0.1.1".parse().unwrap()));
        assert!(!only.allows("::1".parse().unwrap()));
        assert!(!AllowedAddresses::new(Some(Vec::new()), None).allows("127.0.0.1".parse().unwrap()));
        assert!(AllowedAddresses::default().allows("8.8.8.8".parse().unwrap()));
    }
}
