//! What a request asks for, taken out of hyper's types: the lines that name the host, and the path.
//!
//! Stands right behind the HTTP parser. What they mean is [`model::Target`]'s, for every later decision.

use http::{HeaderMap, Uri, Version, header, uri::Authority};
use model::{Target, TargetError};

/// Reads the target of a request: host of `:authority`, the absolute form or `Host`, and path.
///
/// # Errors
/// [`TargetError`]; the request is answered 400.
pub fn target(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Target, TargetError> {
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
    Target::new(line, host, uri.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(uri: &str, host: &[&str]) -> Result<Target, TargetError> {
        let mut headers = HeaderMap::new();
        for value in host {
            headers.append(header::HOST, value.parse().unwrap());
        }
        target(Version::HTTP_11, &uri.parse().unwrap(), &headers)
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
        assert_eq!(target(Version::HTTP_11, &uri, &headers), Err(TargetError::NoHost));
        assert_eq!(target(Version::HTTP_2, &uri, &headers), Err(TargetError::NoHost));
        assert_eq!(target(Version::HTTP_10, &uri, &headers).unwrap().host, None);
    }

    #[test]
    fn two_hosts_are_refused() {
        assert_eq!(read("/", &["a.com", "a.com"]), Err(TargetError::Hosts));
        assert_eq!(read("http://a.com/", &["b.com"]), Err(TargetError::Hosts));
        assert_eq!(read("/", &["u@a.com"]), Err(TargetError::Host));
        assert_eq!(read("/", &[""]), Err(TargetError::Host));
    }
}
