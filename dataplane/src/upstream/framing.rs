//! Message framing on an upstream's connection (RFC 9112 section 6; `docs/FRAMING.md` is the
//! table).
//!
//! Invariant: the framing fields of a request are made from its body alone; those of a response are
//! checked before anything of it is forwarded, so that every reader of its head finds the same end.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header};
use hyper::body::Body;

use crate::http::request::CONTENT_LENGTH_MAX;

/// The only transfer coding, in both directions.
const CHUNKED: &str = "chunked";

/// The response's end or meaning is ambiguous. The client gets a 502, as from nginx.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FramingError {
    /// RFC 9112 section 6.3: a sign of response splitting.
    #[error("the response has both Content-Length and Transfer-Encoding")]
    LengthAndTransferEncoding,
    /// More than one `Transfer-Encoding` field, or another coding than chunked (RFC 9112 section
    /// 6.1).
    #[error("the response's Transfer-Encoding is {0}; only one \"chunked\" is understood")]
    TransferEncoding(String),
    /// More than one `Content-Length` field, or one that is not a number (RFC 9110 section 8.6).
    #[error("the response's Content-Length is {0}; it has to be one decimal number")]
    ContentLength(String),
    /// 101, though no request has an `Upgrade` field (RFC 9110 section 15.2.2).
    #[error("the response switches protocols, which the request did not offer")]
    SwitchingProtocols,
}

/// Sets the framing fields of a request to an upstream: the length where it is known, else chunked,
/// whatever the method. hyper would send no body of unknown length with GET and HEAD. Gives whether
/// trailers may follow the body: it is sent in chunks, and `Trailer` announces them.
pub(crate) fn set_request_framing(headers: &mut HeaderMap, body: &impl Body) -> bool {
    let fields = FramingFields::read(headers);
    // The client sent `Content-Length: 0`, and servers may require it of a POST.
    let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
    if fields.has_trailer && length.is_some() {
        headers.remove(header::TRAILER);
    }
    match length {
        Some(_) if body.is_end_stream() && fields.length == ContentLength::Absent => {}
        Some(length) if fields.length == ContentLength::One(length) => {}
        Some(length) => drop(headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length))),
        None => {
            headers.remove(header::CONTENT_LENGTH);
            headers.insert(header::TRANSFER_ENCODING, const { HeaderValue::from_static(CHUNKED) });
            return fields.has_trailer;
        }
    }
    false
}

/// The framing fields of a head, read in one pass: each look-up by name would cost as much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FramingFields {
    length: ContentLength,
    coding: TransferCoding,
    has_trailer: bool,
}

/// RFC 9110 section 8.6: one decimal number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentLength {
    Absent,
    One(u64),
    /// Several fields, or not a number.
    Invalid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TransferCoding {
    Absent,
    Chunked,
    /// Several fields, or another coding.
    Unknown,
}

impl FramingFields {
    fn read(headers: &HeaderMap) -> Self {
        let mut fields =
            Self { length: ContentLength::Absent, coding: TransferCoding::Absent, has_trailer: false };
        for (name, value) in headers {
            if *name == header::CONTENT_LENGTH {
                fields.length = match (fields.length, decimal(value)) {
                    (ContentLength::Absent, Some(number)) => ContentLength::One(number),
                    _ => ContentLength::Invalid,
                };
            } else if *name == header::TRANSFER_ENCODING {
                fields.coding = match fields.coding {
                    TransferCoding::Absent if value.as_bytes().eq_ignore_ascii_case(CHUNKED.as_bytes()) => {
                        TransferCoding::Chunked
                    }
                    _ => TransferCoding::Unknown,
                };
            } else if *name == header::TRAILER {
                fields.has_trailer = true;
            }
        }
        fields
    }
}

fn decimal(value: &HeaderValue) -> Option<u64> {
    // `parse` would accept a sign.
    let digits = value.as_bytes().iter().all(u8::is_ascii_digit);
    let number: u64 = if digits { value.to_str().ok()?.parse().ok()? } else { return None };
    (number <= CONTENT_LENGTH_MAX).then_some(number)
}

/// Checks the framing of a response and makes its head the gateway's own: the version (RFC 9112
/// section 2.3), and no length where there is never a body. Gives whether the connection may be
/// reused: after an HTTP/1.0 response hyper would send HTTP/1.0, in which a body of unknown length
/// cannot be sent.
///
/// # Errors
/// [`FramingError`]: nothing of the response can be forwarded, nor the connection reused.
pub(crate) fn accept_response<B>(response: &mut Response<B>) -> Result<bool, FramingError> {
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(FramingError::SwitchingProtocols);
    }
    let headers = response.headers_mut();
    let fields = FramingFields::read(headers);
    match (fields.length, fields.coding) {
        (ContentLength::Invalid, _) => {
            return Err(FramingError::ContentLength(quoted(headers, &header::CONTENT_LENGTH)));
        }
        (_, TransferCoding::Unknown) => {
            return Err(FramingError::TransferEncoding(quoted(headers, &header::TRANSFER_ENCODING)));
        }
        (ContentLength::One(_), TransferCoding::Chunked) => {
            return Err(FramingError::LengthAndTransferEncoding);
        }
        (ContentLength::One(_), _) if status == StatusCode::NO_CONTENT => {
            headers.remove(header::CONTENT_LENGTH);
        }
        _ => {}
    }
    let reusable = response.version() == Version::HTTP_11;
    *response.version_mut() = Version::HTTP_11;
    Ok(reusable)
}

