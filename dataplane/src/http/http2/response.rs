//! The response on one HTTP/2 stream: its head, then its body as far as the client's windows allow.
//!
//! Invariants: `h2` gets no byte that the stream's window does not cover, so that data for a slow
//! client stays in the upstream's socket; a body that is truncated, or that its client does not
//! read, ends with RST_STREAM, never with END_STREAM.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{HeaderMap, HeaderValue, Response, header};
use hyper::body::Body;

use super::Streams;
use crate::http::RequestHandler;
use crate::io::coarse_timer::CoarseTimer;

/// The most bytes that a stream puts into one frame, so that windows and socket are shared: the
/// frame size that every client accepts.
const CHUNK_MAX: usize = 16 * 1024;
/// The same with many streams, in bytes.
const CHUNK_MIN: usize = 2 * 1024;
/// The bytes that all streams together send in one round: on a slow link each sends long before its
/// `send_timeout`.
const ROUND_BYTES: usize = 256 * 1024;
/// A client that opens less window than this within `send_timeout`, and not for all there is, makes
/// no progress: byte by byte, it would hold the upstream's connection. Bytes.
const PROGRESS_MIN: usize = 1024;

/// Sends a response. Returns when the client has all of it, has reset the stream, or stalls.
pub(super) async fn send<H: RequestHandler>(
    response: Response<H::Body>,
    mut respond: SendResponse<Bytes>,
    streams: &Streams<H>,
) {
    let (mut head, body) = response.into_parts();
    let ends = body.is_end_stream();
    complete_headers(&mut head.headers, &body);
    match respond.send_response(Response::from_parts(head, ()), ends) {
        Ok(stream) if !ends => {
            let mut sender = ResponseSender::new(stream, body, streams);
            poll_fn(|cx| sender.poll(cx)).await;
        }
        Ok(_ended) => {}
        Err(_unsendable) => respond.send_reset(Reason::INTERNAL_ERROR),
    }
}

/// Makes the headers HTTP/2's: without those of an HTTP/1 connection (RFC 9113 section 8.2.2), with
/// a date and a length.
fn complete_headers(headers: &mut HeaderMap, body: &impl Body) {
    // Our error pages have them; an upstream's response has lost them already.
    if headers.remove(header::CONNECTION).is_some() {
        headers.remove(header::UPGRADE);
    }
    headers.entry(header::DATE).or_insert_with(date);
    if let Some(length) = body.size_hint().exact().filter(|_| !body.is_end_stream()) {
        headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
}

thread_local! {
    /// A second and its date.
    static DATE: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// The current date in the format of RFC 9110 section 5.6.7, formatted once a second.
fn date() -> HeaderValue {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    DATE.with_borrow_mut(|(second, value)| {
        if *second != now {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now));
            if let Ok(text) = HeaderValue::from_str(&text) {
                (*second, *value) = (now, text);
            }
        }
        value.clone()
    })
}

/// Sends the body of one response.
struct ResponseSender<'a, H: RequestHandler> {
    stream: SendStream<Bytes>,
    body: H::Body,
    /// Data without a window.
    piece: Bytes,
    /// `piece` is the end of the body.
    is_last: bool,
    /// Bytes sent since the last progress.
    sent: usize,
    wait: WindowWait<'a, H>,
}

/// The time since the client closed its window; meanwhile the stream counts as blocked.
struct WindowWait<'a, H> {
    streams: &'a Streams<H>,
    timer: Option<CoarseTimer>,
}

impl<'a, H: RequestHandler> ResponseSender<'a, H> {
    fn new(stream: SendStream<Bytes>, body: H::Body, streams: &'a Streams<H>) -> Self {
        let wait = WindowWait { streams, timer: None };
        Self { stream, body, piece: Bytes::new(), is_last: false, sent: 0, wait }
    }

    /// Ready when the stream has ended, successfully or not.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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
                    ready!(self.wait.poll(cx));
                    self.wait.streams.record_stalled();
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Ready when there is a piece, or the body has ended.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { return Poll::Ready(()) };
                self.is_last = self.body.is_end_stream();
                if data.is_empty() && self.is_last {
                    self.end_stream();
                } else if !data.is_empty() {
                    self.reserve(data.len());
                    self.piece = data;
                }
            }
            None => self.end_stream(),
            Some(Err(_truncated)) => {
                self.stream.send_reset(Reason::INTERNAL_ERROR);
                self.is_last = true;
            }
        }
        Poll::Ready(())
    }

    /// Reserves capacity for the rest of a piece.
    fn reserve(&mut self, rest: usize) {
        let streams = self.wait.streams.state.in_flight().max(1);
        self.stream.reserve_capacity(rest.min((ROUND_BYTES / streams).clamp(CHUNK_MIN, CHUNK_MAX)));
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
        if self.piece.is_empty() || self.sent >= PROGRESS_MIN {
            self.sent = 0;
            self.wait.record_progress();
        }
    }

    /// Sends END_STREAM.
    fn end_stream(&mut self) {
        self.is_last = true;
        let _ended_meanwhile = self.stream.send_data(Bytes::new(), true);
    }
}

impl<H: RequestHandler> WindowWait<'_, H> {
    /// Ready when it has lasted for `send_timeout`.
    fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        let Self { streams, timer } = self;
        let timer = timer.get_or_insert_with(|| {
            streams.blocked.set(streams.blocked.get() + 1);
            streams.send_timer()
        });
        timer.poll(cx)
    }

    /// The client reads.
    fn record_progress(&mut self) {
        self.streams.record_progress();
        self.stop();
    }
}

impl<H> WindowWait<'_, H> {
    fn stop(&mut self) {
        if self.timer.take().is_some() {
            self.streams.blocked.set(self.streams.blocked.get().saturating_sub(1));
        }
    }
}

impl<H> Drop for WindowWait<'_, H> {
    fn drop(&mut self) {
        self.stop();
    }
}
