//! The response on one HTTP/2 stream: its head, then its body as far as the client's windows allow.
//!
//! Invariant: a body that its client does not read ends with RST_STREAM after `send_timeout`, never
//! with END_STREAM. [`sender`](super::sender) has the others.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response, header};
use hyper::body::Body;

use super::Streams;
use super::sender::{BodySender, SendPacing};
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
            let wait = WindowWait { streams, timer: None };
            let mut sender = BodySender::new(stream, body, wait);
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

/// The time since the client closed its window; meanwhile the stream counts as blocked.
struct WindowWait<'a, H> {
    streams: &'a Streams<H>,
    timer: Option<CoarseTimer>,
}

impl<H: RequestHandler> SendPacing for WindowWait<'_, H> {
    fn frame_size(&self) -> usize {
        let streams = self.streams.state.in_flight().max(1);
        (ROUND_BYTES / streams).clamp(CHUNK_MIN, CHUNK_MAX)
    }

    /// Ready when it has lasted for `send_timeout`.
    fn poll_blocked(&mut self, cx: &Context<'_>) -> Poll<()> {
        let Self { streams, timer } = self;
        let timer = timer.get_or_insert_with(|| {
            streams.blocked.set(streams.blocked.get() + 1);
            streams.send_timer()
        });
        let stalled = timer.poll(cx);
        if stalled.is_ready() {
            streams.record_stalled();
        }
        stalled
    }

    fn record_sent(&mut self, bytes: usize, whole_piece: bool) -> bool {
        let reads = whole_piece || bytes >= PROGRESS_MIN;
        if reads {
            self.streams.record_progress();
            self.stop();
        }
        reads
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
