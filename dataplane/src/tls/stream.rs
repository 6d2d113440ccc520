//! An established TLS connection as hyper and the relay of streams want it, over the pump and an
//! engine without IO.
//!
//! Stands between `net/pump` (ciphertext) and the HTTP session or the relay (plaintext), on both
//! sides of the gateway. Invariants: ciphertext that the engine does not take at once stays in the
//! pump (rustls caps unread plaintext at 16 KiB); what the engine wants to send (tickets, key
//! updates, alerts) goes out with the next flush, not in a send of its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::transport::{PlaintextState, TlsTransport};
use crate::io::buffered::BufferedSocket;
use crate::io::chunk_read::{Chunk, ChunkRead};
use crate::io::plain::WRITE_BUF_MAX;
use crate::runtime::{ReadHalf, Reader, WriteHalf, Writer};

/// A request, its answer and a goodbye: what passes on most connections, and no more.
const DETACH_AFTER: u8 = 3;

/// An established TLS connection, server or client side.
pub struct TlsStream<R: Reader = ReadHalf, W: Writer = WriteHalf> {
    tls: TlsTransport,
    socket: BufferedSocket<R, W>,
    /// close_notify has been queued.
    close_notify_queued: bool,
    /// How often something passed, up to [`STAYS`].
    io_count: u8,
}

impl<R: Reader, W: Writer> TlsStream<R, W> {
    /// Joins a connection whose handshake is done with the pump it was done over.
    pub fn new(tls: TlsTransport, pump: BufferedSocket<R, W>) -> Self {
        Self { tls, socket: pump, close_notify_queued: false, io_count: 0 }
    }

    /// What it runs over.
    pub fn socket(&mut self) -> &mut BufferedSocket<R, W> {
        &mut self.socket
    }

    /// Something passes. From a connection that stays, or carries much, rustls is dismissed as soon
    /// as that can be.
    fn count_io(&mut self) {
        if self.io_count < DETACH_AFTER {
            self.io_count += 1;
        } else {
            self.tls.detach_from_rustls();
        }
    }

    /// Reads until there is plaintext to lend, or none will come.
    fn poll_plaintext(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<PlaintextState>> {
        loop {
            match self.tls.plaintext_state() {
                Ok(PlaintextState::NeedMoreData) => ready!(self.poll_read_tls(cx))?,
                Ok(state) => return Poll::Ready(Ok(state)),
                Err(error) => return Poll::Ready(Err(self.fail(cx, error))),
            }
        }
    }

    /// Feeds the next ciphertext to the engine.
    fn poll_read_tls(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.socket.poll_fill_buf(cx))?;
        self.count_io();
        let data = ready!(self.socket.poll_fill_buf(cx))?;
        let n = self.tls.read_tls(data)?;
        self.socket.consume(n);
        let advanced = self.tls.process_new_packets();
        Poll::Ready(advanced.map_err(|error| {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            self.fail(cx, error)
        }))
    }

    /// Tells the peer why and ends our direction, as far as the socket takes it without waiting:
    /// nobody polls this stream again.
    fn fail(&mut self, cx: &mut Context<'_>, error: io::Error) -> io::Error {
        if self.write_tls().is_ok() {
            let _best_effort = self.socket.poll_shutdown(cx);
        }
        error
    }

    /// Moves what the engine wants to send into the pump.
    fn write_tls(&mut self) -> io::Result<()> {
        self.tls.write_tls(self.socket.write_buf())
    }

    /// Ready when there is room for more plaintext.
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

/// The peer ended the connection without close_notify.
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
            // A message whose end is the connection's would pass for whole (RFC 9112 section 9.8).
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
        let Self { tls, socket: pump, .. } = &mut *self;
        let written = tls.write(data, pump.write_buf());
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
        let Self { tls, socket: pump, .. } = &mut *self;
        let written = tls.write_vectored(bufs, pump.write_buf());
        Poll::Ready(written.map_err(|error| self.fail(cx, error)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_tls()?;
        self.socket.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.close_notify_queued {
            self.close_notify_queued = true;
            self.tls.send_close_notify();
        }
        self.write_tls()?;
        self.socket.poll_shutdown(cx)
    }
}