/// All values of a field, for the log.
#[cold]
fn quoted(headers: &HeaderMap, name: &HeaderName) -> String {
    let values: Vec<String> = headers.get_all(name).iter().map(|value| format!("{value:?}")).collect();
    values.join(" and ")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{Empty, Full, StreamBody};
    use hyper::body::Frame;

    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn response(version: Version, status: u16, fields: &[(&str, &str)]) -> Response<()> {
        let mut response = Response::new(());
        *response.version_mut() = version;
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        *response.headers_mut() = map(fields);
        response
    }

    fn accept(fields: &[(&str, &str)]) -> Result<bool, FramingError> {
        accept_response(&mut response(Version::HTTP_11, 200, fields))
    }

    #[test]
    fn only_one_number_or_one_chunked_frames_a_response() {
        const CL: &str = "content-length";
        const TE: &str = "transfer-encoding";
        for good in
            [&[][..], &[(CL, "0")], &[(CL, "9223372036854775807")], &[(TE, "chunked")], &[(TE, "CHUNKED")]]
        {
            assert_eq!(accept(good), Ok(true), "{good:?}");
        }
        for bad in ["", "5, 5", "+5", "-5", "5 ", "0x5", "1e3", "9223372036854775808", "18446744073709551616"]
        {
            assert!(matches!(accept(&[(CL, bad)]), Err(FramingError::ContentLength(_))), "{bad:?}");
        }
        assert!(matches!(accept(&[(CL, "5"), (CL, "5")]), Err(FramingError::ContentLength(_))));
        for bad in ["", "gzip, chunked", "chunked, chunked", "cow", "identity", "chunked;q=1", "chunked,"] {
            assert!(matches!(accept(&[(TE, bad)]), Err(FramingError::TransferEncoding(_))), "{bad:?}");
        }
        assert!(matches!(
            accept(&[(TE, "chunked"), (TE, "chunked")]),
            Err(FramingError::TransferEncoding(_))
        ));
        assert_eq!(accept(&[(CL, "5"), (TE, "chunked")]), Err(FramingError::LengthAndTransferEncoding));
    }

    #[test]
    fn an_error_quotes_the_values_without_line_breaks() {
        let bad = [("content-length", "5\u{e9}"), ("content-length", "6")];
        let error = accept(&bad).unwrap_err().to_string();
        assert!(error.contains("\"5\\xc3\\xa9\" and \"6\""), "{error}");
    }

    #[test]
    fn a_response_is_made_http_1_1_and_http_1_0_is_not_reused() {
        for (version, reusable) in [(Version::HTTP_11, true), (Version::HTTP_10, false)] {
            let mut response = response(version, 200, &[("content-length", "1")]);
            assert_eq!(accept_response(&mut response), Ok(reusable));
            assert_eq!(response.version(), Version::HTTP_11);
        }
    }

    #[test]
    fn a_204_has_no_length_and_a_101_is_an_error() {
        let mut no_content = response(Version::HTTP_11, 204, &[("content-length", "7"), ("x-own", "stays")]);
        assert_eq!(accept_response(&mut no_content), Ok(true));
        assert_eq!((no_content.headers().len(), no_content.headers().contains_key("x-own")), (1, true));
        let switching = accept_response(&mut response(Version::HTTP_11, 101, &[]));
        assert_eq!(switching, Err(FramingError::SwitchingProtocols));
    }

    fn framed(fields: &[(&str, &str)], body: &impl Body) -> Vec<(String, String)> {
        let mut headers = map(fields);
        let trailers = set_request_framing(&mut headers, body);
        assert_eq!(trailers, headers.contains_key(header::TRAILER));
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
    }

    #[test]
    fn a_request_is_framed_by_its_body_alone() {
        let pair = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let frames =
            futures_util::stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"x")))]);
        let unknown = StreamBody::new(frames);
        let five = Full::new(Bytes::from_static(b"hello"));
        let none = Empty::<Bytes>::new();
        let lies = [("content-length", "3"), ("content-length", "4")];
        for fields in [&[][..], &lies, &[("content-length", "5")]] {
            assert_eq!(framed(fields, &unknown), pair("transfer-encoding", "chunked"), "{fields:?}");
            assert_eq!(framed(fields, &five), pair("content-length", "5"), "{fields:?}");
        }
        assert_eq!(framed(&lies, &none), pair("content-length", "0"));
        let own = [("content-lengths", "1"), ("x-transfer-encoding", "1"), ("accept-encoding", "br")];
        assert_eq!(framed(&own, &none).len(), 3);
        let announced = [("trailer", "x-sum")];
        assert_eq!(framed(&announced, &unknown).len(), 2);
        assert_eq!(framed(&announced, &five), pair("content-length", "5"));
        assert_eq!(framed(&announced, &none), []);
    }
}
