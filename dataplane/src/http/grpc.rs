//! gRPC over HTTP/2: which requests are calls, and the responses of the gateway's own to them.

use http::{HeaderMap, header};

const CONTENT_TYPE: &[u8] = b"application/grpc";

/// Whether a message has a content type of gRPC. gRPC-Web is another protocol.
pub(crate) fn is_grpc_type(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return false };
    match value.as_bytes().split_at_checked(CONTENT_TYPE.len()) {
        Some((start, rest)) => {
            start.eq_ignore_ascii_case(CONTENT_TYPE) && matches!(rest.first(), None | Some(b'+' | b';'))
        }
        None => false,
    }
}
