//! The body of a request on its way from the client to the upstream: streamed, counted and timed.
//!
//! Invariant: a pause of the client never counts against the timeouts of the upstream, nor the
//! other way round. [`SendProgress`] has which of the two is waited for, and since when. Trailers
//! pass where the head has announced them.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};

use crate::http::incoming_body::IncomingBody;
use crate::http::interim::InterimResponses;
use crate::http::trailers::AnnouncedTrailers;
use crate::io::linger::LingerLimits;
use crate::reason::Reason;
use crate::runtime::{self, Timer};

/// A request with an expectation waits this long for the upstream's 100, since many servers send
/// none; curl waits as long for the gateway's.
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// The side that an exchange waits for, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitState {
    /// The client's next data frame, or the upstream's 100, which has a limit of its own.
    Client,
    /// The upstream must read (more of) the request.
    Send(Instant),
    /// The upstream has the whole request and has not responded.
    Response(Instant),
}

/// Shared between a body and its exchange.
#[derive(Debug, Clone)]
pub struct SendProgress(Rc<ProgressState>);

#[derive(Debug)]
struct ProgressState {
    waiting: Cell<WaitState>,
    failed: Cell<Option<Reason>>,
    dropped: Cell<bool>,
    /// Bytes that the client has sent.
    received: Cell<u64>,
}

impl SendProgress {
    fn new() -> Self {
        Self(Rc::new(ProgressState {
            waiting: Cell::new(WaitState::Send(Instant::now())),
            failed: Cell::new(None),
            dropped: Cell::new(false),
            received: Cell::new(0),
        }))
    }

    pub fn waiting(&self) -> WaitState {
        self.0.waiting.get()
    }

    /// How long the upstream has been waited for: without end where its connection has dropped the
    /// body, which no client can complete then.
    pub(super) fn waited_for_upstream(&self) -> Duration {
        match self.waiting() {
            WaitState::Client if self.was_dropped() => Duration::MAX,
            WaitState::Client => Duration::ZERO,
            WaitState::Send(since) | WaitState::Response(since) => since.elapsed(),
        }
    }

    /// Whether the upstream's connection has taken all of the body.
    pub fn is_complete(&self) -> bool {
        matches!(self.0.waiting.get(), WaitState::Response(_))
    }

    /// Whether the upstream's connection dropped the body before its end.
    pub fn was_dropped(&self) -> bool {
        self.0.dropped.get()
    }

    /// Bytes of the body that the client has sent, and that were read.
    pub fn received(&self) -> u64 {
        self.0.received.get()
    }

    /// Why the body failed, if it did. That is the client's fault, not the upstream's.
    pub fn failed(&self) -> Option<Reason> {
        self.0.failed.get()
    }
}

/// Reads the body of a client's request.
pub struct RequestBody<B: ClientBody = IncomingBody> {
    /// `None`: there is nothing more to send. Boxed, because a request is moved a dozen times on
    /// its way to the upstream, and most have no body.
    reader: Option<Box<BodyReader<B>>>,
    progress: SendProgress,
}

/// Counts and times a body.
struct BodyReader<B> {
    /// What is read first: a node that had it has not processed it.
    again: Bytes,
    /// `None`: all of it has been read before.
    incoming: Option<B>,
    /// `None`: its trailers are dropped.
    trailers: Option<AnnouncedTrailers>,
    /// Bytes that the client may still send.
    left: u64,
    client_timeout: Duration,
    /// Runs while the client pauses.
    timer: Option<Timer>,
    /// `None`: open.
    gate: Option<ContinueGate>,
}

/// Keeps a body back until the upstream has sent 100 for it, so that a body that the upstream
/// rejects is never sent by the client (RFC 9110 section 10.1.1).
struct ContinueGate {
    interim: InterimResponses,
    /// Starts when the request's head is sent.
    timer: Option<Timer>,
}

