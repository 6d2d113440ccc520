//! What a request asks for: host and path, normalised once, for every later decision.
//!
//! Routing, skip rules and the SNI x Host check all read [`Target`], so no spelling of a host or
//! path (case, percent-encoding, dot segments, double slashes, absolute form, port, trailing dot)
//! can get one verdict here and another there; nor on the other plane, which explains by this. The
//! upstream gets [`Target::forwarded`], which is the judged path encoded again. RFC 3986 section 6;
//! contract sections 5.2 and 7.1.

mod path;

pub use path::{PathOptions, check_generated, encode_literal, encode_text, path_bytes};

use crate::host_name::HostName;

/// The normalised target of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestTarget {
    /// The host without port; `None` when a request of HTTP/1.0 names none.
    pub host: Option<HostName>,
    /// The authority as the client sent it, for `X-Forwarded-Host` and `pass_host: pass`.
    pub authority: Option<String>,
    /// Percent-decoded, dot segments resolved, slashes merged; starts with `/`. Without the query.
    /// Bytes that are no UTF-8 have stand-ins, which [`bytes`] turns back.
    pub path: String,
    /// As the upstream gets it, where that is another text.
    forwarded: Option<Box<str>>,
    options: PathOptions,
}

/// A target that cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestTargetError {
    /// No host, which only HTTP/1.0 may do (RFC 9112 section 3.2).
    #[error("the request names no host")]
    NoHost,
    /// Two different hosts, or more than one `Host` header.
    #[error("the request names more than one host")]
    ConflictingHosts,
    /// The host is not a host name or address.
    #[error("the request's host is not a host name or an address")]
    Host,
    /// The path is none: `*`, empty, or without its first `/`.
    #[error("the request's path does not start with /")]
    InvalidPath,
    /// An escape is none.
    #[error("the request's path has a % that no two hexadecimal digits follow")]
    InvalidEscape,
    /// A byte that no path may have.
    #[error("the request's path has a control character, or a \\ or \" that is not encoded")]
    InvalidByte,
    /// More `..` than segments before them.
    #[error("the request's path leads above the root")]
    AboveRoot,
    /// `..;x`, or `..\x`: a dot segment to some upstreams and a name to others.
    #[error("the request's path has a dot segment with parameters or beside a \\")]
    AmbiguousDotSegment,
    /// `/;x/`, under `normalize_uri_like_servlet`.
    #[error("the request's path has an empty segment with parameters")]
    EmptySegmentParameters,
}

impl RequestTarget {
    /// From the authority of the request line (or `:authority`), the `Host` header, and the path
    /// without its query. Without either there is no host.
    ///
    /// # Errors
    /// [`TargetError`]; the request is answered 400.
    pub fn new(
        line: Option<&str>,
        header: Option<&str>,
        path: &str,
        options: PathOptions,
    ) -> Result<Self, RequestTargetError> {
        let authority = authority(line, header)?;
        let host = match authority {
            Some(text) => Some(HostName::from_host(text).ok_or(RequestTargetError::Host)?),
            None => None,
        };
        let path::NormalizedPath { path, forwarded } = path::normalize(path, options)?;
        Ok(Self { host, authority: authority.map(str::to_owned), path, forwarded, options })
    }

    /// The path the upstream gets, encoded: what was judged and nothing else.
    pub fn forwarded_path(&self) -> &str {
        self.forwarded.as_deref().unwrap_or(&self.path)
    }

    /// A piece of [`Target::path`], such as what a pattern captured of it, as part of a path that
    /// is forwarded.
    pub fn encode_piece(&self, piece: &str) -> String {
        path::encode(piece, self.options)
    }

    /// A piece of [`Target::path`] as the bytes it means, for a place that is no path, such as a
    /// query.
    pub fn decode_piece(&self, piece: &str) -> Vec<u8> {
        path::decoded(piece, self.options)
    }
}

/// Where there are two they must agree (RFC 9112 3.2.2 lets the request line win; a difference is
/// an attack more often than a need).
fn authority<'a>(
    line: Option<&'a str>,
    header: Option<&'a str>,
) -> Result<Option<&'a str>, RequestTargetError> {
    match (line, header) {
        (Some(line), Some(header)) if !line.eq_ignore_ascii_case(header) => {
            Err(RequestTargetError::ConflictingHosts)
        }
        // user@host is no host.
        (Some(one), _) | (None, Some(one)) if one.is_empty() || one.contains('@') => {
            Err(RequestTargetError::Host)
        }
        (one, other) => Ok(one.or(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hosts_and_no_hosts_are_told_apart() {
        let target = |line, header| {
            RequestTarget::new(line, header, "/", PathOptions::default()).map(|target| target.host)
        };
        assert_eq!(target(Some("A.com"), Some("a.com")), Ok(HostName::from_host("a.com")));
        assert_eq!(target(Some("a.com"), Some("b.com")), Err(RequestTargetError::ConflictingHosts));
        assert_eq!(target(None, Some("u@a.com")), Err(RequestTargetError::Host));
        assert_eq!(target(Some(""), None), Err(RequestTargetError::Host));
        assert_eq!(target(None, None), Ok(None));
    }
}
