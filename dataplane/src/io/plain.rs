//! A plaintext connection, as hyper and the TCP relay read and write it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::buffered::BufferedSocket;
use super::chunk_read::{Chunk, ChunkRead};
use crate::runtime::{ReadHalf, Reader, WriteHalf, Writer};

/// The size of a write buffer above which a writer waits for the kernel. Bytes.
pub(crate) const WRITE_BUF_MAX: usize = 128 * 1024;

/// A connection without TLS: of a plain listener, or to an upstream with scheme `http` or `tcp`.
pub(crate) struct PlainStream<R: Reader = ReadHalf, W: Writer = WriteHalf> {
    socket: BufferedSocket<R, W>,
}

impl<R: Reader, W: Writer> PlainStream<R, W> {
    /// Wraps `socket`; bytes in its read buffer come first.
    pub(crate) fn new(socket: BufferedSocket<R, W>) -> Self {
        Self { socket }
    }

    pub(crate) fn socket(&mut self) -> &mut BufferedSocket<R, W> {
        &mut self.socket
    }
}

impl<R: Reader, W: Writer> ChunkRead for PlainStream<R, W> {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Chunk<'_>>> {
        let data = ready!(self.socket.poll_fill_buf(cx))?;
        Poll::Ready(Ok(if data.is_empty() { Chunk::Eof } else { Chunk::Data(data) }))
    }

    fn consume(&mut self, n: usize) {
        self.socket.consume(n);
    }

    fn shrink_buffers(&mut self) {
        self.socket.shrink_buffers();
    }
}

impl<R: Reader + Unpin, W: Writer + Unpin> Read for PlainStream<R, W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let data = ready!(self.socket.poll_fill_buf(cx))?;
        let n = data.len().min(buf.remaining());
        buf.put_slice(data.get(..n).unwrap_or_default());
        self.socket.consume(n);
        Poll::Ready(Ok(()))
    }
}

impl<R: Reader + Unpin, W: Writer + Unpin> Write for PlainStream<R, W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.socket.write_buf().len() >= WRITE_BUF_MAX {
            ready!(self.socket.poll_start_write(cx))?;
        }
        self.socket.write_buf().extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.socket.write_buf().len() >= WRITE_BUF_MAX {
            ready!(self.socket.poll_start_write(cx))?;
        }
        let write_buf = self.socket.write_buf();
        let before = write_buf.len();
        for buf in bufs {
            write_buf.extend_from_slice(buf);
        }
        Poll::Ready(Ok(write_buf.len() - before))
    }
}
