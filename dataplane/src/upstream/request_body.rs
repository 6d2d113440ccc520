//! A request's body on its way from the client to the upstream: streamed, counted and timed.
//!
//! Invariant: waiting for the client is never held against the upstream, and the other way round.
//! [`Progress`] tells the exchange which of the two is being waited for, and since when.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::http::incoming_body::IncomingBody;
use crate::reason::Reason;
use crate::runtime;
use crate::runtime::Timer;

/// How much of a body nobody wants is read on, and for how long: nginx's lingering close, bounded
/// in bytes too.
const DISCARD_BYTES: usize = 16 * 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// Who is being waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitState {
    /// The client: its next piece of body has not come.
    Client,
    /// The upstream has not taken (all of) the request.
    Send(Instant),
    /// The upstream has the whole request and has not answered.
    Response(Instant),
}

/// Shared between a body and the exchange that watches it.
#[derive(Debug, Clone)]
pub struct SendProgress(Rc<ProgressState>);

#[derive(Debug)]
struct ProgressState {
    waiting: Cell<WaitState>,
    failed: Cell<Option<Reason>>,
    dropped: Cell<bool>,
}

impl SendProgress {
    fn new() -> Self {
        Self(Rc::new(ProgressState {
            waiting: Cell::new(WaitState::Send(Instant::now())),
            failed: Cell::new(None),
            dropped: Cell::new(false),
        }))
    }

    /// Who is being waited for now.
    pub fn waiting(&self) -> WaitState {
        self.0.waiting.get()
    }

    /// Whether all of the body has been handed to the upstream's connection.
    pub fn is_complete(&self) -> bool {
        matches!(self.0.waiting.get(), WaitState::Response(_))
    }

    /// Whether the upstream's connection dropped the body before its end.
    pub fn was_dropped(&self) -> bool {
        self.0.dropped.get()
    }

    /// Why the body failed, if it did: the client's fault, not the upstream's.
    pub fn failed(&self) -> Option<Reason> {
        self.0.failed.get()
    }
}

/// The body of a request to an upstream, read from a client's.
pub struct RequestBody<B: ClientBody = IncomingBody> {
    incoming: Option<B>,
    progress: SendProgress,
    left: u64,
    client_timeout: Duration,
    timer: Option<Timer>,
}

/// A body as a client sends it.
pub trait ClientBody: Body<Data = Bytes> + Unpin + 'static {}

impl<B: Body<Data = Bytes> + Unpin + 'static> ClientBody for B {}

/// The body cannot be forwarded: the client stopped, sent too much, or went away.
#[derive(Debug, thiserror::Error)]
#[error("the client's body ended early: {}", .0.label())]
pub struct RequestBodyError(pub Reason);

impl<B: ClientBody> RequestBody<B> {
    /// Wraps a client's body. `max`: the most bytes it may have, 0 for no limit. `client_timeout`:
    /// the longest pause between two pieces.
    pub fn new(incoming: B, max: u64, client_timeout: Duration) -> Self {
        let progress = SendProgress::new();
        let incoming = if incoming.is_end_stream() { None } else { Some(incoming) };
        if incoming.is_none() {
            progress.0.waiting.set(WaitState::Response(Instant::now()));
        }
        let left = if max == 0 { u64::MAX } else { max };
        Self { incoming, progress, left, client_timeout, timer: None }
    }

    /// No body: for a request that is tried again.
    pub fn empty() -> Self {
        let progress = SendProgress::new();
        progress.0.waiting.set(WaitState::Response(Instant::now()));
        Self { incoming: None, progress, left: 0, client_timeout: Duration::ZERO, timer: None }
    }

    /// The watch on it.
    pub fn progress(&self) -> SendProgress {
        self.progress.clone()
    }

    /// Whether there is nothing to send: such a request can be sent again.
    pub fn is_empty(&self) -> bool {
        self.incoming.is_none()
    }

    fn fail(&mut self, reason: Reason) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        self.progress.0.failed.set(Some(reason));
        Poll::Ready(Some(Err(RequestBodyError(reason))))
    }

    fn end(&mut self) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        self.incoming = None;
        self.progress.0.waiting.set(WaitState::Response(Instant::now()));
        Poll::Ready(None)
    }
}

impl<B: ClientBody> Drop for RequestBody<B> {
    /// The upstream answered without reading all of it. The client is still sending: closing on it
    /// now would reset the connection and lose the answer, so what it sends is read and dropped
    /// for a while.
    fn drop(&mut self) {
        let Some(incoming) = self.incoming.take() else { return };
        if is_fully_read(&incoming) {
            self.progress.0.waiting.set(WaitState::Response(Instant::now()));
        } else {
            self.progress.0.dropped.set(true);
        }
        if !incoming.is_end_stream() {
            runtime::spawn(discard(incoming));
        }
    }
}

