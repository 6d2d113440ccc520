//! Parses the networks of settings and documents: an address or a CIDR block (RFC 4632, RFC 4291).
//!
//! Invariant: an IPv4 network is parsed as one, however it is written. Addresses are compared in
//! canonical form, where `::ffff:192.0.2.1` is `192.0.2.1`, so a network in mapped form would match
//! no address.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// The bits before the IPv4 address in its IPv6 form (RFC 4291 section 2.5.5.2).
const MAPPED_BITS: u8 = 96;

/// Why a text is no network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Neither an address nor a block.
    #[error("not an IP address or network")]
    Syntax,
    /// A mapped network that is larger than the IPv4 addresses.
    #[error(
        "an IPv4 network in its IPv6 form, which needs a prefix of 96 bits or more; write it like 192.0.2.0/24"
    )]
    MappedPrefix,
}

/// Parses an address or a block and clears the host bits.
///
/// # Errors
///
/// [`NetworkError`].
pub fn parse(text: &str) -> Result<IpNet, NetworkError> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = network.map_err(|_| NetworkError::Syntax)?;
    let IpNet::V6(v6) = network else { return Ok(network.trunc()) };
    let Some(v4) = v6.addr().to_ipv4_mapped() else { return Ok(network.trunc()) };
    let prefix = v6.prefix_len().checked_sub(MAPPED_BITS).ok_or(NetworkError::MappedPrefix)?;
    Ipv4Net::new(v4, prefix).map(|network| IpNet::V4(network.trunc())).map_err(|_| NetworkError::Syntax)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mapped_network_is_the_ipv4_network() {
        for (text, network) in [
            ("192.0.2.9", "192.0.2.9/32"),
            ("192.0.2.9/24", "192.0.2.0/24"),
            ("::ffff:192.0.2.9", "192.0.2.9/32"),
            ("::ffff:c000:209", "192.0.2.9/32"),
            ("0:0:0:0:0:FFFF:192.0.2.9/128", "192.0.2.9/32"),
            ("::ffff:127.0.0.0/104", "127.0.0.0/8"),
            ("::ffff:127.9.9.9/104", "127.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
            ("::192.0.2.9", "::c000:209/128"),
        ] {
            assert_eq!(parse(text), Ok(network.parse().unwrap()), "{text}");
        }
        for text in ["::ffff:127.0.0.0/95", "::ffff:127.0.0.0/80", "::ffff:0:0/0"] {
            assert_eq!(parse(text), Err(NetworkError::MappedPrefix), "{text}");
        }
        for text in
            ["", "x", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.1/", "[::1]", "::ffff:10.0.0.1/129"]
        {
            assert_eq!(parse(text), Err(NetworkError::Syntax), "{text}");
        }
    }

    proptest! {
        #[test]
        fn both_forms_of_a_network_are_equal(bits in any::<u32>(), prefix in 0_u8..=32) {
            let v4 = std::net::Ipv4Addr::from(bits);
            let mapped = format!("{}/{}", v4.to_ipv6_mapped(), prefix + MAPPED_BITS);
            let network = parse(&format!("{v4}/{prefix}")).unwrap();
            prop_assert_eq!(parse(&mapped).unwrap(), network);
            prop_assert!(network.contains(&IpAddr::V4(v4)));
        }
    }
}
