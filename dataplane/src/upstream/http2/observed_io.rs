//! A connection that remembers the TLS alert by which its node ended it. `h2` keeps the kind and
//! the text of an I/O error, not its source.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};

use crate::tls::alert::received_alert;

/// The alert that a connection received, if any.
pub(super) type ReceivedAlert = Rc<RefCell<Option<String>>>;

pub(super) struct AlertIo<I> {
    io: I,
    alert: ReceivedAlert,
}

impl<I> AlertIo<I> {
    pub(super) fn new(io: I, alert: &ReceivedAlert) -> Self {
        Self { io, alert: Rc::clone(alert) }
    }
}

impl<I: Read + Unpin> Read for AlertIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read
            && let Some(alert) = received_alert(error)
        {
            self.alert.replace(Some(alert));
        }
        read
    }
}

impl<I: Write + Unpin> Write for AlertIo<I> {
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
