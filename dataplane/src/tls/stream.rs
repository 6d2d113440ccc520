//! An established TLS connection as hyper wants it, over the pump and rustls' buffered, sans-IO connection.
//!
//! Stands between `net/pump` (ciphertext) and the HTTP session (plaintext), on both sides of the gateway.
//! Invariants: ciphertext that rustls does not take at once stays in the pump (rustls caps unread plaintext at
//! 16 KiB); what rustls wants to send (tickets, key updates, alerts) goes out with the next flush, not in a
//! send of its own.

use std::{
    io::{self, BufRead as _, Write as _},
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use rustls::Connection;

use crate::{
    net::{plain::STAGED_MAX, pump::Pump},
    rt::{ReadHalf, Reader, WriteHalf, Writer},
};

/// An established TLS connection, server or client side.
pub struct TlsStream<R: Reader = ReadHalf, W: Writer = WriteHalf> {
    /// Boxed: over a kilobyte, which futures and hyper would otherwise hold several times over.
    tls: Box<Connection>,
    pump: Pump<R, W>,
    /// close_notify has been queued.
    closing: bool,
}

impl<R: Reader, W: Writer> TlsStream<R, W> {
    /// Joins a connection whose handshake is done with the pump it was done over.
    pub fn new(tls: Box<Connection>, pump: Pump<R, W>) -> Self {
        Self { tls, pump, closing: false }
    }

    fn poll_plaintext(&mut self, cx: &mut Context<'_>, buf: &mut ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut reader = self.tls.reader();
            match reader.fill_buf() {
                Ok(chunk) => {
                    let n = chunk.len().min(buf.remaining());
                    buf.put_slice(chunk.get(..n).unwrap_or_default());
                    reader.consume(n);
                    return Poll::Ready(Ok(()));
                }
                // Ended without close_notify: HTTP's own framing tells whether something is missing.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Poll::Ready(Ok(())),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                Err(_nothing_decrypted_yet) => {}
            }
            ready!(self.poll_records(cx))?;
        }
    }

    /// Feeds the next ciphertext to rustls.
    fn poll_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut data = ready!(self.pump.poll_fill(cx))?;
        let n = self.tls.read_tls(&mut data)?;
        self.pump.consume(n);
        match self.tls.process_new_packets() {
            Ok(_) => Poll::Ready(Ok(())),
            Err(error) => {
                // Tell the peer why, as far as the socket takes it without waiting.
                self.stage()?;
                let _best_effort = self.pump.poll_send(cx);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)))
            }
        }
    }

    /// Moves what rustls wants to send into the pump.
    fn stage(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(self.pump.staged())?;
        }
        Ok(())
    }

    /// Ready when there is room for more plaintext.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pump.staged().len() >= STAGED_MAX {
            ready!(self.pump.poll_send(cx))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<R: Reader + Unpin, W: Writer + Unpin> Read for TlsStream<R, W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_plaintext(cx, &mut buf)
    }
}

impl<R: Reader + Unpin, W: Writer + Unpin> Write for TlsStream<R, W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_room(cx))?;
        let n = self.tls.writer().write(data)?;
        self.stage()?;
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_room(cx))?;
        let n = self.tls.writer().write_vectored(bufs)?;
        self.stage()?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stage()?;
        self.pump.poll_drain(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            self.closing = true;
            self.tls.send_close_notify();
        }
        self.stage()?;
        ready!(self.pump.poll_drain(cx))?;
        self.pump.end_output();
        Poll::Ready(Ok(()))
    }
}
