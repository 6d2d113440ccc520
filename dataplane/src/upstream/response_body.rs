//! The body of a response on its way from the upstream to the client: streamed and timed.
//!
//! Invariants: an HTTP/1 connection returns to the pool only after both bodies have ended well; a
//! response that ends early, or belongs to a request whose body was not sent, is never forwarded
//! as a whole one; trailers pass as `http::trailers` allows.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::client::UpstreamTarget;
use super::http2::body::{BrokenStream, Http2ResponseBody};
use super::http2::upload::Upload;
use super::pool::PooledConnection;
use super::pool::node::StreamSlot;
use super::request_body::SendProgress;
use crate::http::head::{HeadError, HeadLimits};
use crate::http::http2::sender::ResetCode;
use crate::http::{grpc, trailers};
use crate::io::coarse_timer::{CoarseTimer, CoarseTimers};
use crate::observability::HasReason;
use crate::reason::Reason;

/// A response that is being read, and what it holds until its end.
pub(crate) enum ResponseSource {
    Http1 {
        incoming: Incoming,
        /// `None`: released, or closed after an error.
        connection: Option<PooledConnection>,
        /// Of the request's body.
        progress: SendProgress,
    },
    Http2 {
        body: Http2ResponseBody,
        /// The request's body, which its client may still send, and the stream. `None`: the
        /// exchange has ended.
        exchange: Option<(Option<Upload>, StreamSlot)>,
        progress: SendProgress,
    },
}

/// The limits on the body of a response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResponseLimits {
    /// The longest pause between two frames that is not the client's.
    read_timeout: Duration,
    /// Of a gRPC call.
    deadline: Option<Instant>,
    /// How large the trailers may be.
    trailers: HeadLimits,
}

impl ResponseLimits {
    pub(crate) fn new(target: &UpstreamTarget<'_>, trailers: HeadLimits) -> Self {
        Self { read_timeout: target.timeouts.read, deadline: target.deadline, trailers }
    }
}

/// Boxed, because a response is moved a dozen times on its way to the client.
pub(crate) struct UpstreamResponseBody(Box<ResponseReader>);

struct ResponseReader {
    source: ResponseSource,
    limits: ResponseLimits,
    timers: Rc<CoarseTimers>,
    /// Runs while the upstream pauses.
    timer: Option<CoarseTimer>,
    /// Runs until the deadline of a gRPC call.
    deadline: Option<CoarseTimer>,
    /// Cut off at its deadline.
    is_cut: bool,
}

