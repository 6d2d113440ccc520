//! The client's address behind proxies, by the rules of nginx's `ngx_http_realip_module` (contract
//! 1.4).
//!
//! The data plane uses it for every request, the control plane for `allow_admin`. Invariant: the
//! header counts only from a peer in `real_ip_from`, and an address in it only across hops in that
//! list. An unreadable address leaves the last good one. With `real_ip_header: proxy_protocol` no
//! header of a request counts: who passes on bytes does not vouch for them.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

/// `nginx_config.http.real_ip_header`, `real_ip_from` and `real_ip_recursive`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealIp {
    from: Vec<IpNet>,
    source: RealIpSource,
    recursive: bool,
}

/// `real_ip_header`: where a proxy names the client.
#[derive(Debug, Clone, PartialEq, Eq)]
enum RealIpSource {
    Header(HeaderName),
    /// The keyword `proxy_protocol`: the header of the PROXY protocol, once for a connection.
    ProxyProtocol,
}

impl RealIp {
    /// Builds the settings. `None` if no proxy is trusted (`from` is empty) or `header` is no
    /// header name: then the address of the connection counts.
    pub fn new(header: &str, from: &[IpNet], recursive: bool) -> Option<Self> {
        let source = match header {
            "proxy_protocol" => RealIpSource::ProxyProtocol,
            name => RealIpSource::Header(HeaderName::from_bytes(name.as_bytes()).ok()?),
        };
        (!from.is_empty()).then(|| Self { from: from.to_vec(), source, recursive })
    }

    /// `real_ip_header`; `None` with the PROXY protocol.
    pub fn header(&self) -> Option<&HeaderName> {
        match &self.source {
            RealIpSource::Header(name) => Some(name),
            RealIpSource::ProxyProtocol => None,
        }
    }

    /// Whether the header of a request from this peer counts.
    pub fn reads_header_from(&self, peer: IpAddr) -> bool {
        self.header().is_some() && self.trusts(peer)
    }

    /// Whether the PROXY protocol header of a connection from this peer counts.
    pub fn reads_proxy_protocol_from(&self, peer: IpAddr) -> bool {
        self.source == RealIpSource::ProxyProtocol && self.trusts(peer)
    }

    /// Whether `real_ip_from` contains this address.
    fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.from.iter().any(|net| net.contains(&address))
    }

    /// The address in the header of a request from `peer`; `None` if the peer's own counts. The
    /// port is 0 if the header has none. As in nginx, several lines count for `X-Forwarded-For`
    /// only, and of another header the first line.
    pub fn client_addr(&self, peer: IpAddr, headers: &HeaderMap) -> Option<SocketAddr> {
        let header = self.header().filter(|_| self.trusts(peer))?;
        let mut found = None;
        let mut lines = headers.get_all(header).iter();
        if header.as_str() != "x-forwarded-for" {
            self.read_line(lines.next()?.as_bytes(), &mut found);
            return found;
        }
        // The nearest proxy appended to the last line.
        while let Some(line) = lines.next_back() {
            if !self.read_line(line.as_bytes(), &mut found) || !self.recursive {
                break;
            }
        }
        found
    }

    /// Reads addresses from the end of a line: one, or with `real_ip_recursive` all up to the first
    /// that is not in `real_ip_from`. Returns whether to continue with the previous line.
    fn read_line(&self, line: &[u8], found: &mut Option<SocketAddr>) -> bool {
        let separates = |byte: &u8| matches!(byte, b' ' | b',');
        let mut rest = Some(line);
        while let Some(line) = rest {
            if found.is_some_and(|hop| !self.trusts(hop.ip())) {
                return false;
            }
            let end = line.iter().rposition(|byte| !separates(byte)).map_or(0, |last| last + 1);
            let (line, _) = line.split_at(end);
            let start = line.iter().rposition(separates).map_or(0, |separator| separator + 1);
            let (before, token) = line.split_at(start);
            let Some(address) = address(token) else { return false };
            *found = Some(address);
            // `before` ends with the separator.
            rest = before.split_last().map(|(_, before)| before).filter(|_| self.recursive);
        }
        true
    }
}

