//! What a [`FixedUpstream`](super::FixedUpstream) of calls and sockets speaks: gRPC over HTTP/2,
//! whose answer is the request's message, and WebSocket over HTTP/1.1, which echoes frames.
//!
//! As little as measurements need: no fragments, no control frames but close, no frame of 64 KiB.

use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Of RFC 6455 section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Opcode of a close frame, with FIN.
const CLOSE: u8 = 0x88;

/// Serves calls until the connection ends.
pub(super) async fn grpc<S>(stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    // Its error is that the peer went away.
    let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

async fn answer(
    request: Request<Incoming>,
) -> hyper::Result<Response<impl Body<Data = Bytes, Error = Infallible>>> {
    let message = request.into_body().collect().await?.to_bytes();
    let trailers =
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    Ok(response)
}

/// Opens a socket and echoes its frames until it ends.
pub(super) async fn websocket(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut read = Vec::with_capacity(4096);
    while !read.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&read).to_string();
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim().to_owned())
    });
    let accept = accept_of(&key.unwrap_or_default());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await?;
    read.clear();
    loop {
        while let Some((answer, used)) = echo(&read) {
            read.drain(..used);
            let is_close = answer.first() == Some(&CLOSE);
            stream.write_all(&answer).await?;
            stream.flush().await?;
            if is_close {
                return stream.shutdown().await;
            }
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
}

/// The `Sec-WebSocket-Accept` of a key.
fn accept_of(key: &str) -> String {
    let text = format!("{key}{GUID}");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    BASE64.encode(digest.as_ref())
}

/// The first masked frame of `bytes` without its mask, and its length in bytes.
fn echo(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (length, at) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])), 4),
        short => (usize::from(short), 2),
    };
    let mask = bytes.get(at..at + 4)?;
    let payload = bytes.get(at + 4..at + 4 + length)?;
    let mut answer = vec![first, second & 0x7f];
    answer.extend_from_slice(&bytes[2..at]);
    answer.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    Some((answer, at + 4 + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_of_the_rfc() {
        assert_eq!(accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_frame_loses_its_mask() {
        // RFC 6455 section 5.7: a masked text "Hello".
        let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let plain = [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
        assert_eq!(echo(&masked), Some((plain.to_vec(), masked.len())));
        assert_eq!(echo(&masked[..10]), None);
    }
}
