//! An answer on one HTTP/2 stream: its head, then its body as far as the client's windows reach.
//!
//! Invariants: no byte is handed to `h2` that the stream's window does not cover, so what waits for
//! a client waits in the upstream's socket; a body that broke off, or that its client does not
//! take, ends with RST_STREAM, never with END_STREAM.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{HeaderMap, HeaderValue, Response, header};
use hyper::body::Body as _;

use super::Streams;
use crate::body::response::ResponseBody;
use crate::io::coarse_timer::CoarseTimer;

/// What a stream puts into a frame at the most, so that windows and socket go round: what every
/// client takes. Bytes.
const CHUNK_MAX: usize = 16 * 1024;
/// The same with many streams. Bytes.
const CHUNK_MIN: usize = 2 * 1024;
/// What all streams together send in one round. On a slow link each has its turn long before
/// `send_timeout`. Bytes.
const ROUND_BYTES: usize = 256 * 1024;
/// A client that is given less than this within `send_timeout`, and not all there is, takes
/// nothing: nobody opens a window byte by byte but to hold the upstream's connection. Bytes.
const PROGRESS_MIN: usize = 1024;

/// Sends an answer. Returns when the client has all of it, has reset the stream, or takes nothing
/// more.
pub(super) async fn send(
    answer: Response<ResponseBody>,
    mut respond: SendResponse<Bytes>,
    streams: &Streams,
) {
    let (mut head, body) = answer.into_parts();
    let ends = body.is_end_stream();
    complete_headers(&mut head.headers, &body);
    match respond.send_response(Response::from_parts(head, ()), ends) {
        Ok(to) if !ends => {
            let mut sending = ResponseSender::new(to, body, streams);
            poll_fn(|cx| sending.poll(cx)).await;
        }
        Ok(_whole) => {}
        Err(_unsendable) => respond.send_reset(Reason::INTERNAL_ERROR),
    }
}

/// Makes the head HTTP/2's: without what only HTTP/1 knows (RFC 9113 section 8.2.2), with a date
/// and a length.
fn complete_headers(headers: &mut HeaderMap, body: &ResponseBody) {
    // Pages of ours have them; an upstream's answer has lost them already.
    if headers.remove(header::CONNECTION).is_some() {
        headers.remove(header::UPGRADE);
    }
    headers.entry(header::DATE).or_insert_with(date);
    if let Some(length) = body.size_hint().exact().filter(|_| !body.is_end_stream()) {
        headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
}

thread_local! {
    /// The second, and how it is written.
    static DATE: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// Now, as RFC 9110 section 5.6.7 writes it; made anew once a second.
fn date() -> HeaderValue {
    let second = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    DATE.with_borrow_mut(|(made, value)| {
        if *made != second {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
            if let Ok(text) = HeaderValue::from_str(&text) {
                (*made, *value) = (second, text);
            }
        }
        value.clone()
    })
}

/// A body on its way to the client.
struct ResponseSender<'a> {
    to: SendStream<Bytes>,
    body: ResponseBody,
    /// What the client has no window for yet.
    piece: Bytes,
    /// Nothing follows `piece`.
    last: bool,
    /// What was taken since the client was last found to take enough. Bytes.
    sent: usize,
    wait: WindowWait<'a>,
}

/// How long the client has given no window; it counts among the streams that wait meanwhile.
struct WindowWait<'a> {
    streams: &'a Streams,
    alarm: Option<CoarseTimer>,
}

impl<'a> ResponseSender<'a> {
    fn new(to: SendStream<Bytes>, body: ResponseBody, streams: &'a Streams) -> Self {
        let wait = WindowWait { streams, alarm: None };
        Self { to, body, piece: Bytes::new(), last: false, sent: 0, wait }
    }

    /// Ready at the end, whichever it is.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.to.poll_reset(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            if self.piece.is_empty() {
                if self.last {
                    return Poll::Ready(());
                }
                // No window is claimed before there is something to send: a claim takes from the
                // other streams.
                ready!(self.poll_body(cx));
                continue;
            }
            let window = self.to.capacity();
            if window > 0 {
                self.send_piece(window);
                continue;
            }
            match self.to.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => {
                    ready!(self.wait.poll(cx));
                    self.wait.streams.record_stalled();
                    self.to.send_reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Ready when there is a piece, or nothing follows.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { return Poll::Ready(()) };
                self.last = self.body.is_end_stream();
                if data.is_empty() && self.last {
                    self.end_stream();
                } else if !data.is_empty() {
                    self.reserve(data.len());
                    self.piece = data;
                }
            }
            None => self.end_stream(),
            Some(Err(_broken)) => {
                self.to.send_reset(Reason::INTERNAL_ERROR);
                self.last = true;
            }
        }
        Poll::Ready(())
    }

    /// Asks for window for what is left of a piece.
    fn reserve(&mut self, left: usize) {
        let streams = self.wait.streams.activity.in_flight().max(1);
        self.to.reserve_capacity(left.min((ROUND_BYTES / streams).clamp(CHUNK_MIN, CHUNK_MAX)));
    }

    /// Hands to `h2` what the window covers.
    fn send_piece(&mut self, window: usize) {
        let data = self.piece.split_to(window.min(self.piece.len()));
        self.sent += data.len();
        let ends = self.last && self.piece.is_empty();
        if self.to.send_data(data, ends).is_err() {
            // The stream has ended; whoever ended it knows why.
            (self.piece, self.last) = (Bytes::new(), true);
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

    /// Ends the stream behind what was handed over.
    fn end_stream(&mut self) {
        self.last = true;
        let _ended_meanwhile = self.to.send_data(Bytes::new(), true);
    }
}

impl WindowWait<'_> {
    /// Ready when it has lasted for `send_timeout`.
    fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        let Self { streams, alarm } = self;
        let alarm = alarm.get_or_insert_with(|| {
            streams.blocked.set(streams.blocked.get() + 1);
            streams.connection.worker().watchdog.timers().after(streams.send_timeout())
        });
        alarm.poll(cx)
    }

    /// The client takes what is there.
    fn record_progress(&mut self) {
        self.streams.last_progress.set(self.streams.connection.worker().watchdog.timers().current_tick());
        self.stop();
    }

    fn stop(&mut self) {
        if self.alarm.take().is_some() {
            self.streams.blocked.set(self.streams.blocked.get().saturating_sub(1));
        }
    }
}

impl Drop for WindowWait<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}
