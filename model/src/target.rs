//! What a request asks for: host and path, normalised once, for every later decision.
//!
//! Routing, skip rules and the SNI x Host check all read [`Target`], so no spelling of a host or path (case,
//! percent-encoding, dot segments, double slashes, absolute form, port, trailing dot) can get one verdict
//! here and another there; nor on the other plane, which explains by this. The upstream receives the path as
//! the client wrote it. RFC 3986 section 6; contract sections 5.2 and 7.1.

use crate::name::Name;

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
    /// From the authority of the request line (or `:authority`), the `Host` header, and the path without its query.
    /// Without either there is no host.
    ///
    /// # Errors
    /// [`TargetError`]; the request is answered 400.
    pub fn new(line: Option<&str>, header: Option<&str>, path: &str) -> Result<Self, TargetError> {
        let authority = authority(line, header)?;
        let host = match authority {
            Some(text) => Some(Name::from_host(text).ok_or(TargetError::Host)?),
            None => None,
        };
        Ok(Self { host, authority: authority.map(str::to_owned), path: normalise(path)? })
    }
}

/// Where there are two they must agree (RFC 9112 3.2.2 lets the request line win; a difference is an attack more
/// often than a need).
fn authority<'a>(line: Option<&'a str>, header: Option<&'a str>) -> Result<Option<&'a str>, TargetError> {
    match (line, header) {
        (Some(line), Some(header)) if !line.eq_ignore_ascii_case(header) => Err(TargetError::Hosts),
        // user@host is no host.
        (Some(one), _) | (None, Some(one)) if one.is_empty() || one.contains('@') => Err(TargetError::Host),
        (one, other) => Ok(one.or(other)),
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
    let plain = !raw.contains(['%', '.', '\0']) && !raw.contains("//") && raw.is_ascii();
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
        for raw in ["/..", "/a/../..", "/%", "/%4", "/%zz", "/%00", "/\0", "a", ""] {
            assert_eq!(normalise(raw), Err(TargetError::Path), "{raw}");
        }
    }

    #[test]
    fn two_hosts_and_no_hosts_are_told_apart() {
        let target = |line, header| Target::new(line, header, "/").map(|target| target.host);
        assert_eq!(target(Some("A.com"), Some("a.com")), Ok(Name::from_host("a.com")));
        assert_eq!(target(Some("a.com"), Some("b.com")), Err(TargetError::Hosts));
        assert_eq!(target(None, Some("u@a.com")), Err(TargetError::Host));
        assert_eq!(target(Some(""), None), Err(TargetError::Host));
        assert_eq!(target(None, None), Ok(None));
    }
}
