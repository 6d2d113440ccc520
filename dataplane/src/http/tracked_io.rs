//! A client's stream as hyper and `h2` get it: the activity learns what passes, and hyper reads one
//! HTTP/1 message at a time.
//!
//! Stands between the stream and them. Invariant: every HTTP/1 head whose beginning is not in
//! hyper's buffer already has passed
//! [`Scan`] before hyper has its last byte; a head that is refused there never becomes a request.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use memchr::memchr;

use super::head::{HeadLimits, HeadScanner};
use super::header_case;
use super::http2_frames::FrameScanner;
use super::keep_alive::{KeepAliveState, ReadLimit};
use crate::io::chunk_read::{Chunk, ChunkRead};

/// A stream that tells the activity what passes.
pub(super) struct TrackedIo<I> {
    io: I,
    /// Came before the rest, and is read first.
    unread: Bytes,
    activity: Rc<KeepAliveState>,
    limits: HeadLimits,
    scan: HeadScanner,
    frames: FrameScanner,
    /// Whether header names keep their case.
    preserve_case: bool,
    /// What hyper reads before anything else.
    prefix: Bytes,
}

impl<I: ChunkRead + Write + Unpin> TrackedIo<I> {
    pub(super) fn new(io: I, activity: Rc<KeepAliveState>, limits: HeadLimits, preserve_case: bool) -> Self {
        let (left_over, first) = (Bytes::new(), Bytes::new());
        let (scan, frames) = (HeadScanner::new(limits), FrameScanner::new());
        Self { io, unread: left_over, activity, limits, scan, frames, preserve_case, prefix: first }
    }

    /// Takes back what a reader took and did not use, and keeps nothing that is not needed for it.
    pub(super) fn reset(&mut self, unused: Bytes) {
        // Without a byte in it, it would still hold the whole buffer it was cut from.
        self.unread = match (unused.is_empty(), self.unread.is_empty()) {
            (true, true) => Bytes::new(),
            (true, false) => std::mem::take(&mut self.unread),
            (false, true) => unused,
            (false, false) => [&*unused, &*self.unread].concat().into(),
        };
        self.scan = HeadScanner::new(self.limits);
        self.prefix = Bytes::new();
        self.activity.reset();
        self.io.shrink_buffers();
    }

    /// Waits until there is something to read, and says whether there is or the client has left.
    /// What waits to be sent is sent meanwhile. Holds no buffer but that of the read in flight.
    ///
    /// # Errors
    /// As the read or the write.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match self.poll_chunk(cx) {
            Poll::Ready(Ok(Chunk::Data(_))) => Poll::Ready(Ok(true)),
            // Nothing was cut off between two requests.
            Poll::Ready(Ok(Chunk::Eof | Chunk::Truncated)) => Poll::Ready(Ok(false)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
        }
    }

    /// Reads and drops what the client still sends, at most `bytes`, until it ends.
    pub(super) async fn discard(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let read = std::future::poll_fn(|cx| {
                self.poll_chunk(cx).map(|chunk| match chunk {
                    Ok(Chunk::Data(data)) => data.len(),
                    Ok(Chunk::Eof | Chunk::Truncated) | Err(_) => 0,
                })
            });
            let read = read.await;
            if read == 0 {
                return;
            }
            self.consume(read);
            bytes = bytes.saturating_sub(read);
        }
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Chunk<'_>>> {
        chunk(&self.unread, &mut self.io, cx)
    }

    /// HTTP/2: `h2` gets what there is.
    fn poll_frames(&mut self, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        // Cut off or not, the end is `h2`'s to judge.
        if let Chunk::Data(data) = ready!(chunk(&self.unread, &mut self.io, cx))? {
            let data = data.get(..data.len().min(buf.remaining())).unwrap_or_default();
            self.frames.read(data);
            self.activity.on_frames(&self.frames);
            let n = data.len();
            buf.put_slice(data);
            self.consume(n);
        }
        Poll::Ready(Ok(()))
    }

    fn consume(&mut self, n: usize) {
        if self.unread.has_remaining() { self.unread.advance(n) } else { self.io.consume(n) }
    }
}

/// What there is to read next.
fn chunk<'a, I: ChunkRead>(
    left_over: &'a Bytes,
    io: &'a mut I,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Chunk<'a>>> {
    if left_over.is_empty() { io.poll_chunk(cx) } else { Poll::Ready(Ok(Chunk::Data(left_over))) }
}

impl<I: ChunkRead + Write + Unpin> Read for TrackedIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.prefix.is_empty() {
            let n = this.prefix.len().min(buf.remaining());
            buf.put_slice(&this.prefix.split_to(n));
            return Poll::Ready(Ok(()));
        }
        let next = this.activity.read_limit();
        match next {
            ReadLimit::Nothing => return Poll::Ready(Ok(())),
            ReadLimit::Frames => return this.poll_frames(cx, buf),
            _ => {}
        }
        let data = match ready!(chunk(&this.unread, &mut this.io, cx))? {
            Chunk::Data(data) => data.get(..data.len().min(buf.remaining())).unwrap_or_default(),
            // Cut off or not: HTTP's own framing tells whether something is missing.
            Chunk::Eof | Chunk::Truncated => {
                this.activity.on_read();
                return Poll::Ready(Ok(()));
            }
        };
        let data = match next {
            ReadLimit::Nothing | ReadLimit::Frames | ReadLimit::End => {
                this.activity.set_read_waker(cx);
                return Poll::Pending;
            }
            ReadLimit::Body(left) => {
                let data = data.get(..usize::try_from(left).unwrap_or(usize::MAX)).unwrap_or(data);
                this.activity.consume_body(data.len());
                data
            }
            ReadLimit::Head if this.preserve_case && !this.scan.is_in_fields() => {
                let line = memchr(b'\n', data).and_then(|end| data.get(..=end)).unwrap_or(data);
                if let Err(error) = this.scan.read(line) {
                    this.activity.reject_head(error);
                    return Poll::Pending;
                }
                if this.scan.is_in_fields() {
                    this.prefix = header_case::prefix_lines();
                    this.activity.set_case_prefix();
                }
                line
            }
            ReadLimit::Head => match this.scan.read(data) {
                Ok(None) => data,
                Ok(Some(end)) => {
                    this.scan = HeadScanner::new(this.limits);
                    this.activity.complete_head();
                    data.get(..end).unwrap_or(data)
                }
                Err(error) => {
                    // The session ends with this poll, or when the answers before have gone out.
                    this.activity.reject_head(error);
                    return Poll::Pending;
                }
            },
        };
        this.activity.on_read();
        let n = data.len();
        buf.put_slice(data);
        self.consume(n);
        Poll::Ready(Ok(()))
    }
}

impl<I: Write + Unpin> Write for TrackedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.activity.set_unsent(true);
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.activity.set_unsent(!matches!(flushed, Poll::Ready(Ok(()))));
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.activity.set_unsent(true);
        self.activity.close_write();
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
        self.activity.set_unsent(true);
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}
