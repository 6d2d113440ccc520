//! A clear-text connection as hyper and the relay of streams want it: bytes from the pump, as they are.
//!
//! Used by the listeners without TLS and by upstreams with scheme `http` or `tcp`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::lend::{Chunk, Lend};
use super::pump::Pump;

/// A sender may stage this much before it has to wait for the kernel. Bytes.
pub const STAGED_MAX: usize = 128 * 1024;

/// A clear-text stream.
pub struct PlainStream {
    pump: Pump,
}

impl PlainStream {
    /// Wraps a pump; bytes it holds already are read first.
    pub fn new(pump: Pump) -> Self {
        Self { pump }
    }

    /// What it runs over.
    pub fn pump(&mut self) -> &mut Pump {
        &mut self.pump
    }
}

impl Lend for PlainStream {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Chunk<'_>>> {
        let data = ready!(self.pump.poll_fill(cx))?;
        Poll::Ready(Ok(if data.is_empty() { Chunk::End } else { Chunk::Data(data) }))
    }

    fn consume(&mut self, n: usize) {
        self.pump.consume(n);
    }

    fn settle(&mut self) {
        self.pump.settle();
    }
}

impl Read for PlainStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let data = ready!(self.pump.poll_fill(cx))?;
        let n = data.len().min(buf.remaining());
        buf.put_slice(data.get(..n).unwrap_or_default());
        self.pump.consume(n);
        Poll::Ready(Ok(()))
    }
}

impl Write for PlainStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.pump.staged().len() >= STAGED_MAX {
            ready!(self.pump.poll_send(cx))?;
        }
        self.pump.staged().extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pump.poll_drain(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pump.poll_finish(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.pump.staged().len() >= STAGED_MAX {
            ready!(self.pump.poll_send(cx))?;
        }
        let staged = self.pump.staged();
        let before = staged.len();
        for buf in bufs {
            staged.extend_from_slice(buf);
        }
        Poll::Ready(Ok(staged.len() - before))
    }
}
