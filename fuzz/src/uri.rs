//! Paths and hosts as both planes read them: one normal form, however they are spelled.

use std::fmt::Write as _;

use dataplane::http::request::target;
use http::{HeaderMap, Uri, Version, header};
use model::target::normalise;

/// Up to the first line feed a path; behind it a Host.
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

fn check_path(raw: &str) {
    let Ok(path) = normalise(raw) else { return };
    assert!(path.starts_with('/'), "{raw:?} -> {path:?}");
    assert!(!path.contains('\0'), "{raw:?} -> {path:?}");
    let mut segments: Vec<&str> = path.split('/').skip(1).collect();
    segments.pop(); // an empty last one is a trailing slash
    assert!(segments.iter().all(|segment| !segment.is_empty()), "{raw:?} -> {path:?}");
    assert!(path.split('/').all(|segment| segment != "." && segment != ".."), "{raw:?} -> {path:?}");
    // A normal form is its own, in whatever way it is written.
    assert_eq!(normalise(&escaped(&path, |byte| byte == b'%')).as_ref(), Ok(&path), "{raw:?}");
    assert_eq!(normalise(&escaped(&path, |byte| byte != b'/')).as_ref(), Ok(&path), "{raw:?}");
    // So is every spelling of what it came from.
    assert_eq!(normalise(&raw.replace('/', "//")).as_ref(), Ok(&path), "{raw:?}");
    if raw != "*" {
        assert_eq!(normalise(&format!("/./x/..{raw}")).as_ref(), Ok(&path), "{raw:?}");
    }
}

/// Percent-encodes the bytes that are chosen.
fn escaped(path: &str, chosen: impl Fn(u8) -> bool) -> String {
    let mut out = Vec::new();
    for byte in path.bytes() {
        if chosen(byte) {
            let mut escape = String::new();
            let _ = write!(escape, "%{byte:02x}"); // writing to a String cannot fail
            out.extend(escape.bytes());
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).unwrap_or_default() // whole characters are escaped or kept, unless all bytes are
}

fn check_target(uri: &Uri, host: &[u8]) {
    let Ok(value) = http::HeaderValue::from_bytes(host) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, value.clone());
    let Ok(read) = target(Version::HTTP_11, uri, &headers) else { return };
    let name = read.host.as_ref().expect("HTTP/1.1 without a host is refused");
    // A name is its own normal form: looked up once or twice, it is the same site.
    assert_eq!(model::Name::from_host(name.as_str()).as_ref(), Some(name), "{host:?}");
    // Case is no difference, and two hosts are an error whatever they are.
    let upper = value.to_str().expect("it was read").to_ascii_uppercase();
    let again = target(Version::HTTP_11, uri, &headers_of(&upper));
    if uri.authority().is_none() {
        assert_eq!(again.map(|again| again.host), Ok(read.host.clone()));
    }
    headers.append(header::HOST, value);
    assert!(target(Version::HTTP_11, uri, &headers).is_err());
}

fn headers_of(host: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = host.parse() {
        headers.insert(header::HOST, value);
    }
    headers
}
