//! The body of a response on its way from the upstream to the client: streamed and timed.
//!
//! Invariant: the connection returns to the pool only after both bodies have ended well; a response
//! that ends early, or belongs to a request whose body was not sent, is never forwarded as a whole
//! one.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::pool::PooledConnection;
use super::request_body::SendProgress;
use crate::io::coarse_timer::{CoarseTimer, CoarseTimers};

pub(crate) struct UpstreamResponseBody {
    incoming: Incoming,
    /// `None`: released, or closed after an error.
    connection: Option<PooledConnection>,
    /// Of the request's body.
    progress: SendProgress,
    read_timeout: Duration,
    timers: Rc<CoarseTimers>,
    /// Runs while the upstream pauses.
    timer: Option<CoarseTimer>,
}

/// The response ended early, and so does the one to the client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamBodyError {
    #[error("the upstream's response broke off: {0}")]
    Http(#[from] hyper::Error),
    /// The response has ended, and the connection stays open without the rest of the request's
    /// body.
    #[error("the upstream responded to a request whose body was not sent")]
    RequestBodyUnsent,
    #[error("the upstream's response paused for more than {0:?}")]
    ReadTimeout(Duration),
}

impl UpstreamResponseBody {
    /// `read_timeout`: the longest pause between two frames.
    pub(crate) fn new(
        incoming: Incoming,
        connection: PooledConnection,
        progress: SendProgress,
        read_timeout: Duration,
        timers: &Rc<CoarseTimers>,
    ) -> Self {
        let (connection, timers) = (Some(connection), Rc::clone(timers));
        let mut body = Self { incoming, connection, progress, read_timeout, timers, timer: None };
        if body.incoming.is_end_stream() {
            // `exchange` has just checked the progress, so there is no error.
            let _no_frame_follows = body.end();
        }
        body
    }

    /// The response has ended. A connection whose response came before the end of the request is
    /// closed, as nginx does: the rest could be taken for the next request, and a client that sends
    /// it slowly would hold the connection.
    fn end(&mut self) -> Result<(), UpstreamBodyError> {
        let Some(connection) = self.connection.take() else { return Ok(()) };
        if self.progress.is_complete() {
            connection.release();
        } else if self.progress.was_dropped() && !connection.is_closed() {
            return Err(UpstreamBodyError::RequestBodyUnsent);
        }
        Ok(())
    }
}

impl Body for UpstreamResponseBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Pending => {
                let timeout = this.read_timeout;
                let timer = this.timer.get_or_insert_with(|| this.timers.after(timeout));
                match timer.poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => {
                        this.connection = None;
                        Poll::Ready(Some(Err(UpstreamBodyError::ReadTimeout(timeout))))
                    }
                }
            }
            Poll::Ready(None) => Poll::Ready(this.end().err().map(Err)),
            // Trailers are not merged and not forwarded (RFC 9110 section 6.5.1), since no check of
            // the response covers them.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => Poll::Ready(this.end().err().map(Err)),
            Poll::Ready(Some(Ok(frame))) => {
                this.timer = None;
                // The last frame may be known as such already; there is no further poll then.
                let ended = if this.incoming.is_end_stream() { this.end() } else { Ok(()) };
                Poll::Ready(Some(ended.map(|()| frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.connection = None;
                Poll::Ready(Some(Err(error.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
