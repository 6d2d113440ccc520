//! The body of a message on its way into one HTTP/2 stream, as far as the peer's windows allow: of
//! a response to a client, of a request to an upstream.
//!
//! Invariants: `h2` gets no byte that the stream's window does not cover, so that data for a slow
//! peer stays where it comes from; a body that is truncated ends with RST_STREAM, never with
//! END_STREAM.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use hyper::body::Body;

/// The error of a body that ends early, to the peer that gets it.
pub(crate) trait ResetCode {
    /// The code of RST_STREAM.
    fn reset_code(&self) -> Reason;
}

/// How a sender shares its connection, and how long it waits for window.
pub(crate) trait SendPacing {
    /// The most bytes for one frame.
    fn frame_size(&self) -> usize;

    /// Polled while there is data and no window. Ready: the sender resets its stream.
    fn poll_blocked(&mut self, cx: &Context<'_>) -> Poll<()>;

    /// The peer has taken a piece, or `bytes` since the last call that returned `true`.
    fn record_sent(&mut self, bytes: usize, whole_piece: bool) -> bool;
}

/// Sends one body, with its trailers.
pub(crate) struct BodySender<B, P> {
    stream: SendStream<Bytes>,
    body: B,
    pacing: P,
    /// Data without a window.
    piece: Bytes,
    /// Nothing follows `piece`.
    is_last: bool,
    /// Bytes sent since the last progress.
    sent: usize,
}

impl<B, P: SendPacing> BodySender<B, P>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: ResetCode,
{
    /// A sender of `body`, which has not ended.
    pub(crate) fn new(stream: SendStream<Bytes>, body: B, pacing: P) -> Self {
        Self { stream, body, pacing, piece: Bytes::new(), is_last: false, sent: 0 }
    }

    /// Ready when the body is sent, or the stream has ended otherwise.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            if self.piece.is_empty() {
                if self.is_last {
                    return Poll::Ready(());
                }
                // Capacity is reserved only for data that is there: it is taken from other streams.
                ready!(self.poll_body(cx));
                continue;
            }
            let window = self.stream.capacity();
            if window > 0 {
                self.send_piece(window);
                continue;
            }
            match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => {
                    ready!(self.pacing.poll_blocked(cx));
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Ready when there is a piece, or the body has ended.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.is_last = self.body.is_end_stream();
                    if data.is_empty() && self.is_last {
                        self.end_stream();
                    } else if !data.is_empty() {
                        self.reserve(data.len());
                        self.piece = data;
                    }
                }
                Err(other) => {
                    if let Ok(trailers) = other.into_trailers() {
                        self.is_last = true;
                        let _ended_meanwhile = self.stream.send_trailers(trailers);
                    }
                }
            },
            None => self.end_stream(),
            Some(Err(truncated)) => {
                self.stream.send_reset(truncated.reset_code());
                self.is_last = true;
            }
        }
        Poll::Ready(())
    }

    /// Reserves capacity for the rest of a piece.
    fn reserve(&mut self, rest: usize) {
        self.stream.reserve_capacity(rest.min(self.pacing.frame_size()));
    }

    /// Sends as much of the piece as the window covers.
    fn send_piece(&mut self, window: usize) {
        let data = self.piece.split_to(window.min(self.piece.len()));
        self.sent += data.len();
        let ends = self.is_last && self.piece.is_empty();
        if self.stream.send_data(data, ends).is_err() {
            // The stream has ended; its other side has recorded why.
            (self.piece, self.is_last) = (Bytes::new(), true);
            return;
        }
        if !self.piece.is_empty() {
            self.reserve(self.piece.len());
        }
        if self.pacing.record_sent(self.sent, self.piece.is_empty()) {
            self.sent = 0;
        }
    }

    /// Sends END_STREAM.
    fn end_stream(&mut self) {
        self.is_last = true;
        let _ended_meanwhile = self.stream.send_data(Bytes::new(), true);
    }
}
