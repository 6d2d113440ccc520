//! What a request asks for: host and path, normalised once, for every later decision.
//!
//! Stands right behind the HTTP parser. Routing, skip rules and the SNI x Host check all read [`Target`], so no
//! spelling of a host or path (case, percent-encoding, dot segments, double slashes, absolute form, port,
//! trailing dot) can get one verdict here and another there. The upstream receives the path as the client
//! wrote it. RFC 3986 section 6; contract sections 5.2 and 7.1.

use http::{HeaderMap, Uri, Version, header, uri::Authority};
use model::Name;

/// The normalised target of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The host without port; `None` when a request of HTTP/1.0 names none.
    pub host: Option<Name>,
    /// The authority as the client sent it, for `X-Forwarded-Host` and `pass_host: pass`.
    pub authority: Option<String>,
    /// Percent-decoded, dot segments resolved, slashes merged; starts with `/`. Without the query.
    pub path: String,
}

/// A target that cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No host, which only HTTP/1.0 may do (RFC 9112 section 3.2).
    #[error("the request names no host")]
    NoHost,
    /// Two different hosts, or more than one `Host` header.
    #[error("the request names more than one host")]
    Hosts,
    /// The host is not a host name or address.
    #[error("the request's host is not a host name or an address")]
    Host,
    /// The path does not decode, climbs above the root, or holds a NUL byte.
    #[error("the request's path is malformed")]
    Path,
}

impl Target {
    /// Reads the target of a request.
    ///
    /// # Errors
    /// [`TargetError`]; the request is answered 400.
    pub fn of(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Self, TargetError> {
        let authority = authority(uri, headers)?;
        if authority.is_none() && version > Version::HTTP_10 {
            return Err(TargetError::NoHost);
        }
        let host = match &authority {
            Some(text) => Some(Name::from_host(text).ok_or(TargetError::Host)?),
            None => None,
        };
        Ok(Self { host, authority, path: normalise(uri.path())? })
    }
}

/// `:authority`, the absolute form's authority, or `Host`. Where there are two they must agree (RFC 9112 3.2.2
/// lets the request line win; a difference is an attack more often than a need).
fn authority(uri: &Uri, headers: &HeaderMap) -> Result<Option<String>, TargetError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let header = match hosts.next() {
        Some(value) => Some(value.to_str().map_err(|_| TargetError::Host)?),
        None => None,
    };
    if hosts.next().is_some() {
        return Err(TargetError::Hosts);
    }
    match (uri.authority().map(Authority::as_str), header) {
        (Some(line), Some(header)) if !line.eq_ignore_ascii_case(header) => Err(TargetError::Hosts),
        (Some(one), _) | (None, Some(one)) => {
            // user@host is no host.
            if one.is_empty() || one.contains('@') {
                Err(TargetError::Host)
            } else {
                Ok(Some(one.to_owned()))
            }
        }
        (None, None) => Ok(None),
    }
}

/// Decodes, resolves dot segments and merges slashes: nginx's `$uri`.
///
/// # Errors
/// [`TargetError::Path`].
pub fn normalise(raw: &str) -> Result<String, TargetError> {
    if raw == "*" {
        return Ok("/".to_owned());
    }
    if !raw.starts_with('/') {
        return Err(TargetError::Path);
    }
    let plain = !raw.contains(['%', '.']) && !raw.contains("//") && raw.is_ascii();
    if plain {
        return Ok(raw.to_owned());
    }
    let decoded = decode(raw)?;
    let mut out: Vec<&str> = Vec::new();
    let mut ends_in_folder = false;
    for segment in decoded.split('/').skip(1) {
        ends_in_folder = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                out.pop().ok_or(TargetError::Path)?;
            }
            other => out.push(other),
        }
    }
    let mut path = String::with_capacity(decoded.len());
    for segment in &out {
        path.push('/');
        path.push_str(segment);
    }
    if ends_in_folder || path.is_empty() {
        path.push('/');
    }
    Ok(path)
}

fn decode(raw: &str) -> Result<String, TargetError> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        let byte = if byte == b'%' {
            let high = rest.next().and_then(hex).ok_or(TargetError::Path)?;
            let low = rest.next().and_then(hex).ok_or(TargetError::Path)?;
            high << 4 | low
        } else {
            byte
        };
        if byte == 0 {
            return Err(TargetError::Path);
        }
        bytes.push(byte);
    }
    // Bytes that are no UTF-8 are kept apart from each other, so that two different paths never become one.
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| latin1(error.as_bytes())))
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| char::from(b)).collect()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_path_becomes_one() {
        for raw in ["/a/b", "//a//b", "/a/./b", "/x/../a/b", "/%61/b", "/a%2Fb", "/a/%2e/b", "/x/%2e%2E/a/b"]
        {
            assert_eq!(normalise(raw).as_deref(), Ok("/a/b"), "{raw}");
        }
        assert_eq!(normalise("/").as_deref(), Ok("/"));
        assert_eq!(normalise("/a/").as_deref(), Ok("/a/"));
        assert_eq!(normalise("/a/..").as_deref(), Ok("/"));
        assert_eq!(normalise("/a;x=1/b").as_deref(), Ok("/a;x=1/b"));
        assert_eq!(normalise("/%25").as_deref(), Ok("/%"), "decoded once, not twice");
    }

    #[test]
    fn malformed_paths_are_refused() {
        for raw in ["/..", "/a/../..", "/%", "/%4", "/%zz", "/%00", "a", ""] {
            assert_eq!(normalise(raw), Err(TargetError::Path), "{raw}");
        }
    }

    fn target(uri: &str, host: &[&str]) -> Result<Target, TargetError> {
        let mut headers = HeaderMap::new();
        for value in host {
            headers.append(header::HOST, value.parse().unwrap());
        }
        Target::of(Version::HTTP_11, &uri.parse().unwrap(), &headers)
    }

    #[test]
    fn every_spelling_of_a_host_becomes_one() {
        let name = target("/", &["example.com"]).unwrap().host;
        assert!(name.is_some());
        for (uri, host) in [
            ("/", &["EXAMPLE.com"][..]),
            ("/", &["example.com."]),
            ("/", &["example.com:8443"]),
            ("https://Example.com/", &[]),
            ("https://example.com:443/", &["example.com:443"]),
        ] {
            assert_eq!(target(uri, host).unwrap().host, name, "{uri} {host:?}");
        }
    }

    #[test]
    fn only_http_1_0_may_name_no_host() {
        let (uri, headers) = (Uri::from_static("/"), HeaderMap::new());
        assert_eq!(Target::of(Version::HTTP_11, &uri, &headers), Err(TargetError::NoHost));
        assert_eq!(Target::of(Version::HTTP_2, &uri, &headers), Err(TargetError::NoHost));
        assert_eq!(Target::of(Version::HTTP_10, &uri, &headers).unwrap().host, None);
    }

    #[test]
    fn two_hosts_are_refused() {
        assert_eq!(target("/", &["a.com", "a.com"]), Err(TargetError::Hosts));
        assert_eq!(target("http://a.com/", &["b.com"]), Err(TargetError::Hosts));
        assert_eq!(target("/", &["u@a.com"]), Err(TargetError::Host));
        assert_eq!(target("/", &[""]), Err(TargetError::Host));
    }
}
