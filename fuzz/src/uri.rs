//! Paths and hosts: one normal form for every spelling, in both planes.

use dataplane::testing::http::request::parse_target;
use http::{HeaderMap, Uri, Version, header};
use model::{PathOptions, RequestTarget};

/// A path up to the first line feed, then a Host.
pub fn check(data: &[u8]) {
    let mut parts = data.splitn(2, |&byte| byte == b'\n');
    let path = parts.next().unwrap_or_default();
    if let Ok(raw) = std::str::from_utf8(path) {
        check_path(raw);
    }
    if let (Ok(uri), Some(host)) = (Uri::try_from(path), parts.next()) {
        check_target(&uri, host);
    }
}

/// Every combination of the path settings.
fn options() -> impl Iterator<Item = PathOptions> {
    (0..8_u8).map(|bits| PathOptions {
        match_uri_encoded_slash: bits & 1 != 0,
        normalize_uri_like_servlet: bits & 2 != 0,
        delete_uri_tail_slash: bits & 4 != 0,
    })
}

fn check_path(raw: &str) {
    for options in options() {
        let read = |path: &str| RequestTarget::new(None, Some("a"), path, options);
        let Ok(target) = read(raw) else { continue };
        for path in [&*target.path, target.forwarded_path()] {
            assert!(path.starts_with('/'), "{raw:?} -> {path:?}");
            assert!(!path.contains('\0'), "{raw:?} -> {path:?}");
            assert!(path.split('/').all(|segment| segment != "." && segment != ".."), "{raw:?} -> {path:?}");
        }
        // The forwarded path normalises to the matched path and is forwarded unchanged.
        let again = read(target.forwarded_path());
        let again = again.unwrap_or_else(|error| panic!("{raw:?} -> {:?}: {error}", target.forwarded_path()));
        assert_eq!(
            (&*again.path, again.forwarded_path()),
            (&*target.path, target.forwarded_path()),
            "{raw:?}"
        );
        // Every other spelling gives the same paths.
        if options == PathOptions::default() {
            for spelled in [raw.replace('/', "//"), format!("/./x/..{raw}")] {
                let other =
                    read(&spelled).map(|other| (other.path.clone(), other.forwarded_path().to_owned()));
                assert_eq!(
                    other,
                    Ok((target.path.clone(), target.forwarded_path().to_owned())),
                    "{spelled:?}"
                );
            }
        }
    }
}

fn check_target(uri: &Uri, host: &[u8]) {
    let Ok(value) = http::HeaderValue::from_bytes(host) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, value.clone());
    let Ok(read) = read_target(uri, &headers) else { return };
    let name = read.host.as_ref().expect("HTTP/1.1 without a host is refused");
    // A normalised name is its own normal form.
    assert_eq!(model::HostName::from_host(name.as_str()).as_ref(), Some(name), "{host:?}");
    // Case is ignored, and two hosts are always an error.
    let upper = value.to_str().expect("it was read").to_ascii_uppercase();
    let again = read_target(uri, &headers_of(&upper));
    if uri.authority().is_none() {
        assert_eq!(again.map(|again| again.host), Ok(read.host.clone()));
    }
    headers.append(header::HOST, value);
    assert!(read_target(uri, &headers).is_err());
}

fn read_target(uri: &Uri, headers: &HeaderMap) -> Result<RequestTarget, model::RequestTargetError> {
    parse_target(Version::HTTP_11, uri, headers, PathOptions::default())
}

fn headers_of(host: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = host.parse() {
        headers.insert(header::HOST, value);
    }
    headers
}