/// The response ended early, and so does the one to the client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamBodyError {
    #[error("the upstream's response broke off: {0}")]
    Http(#[from] hyper::Error),
    #[error("the upstream's response broke off: HTTP/2: {0}")]
    Http2(#[from] BrokenStream),
    /// The response has ended, and the connection stays open without the rest of the request's
    /// body.
    #[error("the upstream responded to a request whose body was not sent")]
    RequestBodyUnsent,
    #[error("the upstream's response paused for more than {0:?}")]
    ReadTimeout(Duration),
    #[error("the trailers of the upstream's response: {0}")]
    Trailers(HeadError),
    /// The exchange ended because the client's body failed.
    #[error("the client's body: {}", .0.label())]
    ClientBody(Reason),
}

impl HasReason for UpstreamBodyError {
    fn reason(&self) -> Reason {
        match self {
            Self::Http(error) if error.is_parse() => Reason::UpstreamInvalid,
            Self::Http2(broken) if broken.error.is_library() => Reason::UpstreamInvalid,
            Self::Trailers(_) => Reason::UpstreamInvalid,
            Self::Http(_) | Self::Http2(_) | Self::RequestBodyUnsent => Reason::UpstreamClosed,
            Self::ReadTimeout(_) => Reason::UpstreamReadTimeout,
            Self::ClientBody(reason) => *reason,
        }
    }
}

impl ResetCode for UpstreamBodyError {
    fn reset_code(&self) -> h2::Reason {
        match self {
            Self::Http2(broken) => broken.reset_code(),
            _ => h2::Reason::INTERNAL_ERROR,
        }
    }
}

impl UpstreamBodyError {
    /// Whether the upstream ended the response, and not the client its own body: that ends an
    /// HTTP/1 connection, and resets an HTTP/2 stream from our side.
    pub(crate) fn is_upstreams(&self) -> bool {
        match self {
            Self::ClientBody(_) => false,
            Self::Http2(BrokenStream { error, .. }) => {
                !error.is_reset() || error.is_remote() || error.is_library()
            }
            _ => true,
        }
    }
}

impl ResponseSource {
    fn progress(&self) -> &SendProgress {
        match self {
            Self::Http1 { progress, .. } | Self::Http2 { progress, .. } => progress,
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        match self {
            Self::Http1 { incoming, .. } => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
            Self::Http2 { body, .. } => body.poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1 { incoming, .. } => incoming.is_end_stream(),
            Self::Http2 { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1 { incoming, .. } => incoming.size_hint(),
            Self::Http2 { body, .. } => body.size_hint(),
        }
    }

    /// The response has ended. An HTTP/1 connection whose response came before the end of the
    /// request is closed, as nginx does: the rest could be taken for the next request, and a client
    /// that sends it slowly would hold the connection. An HTTP/2 stream is reset for it.
    fn end(&mut self) -> Result<(), UpstreamBodyError> {
        match self {
            Self::Http1 { connection, progress, .. } => {
                let Some(connection) = connection.take() else { return Ok(()) };
                if progress.is_complete() {
                    connection.release();
                } else if progress.was_dropped() && !connection.is_closed() {
                    return Err(UpstreamBodyError::RequestBodyUnsent);
                }
            }
            Self::Http2 { exchange, .. } => {
                if let Some((upload, stream)) = exchange.take() {
                    drop(upload);
                    stream.finish();
                }
            }
        }
        Ok(())
    }

    /// The error, or the failure of the client's body that caused it.
    fn cause(&self, error: UpstreamBodyError) -> UpstreamBodyError {
        match self {
            Self::Http1 { progress, .. } => progress.failed().map_or(error, UpstreamBodyError::ClientBody),
            Self::Http2 { .. } => error,
        }
    }

    /// The response has failed, and nothing more is read.
    fn abort(&mut self) {
        match self {
            Self::Http1 { connection, .. } => *connection = None,
            Self::Http2 { exchange, .. } => *exchange = None,
        }
    }
}

impl UpstreamResponseBody {
    pub(crate) fn new(mut source: ResponseSource, limits: ResponseLimits, timers: &Rc<CoarseTimers>) -> Self {
        if source.is_end_stream() {
            // `exchange` has just checked the progress, so there is no error.
            let _no_frame_follows = source.end();
        }
        let until = limits.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let deadline = until.map(|left| timers.after(left));
        let timers = Rc::clone(timers);
        Self(Box::new(ResponseReader { source, limits, timers, timer: None, deadline, is_cut: false }))
    }
}

impl ResponseReader {
    /// The last frame, if there is one to forward.
    fn end_with(&mut self, trailers: HeaderMap) -> Option<Result<Frame<Bytes>, UpstreamBodyError>> {
        if let Err(error) = self.source.end() {
            return Some(Err(error));
        }
        match trailers::forwardable(trailers, self.limits.trailers) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(UpstreamBodyError::Trailers(error))),
        }
    }

    /// Ready when the upstream has paused for too long. While the client still sends its request,
    /// the upstream may have nothing to say.
    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.limits.read_timeout;
        let timer = self.timer.get_or_insert_with(|| self.timers.after(timeout));
        loop {
            ready!(timer.poll(cx));
            let left = timeout.saturating_sub(self.source.progress().waited_for_upstream());
            if left.is_zero() {
                return Poll::Ready(());
            }
            timer.reset(left);
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        if self.is_cut {
            return Poll::Ready(None);
        }
        // Before the frames: an upstream that always has one does not outlive the deadline.
        if self.deadline.as_mut().is_some_and(|timer| timer.poll(cx).is_ready()) {
            self.source.abort();
            self.is_cut = true;
            let trailers = grpc::status_trailers(Reason::DeadlineExceeded);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        match self.source.poll_frame(cx) {
            Poll::Pending => {
                ready!(self.poll_timeout(cx));
                self.source.abort();
                Poll::Ready(Some(Err(UpstreamBodyError::ReadTimeout(self.limits.read_timeout))))
            }
            Poll::Ready(None) => Poll::Ready(self.source.end().err().map(Err)),
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    self.timer = None;
                    // The last frame may be known as such already; there is no further poll then.
                    let ended = if self.source.is_end_stream() { self.source.end() } else { Ok(()) };
                    Poll::Ready(Some(ended.map(|()| Frame::data(data))))
                }
                Err(frame) => Poll::Ready(self.end_with(frame.into_trailers().unwrap_or_default())),
            },
            Poll::Ready(Some(Err(error))) => {
                let error = self.source.cause(error);
                self.source.abort();
                Poll::Ready(Some(Err(error)))
            }
        }
    }
}

impl Body for UpstreamResponseBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        self.0.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_cut || self.0.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.source.size_hint()
    }
}
