//! A connection that remembers the TLS alert by which its node ended it, since `h2` keeps the kind
//! and the text of an I/O error, not its source; and that counts small frames.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::http2::frames::FrameScanner;
use crate::tls::alert::received_alert;

/// The alert that a connection received, if any.
pub(super) type ReceivedAlert = Rc<RefCell<Option<String>>>;

pub(super) struct ObservedIo<I> {
    io: TokioIo<I>,
    alert: ReceivedAlert,
    frames: FrameScanner,
    small_frames: Rc<Cell<u32>>,
}

impl<I> ObservedIo<I> {
    pub(super) fn new(io: I, alert: &ReceivedAlert) -> Self {
        let (alert, frames) = (Rc::clone(alert), FrameScanner::of_server());
        Self { io: TokioIo::new(io), alert, frames, small_frames: Rc::default() }
    }

    /// How many frames of data were small.
    pub(super) fn small_frames(&self) -> &Rc<Cell<u32>> {
        &self.small_frames
    }
}

impl<I: Read + Unpin> AsyncRead for ObservedIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut this.io).poll_read(cx, buf));
        if let Err(error) = &read
            && let Some(alert) = received_alert(error)
        {
            this.alert.replace(Some(alert));
        }
        this.frames.read(buf.filled().get(before..).unwrap_or_default());
        this.small_frames.set(this.frames.small_frames());
        Poll::Ready(read)
    }
}

impl<I: Write + Unpin> AsyncWrite for ObservedIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}