impl ContinueGate {
    /// Ready when the body may be sent: the upstream has sent 100, or sends none.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.interim.poll_continue(cx).is_ready() {
            return Poll::Ready(());
        }
        self.timer.get_or_insert_with(|| Timer::after(CONTINUE_TIMEOUT)).poll(cx)
    }
}

pub trait ClientBody: Body<Data = Bytes> + Unpin + 'static {}

impl<B: Body<Data = Bytes> + Unpin + 'static> ClientBody for B {}

/// The body cannot be forwarded: the client paused for too long, sent too much, or disconnected.
#[derive(Debug, thiserror::Error)]
#[error("the client's body ended early: {}", .0.label())]
pub struct RequestBodyError(pub Reason);

impl<B: ClientBody> BodyReader<B> {
    /// Without limits.
    fn new(incoming: Option<B>) -> Self {
        Self {
            again: Bytes::new(),
            incoming,
            trailers: None,
            left: u64::MAX,
            client_timeout: Duration::ZERO,
            timer: None,
            gate: None,
        }
    }

    /// Whether every byte has been read.
    fn is_read(&self) -> bool {
        self.again.is_empty() && self.incoming.as_ref().is_none_or(is_fully_read)
    }
}

impl<B: ClientBody> RequestBody<B> {
    /// `max`: the most bytes the body may have, 0 for no limit. `client_timeout`: the longest pause
    /// between two frames.
    pub fn new(incoming: B, max: u64, client_timeout: Duration) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        let left = if max == 0 { u64::MAX } else { max };
        let reader = BodyReader { left, client_timeout, ..BodyReader::new(Some(incoming)) };
        Self { reader: Some(Box::new(reader)), progress: SendProgress::new() }
    }

    /// Keeps the body back until `interim` has the upstream's 100, or for [`CONTINUE_TIMEOUT`].
    pub(crate) fn wait_for_continue(&mut self, interim: InterimResponses) {
        if let Some(reader) = &mut self.reader {
            reader.gate = Some(ContinueGate { interim, timer: None });
        }
    }

    /// Forwards trailers that the head has announced.
    pub(crate) fn allow_trailers(&mut self, trailers: AnnouncedTrailers) {
        if let Some(reader) = &mut self.reader {
            reader.trailers = Some(trailers);
        }
    }

    /// No body.
    pub fn empty() -> Self {
        let progress = SendProgress::new();
        progress.0.waiting.set(WaitState::Response(Instant::now()));
        Self { reader: None, progress }
    }

    /// Takes the client's body out, unread: it is the client's half of a tunnel.
    pub(crate) fn take_incoming(&mut self) -> Option<B> {
        self.reader.take()?.incoming
    }

    pub fn progress(&self) -> SendProgress {
        self.progress.clone()
    }

    /// Whether there is nothing to send, so that the request can be sent again.
    pub fn is_empty(&self) -> bool {
        self.reader.is_none()
    }

    /// Puts back what has been read of it, all of it: another node gets the whole body.
    pub(crate) fn rewind(&mut self, read: Bytes) {
        if !read.is_empty() {
            self.reader.get_or_insert_with(|| Box::new(BodyReader::new(None))).again = read;
            self.progress.0.waiting.set(WaitState::Send(Instant::now()));
        }
    }

    /// A part has been read. The last one may be known as such already; hyper does not poll again
    /// then.
    fn record_read(&self) {
        let now = Instant::now();
        let is_last = self.reader.as_ref().is_none_or(|reader| reader.is_read());
        self.progress.0.waiting.set(if is_last { WaitState::Response(now) } else { WaitState::Send(now) });
    }

    fn fail(&mut self, reason: Reason) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        self.progress.0.failed.set(Some(reason));
        Poll::Ready(Some(Err(RequestBodyError(reason))))
    }

    /// Ends it with its trailers, if there are any to forward.
    fn end_with(&mut self, trailers: HeaderMap) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let announced = self.reader.take().and_then(|reader| reader.trailers);
        match announced.map(|announced| announced.forwardable(trailers)) {
            None | Some(Ok(None)) => self.end(),
            Some(Ok(Some(trailers))) => self.end().map(|_| Some(Ok(Frame::trailers(trailers)))),
            Some(Err(_too_large)) => self.fail(Reason::BadRequest),
        }
    }

    fn end(&mut self) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        self.reader = None;
        self.progress.0.waiting.set(WaitState::Response(Instant::now()));
        Poll::Ready(None)
    }
}

