//! What a request asks for, taken out of hyper's types: the lines that name the host, and the path.
//!
//! Stands right behind the HTTP parser. What they mean is [`model::Target`]'s, for every later decision.

use http::{HeaderMap, Uri, Version, header, uri::Authority};
use model::{PathOptions, Target, TargetError};

/// Reads the target of a request: host of `:authority`, the absolute form or `Host`, and path.
///
/// # Errors
/// [`TargetError`]; the request is answered 400.
pub fn target(
    version: Version,
    uri: &Uri,
    headers: &HeaderMap,
    paths: PathOptions,
) -> Result<Target, TargetError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match hosts.next() {
        Some(value) => Some(value.to_str().map_err(|_| TargetError::Host)?),
        None => None,
    };
    if hosts.next().is_some() {
        return Err(TargetError::Hosts);
    }
    let line = uri.authority().map(Authority::as_str);
    if line.is_none() && host.is_none() && version > Version::HTTP_10 {
        return Err(TargetError::NoHost);
    }
    // The one control character that the `http` crate lets into a query, which is forwarded as it is.
    if uri.query().is_some_and(|query| query.as_bytes().contains(&0x7f)) {
        return Err(TargetError::Byte);
    }
    Target::new(line, host, uri.path(), paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(uri: &str, host: &[&str]) -> Result<Target, TargetError> {
        let mut headers = HeaderMap::new();
        for value in host {
            headers.append(header::HOST, value.parse().unwrap());
        }
        target(Version::HTTP_11, &uri.parse().unwrap(), &headers, PathOptions::default())
    }

    #[test]
    fn every_spelling_of_a_host_becomes_one() {
        let name = read("/", &["example.com"]).unwrap().host;
        assert!(name.is_some());
        for (uri, host) in [
            ("/", &["EXAMPLE.com"][..]),
            ("/", &["example.com."]),
            ("/", &["example.com:8443"]),
            ("https://Example.com/", &[]),
            ("https://example.com:443/", &["example.com:443"]),
        ] {
            assert_eq!(read(uri, host).unwrap().host, name, "{uri} {host:?}");
        }
    }

    #[test]
    fn only_http_1_0_may_name_no_host() {
        let (uri, headers) = (Uri::from_static("/"), HeaderMap::new());
        let read = |version| target(version, &uri, &headers, PathOptions::default());
        assert_eq!(read(Version::HTTP_11), Err(TargetError::NoHost));
        assert_eq!(read(Version::HTTP_2), Err(TargetError::NoHost));
        assert_eq!(read(Version::HTTP_10).unwrap().host, None);
    }

    #[test]
    fn a_query_has_no_control_characters() {
        let read = |uri: &[u8]| {
            let uri = Uri::from_maybe_shared(bytes::Bytes::copy_from_slice(uri)).ok()?;
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "a.com".parse().unwrap());
            target(Version::HTTP_11, &uri, &headers, PathOptions::default()).ok()
        };
        for byte in (0..0x20).chain([0x7f]) {
            assert_eq!(read(&[b"/x?a", &[byte][..], b"b"].concat()), None, "{byte:#x}");
        }
        assert!(read(b"/x?a=\\&%00").is_some(), "a query is not judged");
    }

    #[test]
    fn two_hosts_are_refused() {
        assert_eq!(read("/", &["a.com", "a.com"]), Err(TargetError::Hosts));
        assert_eq!(read("http://a.com/", &["b.com"]), Err(TargetError::Hosts));
        assert_eq!(read("/", &["u@a.com"]), Err(TargetError::Host));
        assert_eq!(read("/", &[""]), Err(TargetError::Host));
    }
}
