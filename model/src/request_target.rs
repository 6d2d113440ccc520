//! The host and path of a request, normalized once for all later decisions.
//!
//! Routing, skip rules and the check of Host against SNI all read [`RequestTarget`], in both
//! planes, so that no spelling (case, percent-encoding, dot segments, double slashes, absolute
//! form, port, trailing dot) passes one check and fails another. The upstream receives
//! [`RequestTarget::forwarded_path`], which is the normalized path encoded again. RFC 3986 section
//! 6; contract sections 5.2 and 7.1.

mod path;

pub use path::{PathOptions, check_generated, encode_literal, encode_text, path_bytes};

use crate::host_name::HostName;

/// The normalized target of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestTarget {
    /// The host without port; `None` if an HTTP/1.0 request has none.
    pub host: Option<HostName>,
    /// The authority as the client sent it, for `X-Forwarded-Host` and `pass_host: pass`.
    pub authority: Option<String>,
    /// The normalized path: percent-decoded, without dot segments, double slashes and query; starts
    /// with `/`. Invalid UTF-8 is represented by private code points, which [`path_bytes`] converts
    /// back.
    pub path: String,
    /// Set if the forwarded path differs from `path`.
    forwarded: Option<Box<str>>,
    options: PathOptions,
}

/// Why a request target is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestTargetError {
    /// The request has no host, which only HTTP/1.0 allows (RFC 9112 section 3.2).
    #[error("the request names no host")]
    NoHost,
    /// The request has two different hosts, or several `Host` headers.
    #[error("the request names more than one host")]
    ConflictingHosts,
    /// The host is not a host name or address.
    #[error("the request's host is not a host name or an address")]
    InvalidHost,
    /// The path is `*`, empty, or without its first `/`.
    #[error("the request's path does not start with /")]
    InvalidPath,
    /// A `%` without two hexadecimal digits.
    #[error("the request's path has a % that no two hexadecimal digits follow")]
    InvalidEscape,
    /// A byte that a path must not contain.
    #[error("the request's path has a control character, or a \\ or \" that is not encoded")]
    InvalidByte,
    /// More `..` than segments before them.
    #[error("the request's path leads above the root")]
    AboveRoot,
    /// `..;x` or `..\x`, which is a dot segment for some upstreams and a name for others.
    #[error("the request's path has a dot segment with parameters or beside a \\")]
    AmbiguousDotSegment,
    /// `/;x/`, under `normalize_uri_like_servlet`.
    #[error("the request's path has an empty segment with parameters")]
    EmptySegmentParameters,
}

impl RequestTarget {
    /// Builds the target from the authority of the request line (or `:authority`), the `Host`
    /// header, and the path without its query. Without either there is no host.
    ///
    /// # Errors
    ///
    /// [`RequestTargetError`]; the response is 400.
    pub fn new(
        line: Option<&str>,
        header: Option<&str>,
        path: &str,
        options: PathOptions,
    ) -> Result<Self, RequestTargetError> {
        let authority = authority(line, header)?;
        let host = match authority {
            Some(text) => Some(HostName::from_host(text).ok_or(RequestTargetError::InvalidHost)?),
            None => None,
        };
        let path::NormalizedPath { path, forwarded } = path::normalize(path, options)?;
        Ok(Self { host, authority: authority.map(str::to_owned), path, forwarded, options })
    }

    /// The encoded path for the upstream, equal to the normalized one after decoding.
    pub fn forwarded_path(&self) -> &str {
        self.forwarded.as_deref().unwrap_or(&self.path)
    }

    /// Encodes a part of [`RequestTarget::path`], such as a capture, for a forwarded path.
    pub fn encode_piece(&self, piece: &str) -> String {
        path::encode(piece, self.options)
    }

    /// Decodes a part of [`RequestTarget::path`] to bytes, for places other than a path, such as a
    /// query.
    pub fn decode_piece(&self, piece: &str) -> Vec<u8> {
        path::decoded(piece, self.options)
    }
}

/// Returns the authority. Two must agree: RFC 9112 3.2.2 prefers the request line, but a difference
/// is usually an attack.
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
            Err(RequestTargetError::InvalidHost)
        }
        (one, other) => Ok(one.or(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hosts_are_rejected_and_none_is_allowed() {
        let target = |line, header| {
            RequestTarget::new(line, header, "/", PathOptions::default()).map(|target| target.host)
        };
        assert_eq!(target(Some("A.com"), Some("a.com")), Ok(HostName::from_host("a.com")));
        assert_eq!(target(Some("a.com"), Some("b.com")), Err(RequestTargetError::ConflictingHosts));
        assert_eq!(target(None, Some("u@a.com")), Err(RequestTargetError::InvalidHost));
        assert_eq!(target(Some(""), None), Err(RequestTargetError::InvalidHost));
        assert_eq!(target(None, None), Ok(None));
    }
}
