//! An established TLS connection, as hyper and the TCP relay read and write it, on the client and
//! the server side.
//!
//! Invariants: ciphertext that the transport does not read at once stays in the socket's read
//! buffer (rustls holds at most 16 KiB of unread plaintext). What the transport queues (tickets,
//! key updates, alerts) leaves with the next flush, not in a write of its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::PlaintextState;
use super::transport::TlsTransport;
use crate::io::buffered::BufferedSocket;
use crate::io::chunk_read::{Chunk, ChunkRead};
use crate::io::plain::WRITE_BUF_MAX;
use crate::runtime::{ReadHalf, Reader, WriteHalf, Writer};

/// Reads and writes after which a connection detaches from rustls: most connections carry only a
/// request, a response and a `close_notify`.
const DETACH_AFTER: u8 = 3;

/// An established TLS connection.
pub struct TlsStream<R: Reader = ReadHalf, W: Writer = WriteHalf> {
    tls: TlsTransport,
    socket: BufferedSocket<R, W>,
    close_notify_queued: bool,
    /// Reads and writes, up to [`DETACH_AFTER`].
    io_count: u8,
}

impl<R: Reader, W: Writer> TlsStream<R, W> {
    /// Joins a transport with the socket of its handshake.
    pub fn new(tls: TlsTransport, socket: BufferedSocket<R, W>) -> Self {
        Self { tls, socket, close_notify_queued: false, io_count: 0 }
    }

    pub fn socket(&mut self) -> &mut BufferedSocket<R, W> {
        &mut self.socket
    }

    /// Counts a read or a write. A connection with many of them detaches from rustls.
    fn count_io(&mut self) {
        if self.io_count < DETACH_AFTER {
            self.io_count += 1;
        } else {
            self.tls.detach_from_rustls();
        }
    }

    /// Reads until there is plaintext, or the peer's direction has ended.
    fn poll_plaintext(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<PlaintextState>> {
        loop {
            match self.tls.plaintext_state() {
                Ok(PlaintextState::NeedMoreData) => ready!(self.poll_read_tls(cx))?,
                Ok(state) => return Poll::Ready(Ok(state)),
                Err(error) => return Poll::Ready(Err(self.fail(cx, error))),
            }
        }
    }

    /// Reads and decrypts more ciphertext.
    fn poll_read_tls(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.socket.poll_fill_buf(cx))?;
        self.count_io();
        let data = ready!(self.socket.poll_fill_buf(cx))?;
        let n = self.tls.read_tls(data)?;
        self.socket.consume(n);
        Poll::Ready(self.tls.process_new_packets().map_err(|error| {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            self.fail(cx, error)
        }))
    }

    /// Sends the alert and shuts our direction down, as far as the socket takes it without waiting:
    /// nothing polls this stream again.
    fn fail(&mut self, cx: &mut Context<'_>, error: io::Error) -> io::Error {
        self.write_tls();
        let _best_effort = self.socket.poll_shutdown(cx);
        error
    }

    /// Moves the transport's queued ciphertext into the write buffer.
    fn write_tls(&mut self) {
        self.tls.write_tls(self.socket.write_buf());
    }

    /// Ready when the write buffer has room.
    fn poll_write_capacity(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.socket.write_buf().len() >= WRITE_BUF_MAX {
            ready!(self.socket.poll_start_write(cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<R: Reader, W: Writer> ChunkRead for TlsStream<R, W> {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Chunk<'_>>> {
        Poll::Ready(Ok(match ready!(self.poll_plaintext(cx))? {
            PlaintextState::CloseNotify => Chunk::Eof,
            PlaintextState::Truncated => Chunk::Truncated,
            PlaintextState::Available | PlaintextState::NeedMoreData => Chunk::Data(self.tls.plaintext()?),
        }))
    }

    fn consume(&mut self, n: usize) {
        self.tls.consume(n);
    }

    fn shrink_buffers(&mut self) {
        self.socket.shrink_buffers();
        self.tls.detach_from_rustls();
        self.tls.shrink_buffers();
    }
}

#[cold]
fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the TLS connection ended without close_notify")
}

impl<R: Reader + Unpin, W: Writer + Unpin> Read for TlsStream<R, W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let n = match ready!(self.poll_chunk(cx))? {
            Chunk::Data(chunk) => {
                let n = chunk.len().min(buf.remaining());
                buf.put_slice(chunk.get(..n).unwrap_or_default());
                n
            }
            Chunk::Eof => 0,
            // A body delimited by the connection's end would seem complete (RFC 9112 section 9.8).
            Chunk::Truncated => return Poll::Ready(Err(truncated())),
        };
        self.consume(n);
        Poll::Ready(Ok(()))
    }
}

impl<R: Reader + Unpin, W: Writer + Unpin> Write for TlsStream<R, W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_capacity(cx))?;
        self.count_io();
        let Self { tls, socket, .. } = &mut *self;
        let written = tls.write(data, socket.write_buf());
        Poll::Ready(written.map_err(|error| self.fail(cx, error)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_capacity(cx))?;
        self.count_io();
        let Self { tls, socket, .. } = &mut *self;
        let written = tls.write_vectored(bufs, socket.write_buf());
        Poll::Ready(written.map_err(|error| self.fail(cx, error)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_tls();
        self.socket.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.close_notify_queued {
            self.close_notify_queued = true;
            self.tls.send_close_notify();
        }
        self.write_tls();
        self.socket.poll_shutdown(cx)
    }
}
