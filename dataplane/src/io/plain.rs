//! A clear-text connection as hyper and the relay of streams want it: bytes from the pump, as they
//! are.
//!
//! Used by the listeners without TLS and by upstreams with scheme `http` or `tcp`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::buffered::BufferedSocket;
use super::chunk_read::{Chunk, ChunkRead};

/// A sender may stage this much before it has to wait for the kernel. Bytes.
pub(crate) const WRITE_BUF_MAX: usize = 128 * 1024;

/// A clear-text stream.
pub struct PlainStream {
    socket: BufferedSocket,
}

impl PlainStream {
    /// Wraps a pump; bytes it holds already are read first.
    pub fn new(pump: BufferedSocket) -> Self {
        Self { socket: pump }
    }

    /// What it runs over.
    pub fn socket(&mut self) -> &mut BufferedSocket {
        &mut self.socket
    }
}

impl ChunkRead for PlainStream {
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

impl Read for PlainStream {
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

impl Write for PlainStream {
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
        let staged = self.socket.write_buf();
        let before = staged.len();
        for buf in bufs {
            staged.extend_from_slice(buf);
        }
        Poll::Ready(Ok(staged.len() - before))
    }
}
