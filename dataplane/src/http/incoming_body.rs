//! The body of a client's request, over HTTP/1 or HTTP/2. It reports its end to the connection's
//! [`KeepAliveState`].
//!
//! Invariant: a body that its client breaks off (RST_STREAM of any code included) is an error,
//! never an end.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::http2::intake::{Intake, SharedIntake};
use super::interim::InterimResponses;
use super::keep_alive::{InFlightGuard, KeepAliveState};
use super::request;

/// The body of a client's request.
pub struct IncomingBody {
    source: BodySource,
    /// The request's number on its connection.
    number: u64,
    /// `None` over HTTP/1.0.
    interim: Option<InterimResponses>,
    state: Rc<KeepAliveState>,
}

/// The protocol's own body.
pub(super) enum BodySource {
    Http1(Incoming),
    Http2(Http2Body),
}

/// The client broke off its request.
#[derive(Debug, thiserror::Error)]
pub enum IncomingBodyError {
    #[error(transparent)]
    Http1(#[from] hyper::Error),
    #[error(transparent)]
    Http2(#[from] h2::Error),
}

/// The body of an HTTP/2 request. `h2` checks it against its `Content-Length` (RFC 9113 section
/// 8.1.1).
pub(super) struct Http2Body {
    intake: SharedIntake,
    /// Bytes still to come, if the head has a length.
    remaining: Option<u64>,
    /// The client waits for 100 before it sends the body. hyper sends it for HTTP/1.
    expects_continue: bool,
}

impl Http2Body {
    pub(super) fn new(headers: &HeaderMap, stream: RecvStream) -> Self {
        let length =
            headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let remaining = length.or_else(|| stream.is_end_stream().then_some(0));
        Self { intake: Intake::new(stream), remaining, expects_continue: request::expects_continue(headers) }
    }

    /// What the client sends.
    pub(super) fn intake(&self) -> &SharedIntake {
        &self.intake
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.intake.borrow().is_end_stream()
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        interim: Option<&InterimResponses>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let mut intake = self.intake.borrow_mut();
        let data = intake.poll_data(cx);
        // RFC 9110 section 10.1.1: none is due once data has arrived.
        if std::mem::take(&mut self.expects_continue)
            && data.is_pending()
            && let Some(interim) = interim
        {
            interim.send_continue();
        }
        match ready!(data) {
            Some(Ok(data)) => {
                if let Err(error) = intake.release(data.len()) {
                    return Poll::Ready(Some(Err(error)));
                }
                self.remaining = self.remaining.map(|left| left.saturating_sub(data.len() as u64));
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let trailers = ready!(intake.poll_trailers(cx));
                Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose())
            }
        }
    }
}

impl BodySource {
    pub(super) fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.remaining.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl IncomingBody {
    /// Begins a request with this body.
    pub(super) fn begin_request(
        source: BodySource,
        interim: Option<InterimResponses>,
        state: &Rc<KeepAliveState>,
    ) -> (Self, InFlightGuard) {
        let length = if source.is_end_stream() { Some(0) } else { source.size_hint().exact() };
        let (number, in_flight) = state.begin_request(length);
        (Self { source, number, interim, state: Rc::clone(state) }, in_flight)
    }

    /// The channel for interim responses to the client; `None`: the client understands none.
    pub(crate) fn interim(&self) -> Option<&InterimResponses> {
        self.interim.as_ref()
    }
}

impl Body for IncomingBody {
    type Data = Bytes;
    type Error = IncomingBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, IncomingBodyError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            BodySource::Http1(body) => Pin::new(body).poll_frame(cx).map_err(IncomingBodyError::from),
            BodySource::Http2(body) => {
                body.poll_frame(cx, this.interim.as_ref()).map_err(IncomingBodyError::from)
            }
        };
        // Nothing follows trailers, and a reader that drops them polls no further.
        let is_end = match &frame {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => true,
            _ => this.source.is_end_stream(),
        };
        if is_end {
            this.state.finish_body(this.number);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.source.size_hint()
    }
}

impl Drop for IncomingBody {
    fn drop(&mut self) {
        self.state.abandon_body(self.number);
    }
}
