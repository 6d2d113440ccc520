//! `apisix.proxy_mode` and `apisix.stream_proxy`: the TCP listeners (contract 1.3).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Reader;
use crate::settings::{ProxyMode, ProxyProtocolVersion, StreamListener};
use crate::tree::{YamlNode, YamlValue};
use crate::value::{self, ValueError};

/// Each listener is a socket per worker; a mistyped range must not use up all descriptors.
const LISTENERS_MAX: usize = 1024;

impl Reader<'_> {
    pub(super) fn proxy_mode(&mut self) -> ProxyMode {
        self.required("apisix.proxy_mode", |node| match value::text(node)?.as_str() {
            "http" => Ok(ProxyMode::Http),
            "stream" => Ok(ProxyMode::Stream),
            "http&stream" => Ok(ProxyMode::Both),
            _ => Err(ValueError::expected("http, stream or http&stream", node)),
        })
    }

    pub(super) fn streams(&mut self, mode: ProxyMode) -> Vec<StreamListener> {
        let field = "apisix.stream_proxy.tcp";
        let defaults = self.stream_defaults();
        let read = |node: &YamlNode| entry(node, defaults);
        let listed = self.optional(field, |node| value::list(node, read)).unwrap_or_default().concat();
        if listed.len() > LISTENERS_MAX {
            let message = format!("{} ports; at most {LISTENERS_MAX} can be listened on", listed.len());
            self.problem(field, message);
        }
        if !mode.streams() && !listed.is_empty() {
            self.warn(field, "not listened on, because proxy_mode is http; set it to http&stream");
        }
        if mode.streams() && listed.is_empty() {
            self.warn("apisix.proxy_mode", "streams are proxied, but stream_proxy.tcp names no listener");
        }
        listed
    }

    /// The options of a listener that has none of its own.
    fn stream_defaults(&mut self) -> StreamOptions {
        let accept = self.optional("apisix.proxy_protocol.enable_tcp_pp", value::boolean);
        let to_upstream = self.optional("apisix.proxy_protocol.enable_tcp_pp_to_upstream", version);
        StreamOptions {
            tls: false,
            tls_passthrough: false,
            proxy_protocol: accept.unwrap_or(false),
            proxy_protocol_to_upstream: to_upstream.unwrap_or(None),
        }
    }
}

/// The options of a listener.
#[derive(Debug, Clone, Copy)]
struct StreamOptions {
    tls: bool,
    tls_passthrough: bool,
    proxy_protocol: bool,
    proxy_protocol_to_upstream: Option<ProxyProtocolVersion>,
}

/// A port, an address with a port, a range of ports, or `{addr, tls, proxy_protocol, ...}`.
fn entry(node: &YamlNode, defaults: StreamOptions) -> Result<Vec<StreamListener>, ValueError> {
    let YamlValue::Map(_) = &node.value else {
        return Ok(listeners(addresses(node)?, defaults));
    };
    let part = |name: &str| node.get(name).filter(|node| !node.is_null());
    let flag = |name: &str, default: bool| {
        let given = part(name).map(value::boolean).transpose();
        given.map(|given| given.unwrap_or(default)).map_err(|error| error.below(name))
    };
    let to_upstream = part("proxy_protocol_to_upstream").map(version).transpose();
    let options = StreamOptions {
        tls: flag("tls", defaults.tls)?,
        tls_passthrough: flag("tls_passthrough", defaults.tls_passthrough)?,
        proxy_protocol: flag("proxy_protocol", defaults.proxy_protocol)?,
        proxy_protocol_to_upstream: to_upstream
            .map_err(|error| error.below("proxy_protocol_to_upstream"))?
            .unwrap_or(defaults.proxy_protocol_to_upstream),
    };
    let Some(addr) = part("addr") else {
        let text = "invalid stream_proxy.tcp entry: addr is missing; write {addr: 9100, tls: true}";
        return Err(ValueError::new(text).on_line(node.line));
    };
    let addresses = addresses(addr).map_err(|error| error.below("addr"))?;
    Ok(listeners(addresses, options))
}