/// Whether every byte has been read. The end itself (END_STREAM, trailers) may still be to come.
fn is_fully_read(body: &impl Body) -> bool {
    body.is_end_stream() || body.size_hint().exact() == Some(0)
}

async fn discard(mut incoming: impl ClientBody) {
    let reading = async {
        let mut left = DISCARD_BYTES;
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await {
            let read = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(read) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    let _patience_ended = runtime::timeout(DISCARD_TIME, reading).await;
}

impl<B: ClientBody> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let this = &mut *self;
        let Some(incoming) = &mut this.incoming else { return this.end() };
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Pending => {
                this.progress.0.waiting.set(WaitState::Client);
                let timeout = this.client_timeout;
                let timer = this.timer.get_or_insert_with(|| Timer::after(timeout));
                if timer.poll(cx).is_ready() { this.fail(Reason::BodyTimeout) } else { Poll::Pending }
            }
            Poll::Ready(None) => this.end(),
            Poll::Ready(Some(Err(_client_went_away))) => this.fail(Reason::BadRequest),
            // Trailers come from outside too, and no route decides about them: a name that a route sets, or
            // an identity, might hide in them. RFC 9110 section 6.5.1 lets a gateway drop them.
            // Nothing comes after them.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => this.end(),
            Poll::Ready(Some(Ok(frame))) => {
                this.timer = None;
                // The last piece may be known as such already; hyper does not ask again then.
                let now = Instant::now();
                let last = this.incoming.as_ref().is_none_or(is_fully_read);
                this.progress.0.waiting.set(if last {
                    WaitState::Response(now)
                } else {
                    WaitState::Send(now)
                });
                if let Some(data) = frame.data_ref() {
                    match this.left.checked_sub(data.len() as u64) {
                        Some(left) => this.left = left,
                        None => return this.fail(Reason::BodyTooLarge),
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use http::{Request, Response, header};
    use http_body_util::StreamBody;
    use hyper::client::conn::http1;

    use super::*;
    use crate::io::buffered::BufferedSocket;
    use crate::io::plain::PlainStream;
    use crate::runtime::{Driver, Socket};

    /// A body of unknown length, all of which is there.
    fn hello() -> RequestBody<impl ClientBody> {
        let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"hello")))];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        RequestBody::new(body, 0, Duration::from_secs(30))
    }

    /// A body whose length is known, and whose end is not: HTTP/2 with a length, before END_STREAM.
    struct Sized(u64);

    impl Body for Sized {
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
            for (read, complete) in [(0, false), (1, false), (2, true)] {
                let mut body = RequestBody::new(Sized(2), 0, Duration::from_secs(30));
                let progress = body.progress();
                for _ in 0..read {
                    assert!(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().is_ok());
                }
                assert_eq!(progress.is_complete(), complete, "{read}");
                drop(body);
                assert_eq!(progress.was_dropped(), !complete, "{read}");
            }
        })
        .unwrap();
    }

    /// Answers two requests: the first in HTTP/1.0.
    fn upstream_of_http_1_0(listener: &TcpListener) -> Vec<u8> {
        let (mut socket, _) = listener.accept().unwrap();
        let mut read = Vec::new();
        let mut until = |socket: &mut std::net::TcpStream, end: &[u8]| {
            read.clear();
            while !read.ends_with(end) {
                let mut byte = [0];
                assert_eq!(socket.read(&mut byte).unwrap(), 1);
                read.extend(byte);
            }
        };
        until(&mut socket, b"0\r\n\r\n");
        socket.write_all(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n").unwrap();
        until(&mut socket, b"\r\n\r\n");
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        socket.read_to_end(&mut read).unwrap();
        read
    }

    #[test]
    fn a_body_that_hyper_leaves_out_counts_as_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let upstream = std::thread::spawn(move || upstream_of_http_1_0(&listener));
        runtime::block_on(&Driver::detect(), || async {
            let stream = PlainStream::new(BufferedSocket::new(Socket::connect(addr).await.unwrap()));
            let (mut sender, connection) = http1::handshake(stream).await.unwrap();
            runtime::spawn(async move { drop(connection.await) });
            for dropped in [false, true] {
                let body = hello();
                let progress = body.progress();
                let request = Request::post("/").header(header::TRANSFER_ENCODING, "chunked");
                sender.ready().await.unwrap();
                let answered = sender.send_request(request.body(body).unwrap()).await;
                assert!(answered.is_ok_and(|answer: Response<_>| answer.status().is_success()));
                assert_eq!((progress.was_dropped(), progress.is_complete()), (dropped, !dropped));
                assert!(!sender.is_closed(), "the connection lives on");
            }
        })
        .unwrap();
        let second = String::from_utf8(upstream.join().unwrap()).unwrap();
        assert!(second.starts_with("POST / HTTP/1.0\r\n") && !second.contains("hello"), "{second}");
    }
}
