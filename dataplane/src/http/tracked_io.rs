//! The stream of a client connection as hyper and `h2` read and write it.
//!
//! It reports what passes to the connection's [`KeepAliveState`], and gives hyper one HTTP/1
//! message at a time. Invariant: [`HeadScanner`] has accepted every HTTP/1 head before hyper gets
//! its last byte, unless the head's beginning was in hyper's buffer already; a rejected head never
//! becomes a request.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use memchr::memchr;

use super::head::{HeadLimits, HeadScanner};
use super::header_case;
use super::http2::frames::FrameScanner;
use super::keep_alive::{KeepAliveState, ReadLimit};
use crate::io::chunk_read::{Chunk, ChunkRead};

/// A stream that reports to the connection's state.
pub(super) struct TrackedIo<I> {
    io: I,
    /// Was read before what `io` has, and was not used.
    unread: Bytes,
    state: Rc<KeepAliveState>,
    head_limits: HeadLimits,
    head_scanner: HeadScanner,
    frame_scanner: FrameScanner,
    /// Whether header names keep their case.
    preserve_case: bool,
    /// Our header names, which hyper reads behind the request line.
    case_prefix: Bytes,
}

impl<I: ChunkRead + Write + Unpin> TrackedIo<I> {
    pub(super) fn new(
        io: I,
        state: Rc<KeepAliveState>,
        head_limits: HeadLimits,
        preserve_case: bool,
    ) -> Self {
        let (unread, case_prefix) = (Bytes::new(), Bytes::new());
        let (head_scanner, frame_scanner) = (HeadScanner::new(head_limits), FrameScanner::new());
        Self { io, unread, state, head_limits, head_scanner, frame_scanner, preserve_case, case_prefix }
    }

    /// Takes back what a hyper connection has read and not used, and releases all buffers.
    pub(super) fn reset(&mut self, unused: Bytes) {
        // Empty `Bytes` still hold the whole buffer that they are a slice of.
        self.unread = match (unused.is_empty(), self.unread.is_empty()) {
            (true, true) => Bytes::new(),
            (true, false) => std::mem::take(&mut self.unread),
            (false, true) => unused,
            (false, false) => [&*unused, &*self.unread].concat().into(),
        };
        self.head_scanner = HeadScanner::new(self.head_limits);
        self.case_prefix = Bytes::new();
        self.state.reset();
        self.io.shrink_buffers();
    }

    /// Waits until there is data (`true`) or the client has closed (`false`), and flushes written
    /// data meanwhile. Holds no buffer but that of the read in flight.
    ///
    /// # Errors
    /// A failed read or write.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match self.poll_chunk(cx) {
            Poll::Ready(Ok(Chunk::Data(_))) => Poll::Ready(Ok(true)),
            // Between two requests nothing is truncated.
            Poll::Ready(Ok(Chunk::Eof | Chunk::Truncated)) => Poll::Ready(Ok(false)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
        }
    }

    /// Gives `h2` all there is.
    fn poll_read_frames(&mut self, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        // `h2` decides whether a connection was truncated.
        if let Chunk::Data(data) = ready!(poll_chunk(&self.unread, &mut self.io, cx))? {
            let data = data.get(..data.len().min(buf.remaining())).unwrap_or_default();
            self.frame_scanner.read(data);
            self.state.on_frames(&self.frame_scanner);
            let n = data.len();
            buf.put_slice(data);
            self.consume(n);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: ChunkRead> ChunkRead for TrackedIo<I> {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Chunk<'_>>> {
        poll_chunk(&self.unread, &mut self.io, cx)
    }

    fn consume(&mut self, n: usize) {
        if self.unread.has_remaining() { self.unread.advance(n) } else { self.io.consume(n) }
    }

    fn shrink_buffers(&mut self) {
        self.io.shrink_buffers();
    }
}

/// The next chunk to read.
fn poll_chunk<'a, I: ChunkRead>(
    unread: &'a Bytes,
    io: &'a mut I,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Chunk<'a>>> {
    if unread.is_empty() { io.poll_chunk(cx) } else { Poll::Ready(Ok(Chunk::Data(unread))) }
}

impl<I: ChunkRead + Write + Unpin> Read for TrackedIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.case_prefix.is_empty() {
            let n = this.case_prefix.len().min(buf.remaining());
            buf.put_slice(&this.case_prefix.split_to(n));
            return Poll::Ready(Ok(()));
        }
        let limit = this.state.read_limit();
        match limit {
            ReadLimit::Eof => return Poll::Ready(Ok(())),
            ReadLimit::Unlimited => return this.poll_read_frames(cx, buf),
            _ => {}
        }
        let data = match ready!(poll_chunk(&this.unread, &mut this.io, cx))? {
            Chunk::Data(data) => data.get(..data.len().min(buf.remaining())).unwrap_or_default(),
            // The framing of HTTP/1 shows whether a message was truncated.
            Chunk::Eof | Chunk::Truncated => {
                this.state.on_read();
                return Poll::Ready(Ok(()));
            }
        };
        let data = match limit {
            ReadLimit::Eof | ReadLimit::Unlimited | ReadLimit::EofOnly => {
                this.state.set_read_waker(cx);
                return Poll::Pending;
            }
            ReadLimit::Body(remaining) => {
                let data = data.get(..usize::try_from(remaining).unwrap_or(usize::MAX)).unwrap_or(data);
                this.state.consume_body(data.len());
                data
            }
            // The request line alone, so that our header names follow it.
            ReadLimit::Head if this.preserve_case && !this.head_scanner.is_in_fields() => {
                let line = memchr(b'\n', data).and_then(|end| data.get(..=end)).unwrap_or(data);
                if let Err(error) = this.head_scanner.read(line) {
                    this.state.reject_head(error);
                    return Poll::Pending;
                }
                if this.head_scanner.is_in_fields() {
                    this.case_prefix = header_case::prefix_lines();
                    this.state.set_case_prefix();
                }
                line
            }
            ReadLimit::Head => match this.head_scanner.read(data) {
                Ok(None) => data,
                Ok(Some(end)) => {
                    this.head_scanner = HeadScanner::new(this.head_limits);
                    this.state.complete_head();
                    data.get(..end).unwrap_or(data)
                }
                Err(error) => {
                    // This poll, or the last flush of an earlier response, ends the hyper
                    // connection.
                    this.state.reject_head(error);
                    return Poll::Pending;
                }
            },
        };
        this.state.on_read();
        let n = data.len();
        buf.put_slice(data);
        self.consume(n);
        Poll::Ready(Ok(()))
    }
}

impl<I: Write + Unpin> TrackedIo<I> {
    /// Writes the interim responses that are queued: before anything that hyper writes, and whole.
    fn poll_write_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut queued = self.state.interim_bytes().borrow_mut();
        while !queued.is_empty() {
            self.state.set_unflushed(true);
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &queued))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            queued.drain(..written);
            if queued.is_empty() {
                // A connection that hibernates keeps nothing.
                *queued = Vec::new();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: Write + Unpin> Write for TrackedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_interim(cx))?;
        self.state.set_unflushed(true);
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes whenever it was polled, so that an interim response needs no other wake-up.
        ready!(self.poll_write_interim(cx))?;
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.state.set_unflushed(!matches!(flushed, Poll::Ready(Ok(()))));
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.set_unflushed(true);
        self.state.close_write();
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_interim(cx))?;
        self.state.set_unflushed(true);
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}
