//! The target of the load: a parsed `https://` URL, checked to be on this machine.
//!
//! Load on another machine is an attack, so any address but loopback is rejected unless the caller
//! allows remote ones explicitly.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use rustls_pki_types::ServerName;

/// Why a target is rejected.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Not an address to dial.
    #[error("target `{text}`: {problem}; write it as https://HOST:PORT/PATH")]
    Syntax { text: String, problem: &'static str },
    /// The host name has no address.
    #[error("target host `{host}` cannot be resolved; use an IP address with --sni for the name")]
    Resolve { host: String, source: std::io::Error },
    /// Another machine.
    #[error("target {address} is not on this machine; --allow-remote if you own it and mean it")]
    Remote { address: SocketAddr },
}

#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// The name in SNI, which the server's certificate must be valid for.
    pub server_name: ServerName<'static>,
    /// The `Host` header.
    pub host: String,
    /// Path and query of the request.
    pub path: String,
}

impl Target {
    /// Parses `https://HOST[:PORT][/PATH]` (the default port is 443). `sni` replaces the URL's host
    /// in SNI, in the `Host` header and in the check of the server's certificate.
    ///
    /// # Errors
    /// Syntax, a name that does not resolve, or (without `allow_remote`) an address that is not
    /// loopback.
    pub fn parse(url: &str, sni: Option<&str>, allow_remote: bool) -> Result<Self, TargetError> {
        let syntax = |problem| TargetError::Syntax { text: url.to_owned(), problem };
        let rest = url.strip_prefix("https://").ok_or_else(|| syntax("does not start with https://"))?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        if path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(syntax("the path holds a blank or a control character"));
        }
        let (host, port) = split_authority(authority).ok_or_else(|| syntax("bad host or port"))?;
        let address = resolve(host, port)?;
        if !allow_remote && !address.ip().is_loopback() {
            return Err(TargetError::Remote { address });
        }
        let name = sni.unwrap_or(host);
        let server_name = ServerName::try_from(name.to_owned())
            .map_err(|_| syntax("the host is neither a DNS name nor an IP"))?;
        let host = match sni {
            Some(sni) => sni.to_owned(),
            None => authority.to_owned(),
        };
        Ok(Self { address, server_name, host, path: path.to_owned() })
    }
}

/// `host:port`, `host`, `[v6]:port`, `[v6]` -> host without brackets, port.
fn split_authority(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, after.strip_prefix(':').map_or_else(|| after.is_empty().then_some("443"), Some)?)
        }
        None => authority.split_once(':').unwrap_or((authority, "443")),
    };
    if host.is_empty() || host.contains('@') {
        return None;
    }
    Some((host, port.parse().ok()?))
}

fn resolve(host: &str, port: u16) -> Result<SocketAddr, TargetError> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let failed = |source| TargetError::Resolve { host: host.to_owned(), source };
    let mut found = (host, port).to_socket_addrs().map_err(failed)?;
    found.next().ok_or_else(|| failed(std::io::Error::other("no address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed() {
        let target = Target::parse("https://127.0.0.1:9443/hello?x=1", Some("a.test"), false).unwrap();
        assert_eq!(target.address.to_string(), "127.0.0.1:9443");
        assert_eq!((target.host.as_str(), target.path.as_str()), ("a.test", "/hello?x=1"));
        let target = Target::parse("https://[::1]", None, false).unwrap();
        assert_eq!((target.address.to_string().as_str(), target.path.as_str()), ("[::1]:443", "/"));
    }

    #[test]
    fn other_machines_are_rejected() {
        assert!(matches!(Target::parse("https://192.0.2.1/", None, false), Err(TargetError::Remote { .. })));
        assert!(Target::parse("https://192.0.2.1/", None, true).is_ok());
    }

    #[test]
    fn malformed_urls_are_syntax_errors() {
        for url in
            ["http://127.0.0.1/", "https://", "https://127.0.0.1:x/", "https://127.0.0.1/a b", "https://[::1"]
        {
            assert!(matches!(Target::parse(url, None, false), Err(TargetError::Syntax { .. })), "{url}");
        }
    }
}
