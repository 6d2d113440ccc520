//! An answer's body on its way from the upstream to the client: streamed and timed.
//!
//! Stands behind `exchange`, which makes it once the answer's head is there. Invariant: its
//! connection goes back to the pool only after both bodies have ended well; an answer that breaks
//! off, or belongs to a request whose body was not sent, is never passed on as a whole one.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use super::pool::PooledConnection;
use super::request_body::SendProgress;
use crate::io::coarse_timer::{CoarseTimer, CoarseTimers};

/// An answer's body on its way to the client. When it ends well, its connection goes back to the
/// pool.
pub struct UpstreamResponseBody {
    incoming: Incoming,
    connection: Option<PooledConnection>,
    /// Of the request's body.
    progress: SendProgress,
    within: Duration,
    alarms: Rc<CoarseTimers>,
    timer: Option<CoarseTimer>,
}

/// The answer broke off; the client sees a broken answer too, never a short one.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamBodyError {
    /// The upstream broke off.
    #[error("the upstream's answer broke off: {0}")]
    Http(#[from] hyper::Error),
    /// The answer ended, and the connection lives on without the rest of the request's body.
    #[error("the upstream answered a request whose body was not sent")]
    RequestBodyUnsent,
    /// The upstream paused for too long.
    #[error("the upstream's answer paused for more than {0:?}")]
    ReadTimeout(Duration),
}

impl UpstreamResponseBody {
    /// Wraps the body of an answer. `within`: the longest pause between two pieces.
    pub fn new(
        incoming: Incoming,
        lease: PooledConnection,
        progress: SendProgress,
        within: Duration,
        alarms: &Rc<CoarseTimers>,
    ) -> Self {
        let (lease, alarms) = (Some(lease), Rc::clone(alarms));
        let mut body = Self { incoming, connection: lease, progress, within, alarms, timer: None };
        if body.incoming.is_end_stream() {
            // `exchange` has just looked whether the request's body is on its way.
            let _no_frame_follows = body.end();
        }
        body
    }

    /// The answer has ended. A connection that was answered before it had the whole request is
    /// closed, as nginx does: what is still to come could be taken for the next one, and a client
    /// that sends it slowly would hold the connection.
    fn end(&mut self) -> Result<(), UpstreamBodyError> {
        let Some(lease) = self.connection.take() else { return Ok(()) };
        if self.progress.is_complete() {
            lease.release();
        } else if self.progress.was_dropped() && !lease.is_closed() {
            return Err(UpstreamBodyError::RequestBodyUnsent);
        }
        Ok(())
    }
}

impl HttpBody for UpstreamResponseBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Pending => {
                let within = this.within;
                let alarm = this.timer.get_or_insert_with(|| this.alarms.after(within));
                match alarm.poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => {
                        this.connection = None;
                        Poll::Ready(Some(Err(UpstreamBodyError::ReadTimeout(within))))
                    }
                }
            }
            Poll::Ready(None) => Poll::Ready(this.end().err().map(Err)),
            // Trailers are not merged and not forwarded (RFC 9110 section 6.5.1): nothing that looks at an
            // answer sees them.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => Poll::Ready(this.end().err().map(Err)),
            Poll::Ready(Some(Ok(frame))) => {
                this.timer = None;
                // The last piece may be known as such already; nothing asks again then.
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