/// APISIX's boolean, whose `true` is nginx's version 1; or, which is ours, a version.
fn version(node: &YamlNode) -> Result<Option<ProxyProtocolVersion>, ValueError> {
    match value::text(node).as_deref() {
        Ok("v1") => Ok(Some(ProxyProtocolVersion::V1)),
        Ok("v2") => Ok(Some(ProxyProtocolVersion::V2)),
        _ => match value::boolean(node) {
            Ok(is_on) => Ok(is_on.then_some(ProxyProtocolVersion::V1)),
            Err(_) => Err(ValueError::expected("true, false, v1 or v2", node)),
        },
    }
}

fn listeners(addresses: Vec<SocketAddr>, options: StreamOptions) -> Vec<StreamListener> {
    let StreamOptions { tls, tls_passthrough, proxy_protocol, proxy_protocol_to_upstream } = options;
    let listener =
        |addr| StreamListener { addr, tls, tls_passthrough, proxy_protocol, proxy_protocol_to_upstream };
    addresses.into_iter().map(listener).collect()
}

/// As in nginx, a port without an address is an IPv4 port.
fn addresses(node: &YamlNode) -> Result<Vec<SocketAddr>, ValueError> {
    let YamlValue::Scalar(scalar) = &node.value else {
        return Err(ValueError::expected("a port, address:port or a range of ports", node));
    };
    let text = scalar.text.trim();
    let invalid = |why: &str| {
        ValueError::new(&format!("invalid stream_proxy.tcp entry: {text}: {why}")).on_line(node.line)
    };
    let (ip, ports) = match text.rsplit_once(':') {
        None => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), text),
        Some((host, ports)) => {
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let ip = bare.unwrap_or(host).parse::<IpAddr>().ok().filter(|ip| ip.is_ipv6() == bare.is_some());
            (ip.ok_or_else(|| invalid("expected an IP address before the port, IPv6 in brackets"))?, ports)
        }
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| digits).ok_or_else(|| invalid("expected a port from 0 to 65535"))
    };
    let range = match ports.split_once('-') {
        None => number(ports)?..=number(ports)?,
        Some((first, last)) => number(first)?..=number(last)?,
    };
    if range.is_empty() || ports.contains('-') && *range.start() == 0 {
        return Err(invalid("expected a range like 2000-2100"));
    }
    Ok(range.map(|port| SocketAddr::new(ip, port)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: StreamOptions = StreamOptions {
        tls: false,
        tls_passthrough: false,
        proxy_protocol: false,
        proxy_protocol_to_upstream: None,
    };

    fn read_with(text: &str, defaults: StreamOptions) -> Result<Vec<StreamListener>, ValueError> {
        let tree = crate::tree::parse(&format!("v: {text}")).unwrap().unwrap();
        entry(tree.get_path("v").unwrap(), defaults)
    }

    fn read(text: &str) -> Result<Vec<StreamListener>, ValueError> {
        read_with(text, NONE)
    }

    fn shown_with(text: &str, defaults: StreamOptions) -> Vec<String> {
        let show = |listener: &StreamListener| {
            let mut shown = listener.addr.to_string();
            let passes = (listener.tls_passthrough, " passthrough");
            for (is_on, name) in [(listener.tls, " tls"), passes, (listener.proxy_protocol, " pp")] {
                shown.push_str(if is_on { name } else { "" });
            }
            match listener.proxy_protocol_to_upstream {
                Some(version) => format!("{shown} to_upstream={version:?}"),
                None => shown,
            }
        };
        read_with(text, defaults).unwrap().iter().map(show).collect()
    }

    fn shown(text: &str) -> Vec<String> {
        shown_with(text, NONE)
    }

    #[test]
    fn every_form_of_a_stream_listener_is_read() {
        assert_eq!(shown("9100"), ["0.0.0.0:9100"]);
        assert_eq!(shown("'9100'"), ["0.0.0.0:9100"]);
        assert_eq!(shown("'127.0.0.1:9100'"), ["127.0.0.1:9100"]);
        assert_eq!(shown("'[::1]:9100'"), ["[::1]:9100"]);
        assert_eq!(shown("2000-2002"), ["0.0.0.0:2000", "0.0.0.0:2001", "0.0.0.0:2002"]);
        assert_eq!(shown("'127.0.0.1:2000-2001'"), ["127.0.0.1:2000", "127.0.0.1:2001"]);
        assert_eq!(shown("{addr: 9100, tls: true}"), ["0.0.0.0:9100 tls"]);
        assert_eq!(shown("{addr: '127.0.0.1:0', tls: false, proxy_protocol: false}"), ["127.0.0.1:0"]);
        assert_eq!(shown("{addr: 1, tls_passthrough: true}"), ["0.0.0.0:1 passthrough"]);
        assert_eq!(shown("{addr: 1, tls: true, tls_passthrough: true}"), ["0.0.0.0:1 tls passthrough"]);
        assert_eq!(shown("65534-65535").len(), 2);
    }

    /// `test_stream_proxy_protocol.sh`: an entry's own value wins over the global one.
    #[test]
    fn an_entry_overrides_the_proxy_protocol_defaults() {
        assert_eq!(shown("{addr: 1, proxy_protocol: true}"), ["0.0.0.0:1 pp"]);
        assert_eq!(shown("{addr: 1, proxy_protocol_to_upstream: true}"), ["0.0.0.0:1 to_upstream=V1"]);
        assert_eq!(shown("{addr: 1, proxy_protocol_to_upstream: v2}"), ["0.0.0.0:1 to_upstream=V2"]);
        let both = StreamOptions {
            proxy_protocol: true,
            proxy_protocol_to_upstream: Some(ProxyProtocolVersion::V2),
            ..NONE
        };
        assert_eq!(shown_with("1", both), ["0.0.0.0:1 pp to_upstream=V2"]);
        assert_eq!(shown_with("{addr: 1, tls: true}", both), ["0.0.0.0:1 tls pp to_upstream=V2"]);
        assert_eq!(shown_with("{addr: 1, proxy_protocol: false}", both), ["0.0.0.0:1 to_upstream=V2"]);
        assert_eq!(shown_with("{addr: 1, proxy_protocol_to_upstream: false}", both), ["0.0.0.0:1 pp"]);
        assert_eq!(
            shown_with("{addr: 1, proxy_protocol_to_upstream: true}", both),
            ["0.0.0.0:1 pp to_upstream=V1"]
        );
        for bad in ["v3", "2", "[v1]"] {
            let error = read(&format!("{{addr: 1, proxy_protocol_to_upstream: {bad}}}")).unwrap_err();
            assert_eq!(error.subpath, ".proxy_protocol_to_upstream", "{bad}");
        }
    }

    #[test]
    fn invalid_stream_listeners_are_reported() {
        for bad in [
            "x",
            "70000",
            "'host:9100'",
            "'::1:9100'",
            "'[127.0.0.1]:1'",
            "2100-2000",
            "0-5",
            "1-",
            "-1",
            "''",
        ] {
            let error = read(bad).unwrap_err();
            assert!(
                error.message.starts_with("invalid stream_proxy.tcp entry: "),
                "{bad}: {}",
                error.message
            );
        }
        assert!(read("{tls: true}").unwrap_err().message.contains("addr is missing"));
        assert_eq!(read("{addr: 1, tls: 2}").unwrap_err().subpath, ".tls");
        assert_eq!(read("{addr: 1, tls_passthrough: 2}").unwrap_err().subpath, ".tls_passthrough");
        assert_eq!(read("{addr: x}").unwrap_err().subpath, ".addr");
    }
}