/// Parses an address with or without a port (`ngx_parse_addr_port`): `192.0.2.1`, `192.0.2.1:80`,
/// `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`. Unlike nginx it rejects octets with leading
/// zeros, which some programs read as octal.
fn address(token: &[u8]) -> Option<SocketAddr> {
    let token = str::from_utf8(token).ok()?;
    let (ip, port) = match (token.parse::<IpAddr>(), token.strip_prefix('[')) {
        (Ok(ip), _) => (ip, 0),
        (Err(_), Some(bracketed)) => match bracketed.split_once(']')? {
            (ip, "") => (ip.parse().ok()?, 0),
            (ip, rest) => (ip.parse().ok()?, port(rest.strip_prefix(':')?)?),
        },
        (Err(_), None) => {
            let (ip, rest) = token.split_once(':')?;
            (ip.parse().ok()?, port(rest)?)
        }
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const NEAR: &str = "10.0.0.1";

    fn real_ip(header: &str, recursive: bool) -> RealIp {
        RealIp::new(header, &["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()], recursive).unwrap()
    }

    fn found(real_ip: &RealIp, peer: &str, lines: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(real_ip.header().unwrap(), line.parse().unwrap());
        }
        let found = real_ip.client_addr(peer.parse().unwrap(), &headers);
        found.map_or("-".to_owned(), |found| found.to_string())
    }

    /// An L4 proxy passes on the header fields of its clients, so none of them counts.
    #[test]
    fn with_the_proxy_protocol_no_header_counts() {
        let mut headers = HeaderMap::new();
        headers.insert("x-real-ip", "203.0.113.9".parse().unwrap());
        headers.insert("proxy_protocol", "203.0.113.9".parse().unwrap());
        let (near, far): (IpAddr, IpAddr) = (NEAR.parse().unwrap(), "192.0.2.1".parse().unwrap());
        let protocol = real_ip("proxy_protocol", true);
        assert_eq!((protocol.client_addr(near, &headers), protocol.header()), (None, None));
        assert!(!protocol.reads_header_from(near));
        assert!(protocol.reads_proxy_protocol_from(near) && !protocol.reads_proxy_protocol_from(far));
        let header = real_ip("X-Real-IP", true);
        assert!(header.reads_header_from(near) && !header.reads_proxy_protocol_from(near));
    }

    #[test]
    fn every_form_of_an_address_is_parsed() {
        let one = real_ip("X-Real-IP", false);
        for (value, wanted) in [
            ("192.0.2.7", "192.0.2.7:0"),
            ("192.0.2.7:4711", "192.0.2.7:4711"),
            ("192.0.2.7:00080", "192.0.2.7:80"),
            ("2001:db8::7", "[2001:db8::7]:0"),
            ("[2001:db8::7]", "[2001:db8::7]:0"),
            ("[2001:DB8::7]:443", "[2001:db8::7]:443"),
            ("::ffff:192.0.2.7", "192.0.2.7:0"),
            ("[::ffff:192.0.2.7]:1", "192.0.2.7:1"),
            ("198.51.100.1, 192.0.2.7", "192.0.2.7:0"),
            ("198.51.100.1 192.0.2.7 , ", "192.0.2.7:0"),
        ] {
            assert_eq!(found(&one, NEAR, &[value]), wanted, "{value}");
        }
    }

    #[test]
    fn an_invalid_address_is_ignored() {
        for recursive in [false, true] {
            for header in ["X-Real-IP", "X-Forwarded-For", "CF-Connecting-IP"] {
                let real_ip = real_ip(header, recursive);
                for bad in [
                    "",
                    ",",
                    " , ",
                    "unknown",
                    "_hidden",
                    "192.0.2",
                    "192.0.2.256",
                    "192.0.2.7:",
                    "192.0.2.7:0",
                    "192.0.2.7:65536",
                    "192.0.2.7:+80",
                    "192.0.2.7:x",
                    "010.0.0.1",
                    "[2001:db8::7",
                    "2001:db8::7]",
                    "[2001:db8::7]80",
                    "[2001:db8::7]:",
                    "[]",
                    "[",
                    "fe80::1%eth0",
                    "unix:",
                    "192.0.2.7;",
                    "\"192.0.2.7\"",
                    "for=192.0.2.7",
                    "192.0.2.7\t",
                    "192.0.2.7, x",
                    "a.example",
                ] {
                    assert_eq!(found(&real_ip, NEAR, &[bad]), "-", "{header}: {bad:?}");
                }
                assert_eq!(found(&real_ip, NEAR, &[]), "-");
            }
        }
    }

    #[test]
    fn only_a_trusted_peers_header_counts() {
        for recursive in [false, true] {
            let real_ip = real_ip("X-Forwarded-For", recursive);
            for peer in ["11.0.0.1", "::ffff:11.0.0.1", "2001:db8::1", "127.0.0.1"] {
                assert_eq!(found(&real_ip, peer, &["192.0.2.7"]), "-", "{peer}");
            }
            for listed in ["10.9.9.9", "::ffff:10.9.9.9", "fd00::1"] {
                assert_eq!(found(&real_ip, listed, &["192.0.2.7"]), "192.0.2.7:0", "{listed}");
            }
        }
        assert_eq!(RealIp::new("X-Real-IP", &[], true), None);
        assert_eq!(RealIp::new("proxy_protocol", &[], true), None);
    }

    #[test]
    fn recursive_stops_at_the_first_untrusted_hop() {
        let (last, all) = (real_ip("X-Forwarded-For", false), real_ip("x-forwarded-for", true));
        for (lines, not_recursive, recursive) in [
            (&["6.6.6.6, 192.0.2.7, 10.0.0.2"][..], "10.0.0.2:0", "192.0.2.7:0"),
            (&["6.6.6.6, 192.0.2.7:99, 10.0.0.2, 10.0.0.3"], "10.0.0.3:0", "192.0.2.7:99"),
            (&["10.0.0.4, 10.0.0.3"], "10.0.0.3:0", "10.0.0.4:0"),
            // An unreadable address ends the search, and the last good hop counts.
            (&["6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2:0", "10.0.0.2:0"),
            (&[", 10.0.0.2"], "10.0.0.2:0", "10.0.0.2:0"),
            // Lines count from the last one.
            (&["6.6.6.6", "192.0.2.7", "10.0.0.2"], "10.0.0.2:0", "192.0.2.7:0"),
            (&["192.0.2.7, 10.0.0.3", "10.0.0.2"], "10.0.0.2:0", "192.0.2.7:0"),
            (&["192.0.2.7", "unknown"], "-", "-"),
            (&["192.0.2.7", "unknown", "10.0.0.2"], "10.0.0.2:0", "10.0.0.2:0"),
            (&["192.0.2.7", ""], "-", "-"),
        ] {
            assert_eq!(found(&last, NEAR, lines), not_recursive, "{lines:?}");
            assert_eq!(found(&all, NEAR, lines), recursive, "{lines:?}");
        }
    }

    #[test]
    fn of_another_header_only_the_first_line_counts() {
        for header in ["X-Real-IP", "CF-Connecting-IP"] {
            for recursive in [false, true] {
                let real_ip = real_ip(header, recursive);
                assert_eq!(found(&real_ip, NEAR, &["192.0.2.7", "6.6.6.6"]), "192.0.2.7:0");
                assert_eq!(found(&real_ip, NEAR, &["x", "6.6.6.6"]), "-");
            }
            assert_eq!(found(&real_ip(header, true), NEAR, &["192.0.2.7, 10.0.0.2"]), "192.0.2.7:0");
        }
    }

    #[test]
    fn other_spellings_of_the_header_are_not_read() {
        let mut headers = HeaderMap::new();
        for name in ["x_real_ip", "x-real_ip", "x.real.ip", "x-forwarded-for"] {
            headers.insert(name, "6.6.6.6".parse().unwrap());
        }
        assert_eq!(real_ip("X-Real-IP", true).client_addr(NEAR.parse().unwrap(), &headers), None);
    }

    proptest! {
        /// No address that a client wrote before the first proxy's is read.
        #[test]
        fn a_client_behind_a_proxy_cannot_choose_its_address(
            forged in vec(select(vec!["10.0.0.9", "6.6.6.6", "fd00::2", "x", "", " ", ",", "[::1]:1"]), 0..6),
            glue in select(vec![", ", ",", " ", ",,"]),
            lines in any::<bool>(), recursive in any::<bool>()
        ) {
            let forged = forged.join(glue);
            let honest = "192.0.2.7, 10.0.0.2";
            let whole = format!("{forged}, {honest}");
            let lines: &[&str] = if lines { &[&forged, honest] } else { &[&whole] };
            let wanted = if recursive { "192.0.2.7:0" } else { "10.0.0.2:0" };
            prop_assert_eq!(found(&real_ip("X-Forwarded-For", recursive), NEAR, lines), wanted);
        }
    }
}
