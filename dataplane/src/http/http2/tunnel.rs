//! One HTTP/2 stream as a connection of bytes, after an extended CONNECT (RFC 8441 section 5).
//!
//! DATA is the byte stream, END_STREAM its end. A reset, in either direction, is what RST is to a
//! TCP connection: dropping the tunnel before END_STREAM resets the stream. Invariant: `h2` gets no
//! byte that the client's window does not cover.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::SendStream;
use hyper::body::Body;
use hyper::rt::Write;

use crate::http::incoming_body::IncomingBody;
use crate::io::chunk_read::{Chunk, ChunkRead};

/// The most bytes that are put into one frame.
const CHUNK_MAX: usize = 16 * 1024;

/// The client's side of a tunnel.
pub(super) struct Http2Tunnel<B = IncomingBody> {
    /// What the client sends. Its window opens again as chunks are taken.
    body: B,
    /// Taken from the body, and not consumed.
    chunk: Bytes,
    stream: SendStream<Bytes>,
}

impl<B> Http2Tunnel<B> {
    pub(super) fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, chunk: Bytes::new(), stream }
    }
}

impl<B: Body<Data = Bytes> + Unpin> ChunkRead for Http2Tunnel<B>
where
    B::Error: std::error::Error + Send + Sync + 'static,
{
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Chunk<'_>>> {
        while self.chunk.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.chunk = data,
                    // Trailers end a stream.
                    Err(_) => return Poll::Ready(Ok(Chunk::Eof)),
                },
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Ok(Chunk::Eof)),
            }
        }
        Poll::Ready(Ok(Chunk::Data(&self.chunk)))
    }

    fn consume(&mut self, n: usize) {
        self.chunk.advance(n);
    }

    fn shrink_buffers(&mut self) {}
}

impl<B: Unpin> Write for Http2Tunnel<B> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let wanted = data.len().min(CHUNK_MAX);
        self.stream.reserve_capacity(wanted);
        let window = loop {
            let window = self.stream.capacity();
            if window > 0 {
                break window;
            }
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        };
        let taken = data.get(..wanted.min(window)).unwrap_or_default();
        let sent = self.stream.send_data(Bytes::copy_from_slice(taken), false);
        Poll::Ready(sent.map(|()| taken.len()).map_err(io::Error::other))
    }

    /// The connection's own task writes to the socket.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}