impl<B: ClientBody> Drop for RequestBody<B> {
    /// The upstream responded without reading all of the body, and the client is still sending. To
    /// close the connection now would reset it and lose the response, so the rest is discarded for
    /// a while.
    fn drop(&mut self) {
        let Some(reader) = self.reader.take() else { return };
        if reader.is_read() {
            self.progress.0.waiting.set(WaitState::Response(Instant::now()));
        } else {
            self.progress.0.dropped.set(true);
        }
        if let Some(incoming) = reader.incoming.filter(|incoming| !incoming.is_end_stream()) {
            runtime::spawn(discard(incoming));
        }
    }
}

/// Whether every byte has been read. END_STREAM or trailers may still follow.
fn is_fully_read(body: &impl Body) -> bool {
    body.is_end_stream() || body.size_hint().exact() == Some(0)
}

/// nginx's lingering close, for a body: reads and discards within limits.
async fn discard(mut incoming: impl ClientBody) {
    let reading = async {
        let mut left = LingerLimits::REQUEST.bytes;
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    let _timed_out = runtime::timeout(LingerLimits::REQUEST.time, reading).await;
}

impl<B: ClientBody> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let this = &mut *self;
        let Some(reader) = &mut this.reader else { return this.end() };
        if let Some(gate) = &mut reader.gate {
            if gate.poll(cx).is_pending() {
                this.progress.0.waiting.set(WaitState::Client);
                return Poll::Pending;
            }
            reader.gate = None;
        }
        if !reader.again.is_empty() {
            let again = std::mem::take(&mut reader.again);
            this.record_read();
            return Poll::Ready(Some(Ok(Frame::data(again))));
        }
        let Some(incoming) = &mut reader.incoming else { return this.end() };
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Pending => {
                this.progress.0.waiting.set(WaitState::Client);
                let timeout = reader.client_timeout;
                let timer = reader.timer.get_or_insert_with(|| Timer::after(timeout));
                if timer.poll(cx).is_ready() { this.fail(Reason::BodyTimeout) } else { Poll::Pending }
            }
            Poll::Ready(None) => this.end(),
            Poll::Ready(Some(Err(_client_disconnected))) => this.fail(Reason::BadRequest),
            // They come last.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => {
                this.end_with(frame.into_trailers().unwrap_or_default())
            }
            Poll::Ready(Some(Ok(frame))) => {
                reader.timer = None;
                if let Some(data) = frame.data_ref() {
                    let received = &this.progress.0.received;
                    received.set(received.get() + data.len() as u64);
                    match reader.left.checked_sub(data.len() as u64) {
                        Some(left) => reader.left = left,
                        None => return this.fail(Reason::BodyTooLarge),
                    }
                }
                this.record_read();
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.reader.as_ref().is_none_or(|reader| {
            reader.again.is_empty() && reader.incoming.as_ref().is_none_or(Body::is_end_stream)
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(reader) = &self.reader else { return SizeHint::with_exact(0) };
        let rest = reader.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
        match rest.exact() {
            Some(rest) => SizeHint::with_exact(rest.saturating_add(reader.again.len() as u64)),
            None => rest,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use http::{Request, Response, header};
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::client::conn::http1;

    use super::*;
    use crate::io::buffered::BufferedSocket;
    use crate::io::plain::PlainStream;
    use crate::runtime::{Driver, Socket};

    /// A body of unknown length, all of which is available.
    fn hello() -> RequestBody<impl ClientBody> {
        let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"hello")))];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        RequestBody::new(body, 0, Duration::from_secs(30))
    }

    /// A client that sends nothing.
    struct Silent;

    impl Body for Silent {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    /// A body of known length without an end yet: HTTP/2 with a length, before END_STREAM.
    struct KnownLength(u64);

    impl Body for KnownLength {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let Some(left) = self.0.checked_sub(1) else { return Poll::Pending };
            self.0 = left;
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.0)
        }
    }

    #[test]
    fn a_body_is_complete_with_its_last_byte() {
        runtime::block_on(&Driver::detect(), || async {
            for (frames, complete) in [(0, false), (1, false), (2, true)] {
                let mut body = RequestBody::new(KnownLength(2), 0, Duration::from_secs(30));
                let progress = body.progress();
                for _ in 0..frames {
                    assert!(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().is_ok());
                }
                assert_eq!(progress.is_complete(), complete, "{frames}");
                drop(body);
                assert_eq!(progress.was_dropped(), !complete, "{frames}");
            }
        })
        .unwrap();
    }

    #[test]
    fn a_rewound_body_is_read_from_its_start() {
        runtime::block_on(&Driver::detect(), || async {
            let mut body = hello();
            let progress = body.progress();
            let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
            body.rewind(frame.into_data().unwrap());
            assert!(!body.is_empty() && !body.is_end_stream() && !progress.is_complete());
            assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
            assert!(progress.is_complete() && !progress.was_dropped());
            let mut body = RequestBody::new(KnownLength(1), 0, Duration::from_secs(30));
            body.rewind(Bytes::from_static(b"abc"));
            assert_eq!(body.size_hint().exact(), Some(4));
        })
        .unwrap();
    }

    #[test]
    fn a_dropped_body_keeps_no_upstream_waiting() {
        runtime::block_on(&Driver::detect(), || async {
            let mut body = RequestBody::new(Silent, 0, Duration::from_secs(30));
            let progress = body.progress();
            let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx).is_pending())).await;
            assert!(polled);
            assert_eq!(progress.waited_for_upstream(), Duration::ZERO, "the client's turn");
            drop(body);
            assert_eq!(progress.waited_for_upstream(), Duration::MAX);
        })
        .unwrap();
    }

    /// Responds to two requests, to the first one in HTTP/1.0.
    fn http_1_0_upstream(listener: &TcpListener) -> Vec<u8> {
        let (mut socket, _) = listener.accept().unwrap();
        let mut read = Vec::new();
        let mut read_until = |socket: &mut std::net::TcpStream, end: &[u8]| {
            read.clear();
            while !read.ends_with(end) {
                let mut byte = [0];
                assert_eq!(socket.read(&mut byte).unwrap(), 1);
                read.extend(byte);
            }
        };
        read_until(&mut socket, b"0\r\n\r\n");
        socket.write_all(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n").unwrap();
        read_until(&mut socket, b"\r\n\r\n");
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        socket.read_to_end(&mut read).unwrap();
        read
    }

    #[test]
    fn a_body_that_hyper_omits_counts_as_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let upstream = std::thread::spawn(move || http_1_0_upstream(&listener));
        runtime::block_on(&Driver::detect(), || async {
            let stream = PlainStream::new(BufferedSocket::new(Socket::connect(addr).await.unwrap()));
            let (mut sender, connection) = http1::handshake(stream).await.unwrap();
            runtime::spawn(async move { drop(connection.await) });
            for dropped in [false, true] {
                let body = hello();
                let progress = body.progress();
                let request = Request::post("/").header(header::TRANSFER_ENCODING, "chunked");
                sender.ready().await.unwrap();
                let response = sender.send_request(request.body(body).unwrap()).await;
                assert!(response.is_ok_and(|response: Response<_>| response.status().is_success()));
                assert_eq!((progress.was_dropped(), progress.is_complete()), (dropped, !dropped));
                assert!(!sender.is_closed(), "the connection stays open");
            }
        })
        .unwrap();
        let second = String::from_utf8(upstream.join().unwrap()).unwrap();
        assert!(second.starts_with("POST / HTTP/1.0\r\n") && !second.contains("hello"), "{second}");
    }
}
