//! The HTTP session of one client connection: hyper's server, driven by this worker.
//!
//! Stands between the stream (plain or TLS) and the walk of each request. Tells the watchdog what the client
//! is waited for, and ends gracefully when the worker drains.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Response;
use hyper::{
    body::{Body as HttpBody, Frame, SizeHint},
    rt::{Read, ReadBufCursor, Write},
    server::conn::{http1, http2},
    service::service_fn,
};

use super::body::Body;
use crate::{
    connection::{self, Connection},
    drain::Running,
    net::{pump::Pump, watchdog::Phase},
    rt,
    upstream::answer_body::AnswerError,
};

/// Streams of one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// Streams that a client opens and resets before they were served: more is an attack (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 20;
/// Streams we had to reset for the client's faults (CVE-2025-8671).
const LOCAL_RESETS_MAX: usize = 256;
/// Receive windows: what a client may have under way. Bytes.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Answer bytes buffered for one stream.
const SEND_BUFFER: usize = 128 * 1024;

/// Which HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 and 1.1.
    H1,
    /// HTTP/2.
    H2,
}

impl Protocol {
    /// What ALPN chose.
    pub fn negotiated(alpn: Option<&[u8]>) -> Self {
        if alpn == Some(b"h2") { Self::H2 } else { Self::H1 }
    }
}

/// Tells HTTP/2 by prior knowledge from HTTP/1 on a plain connection; waits for the first bytes.
///
/// # Errors
/// As the read; an end is an error too, since nothing is left to serve.
pub async fn sniff(pump: &mut Pump, http2: bool) -> io::Result<Protocol> {
    poll_fn(|cx| match pump.poll_fill(cx) {
        Poll::Pending => Poll::Pending,
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Ready(Ok([])) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        Poll::Ready(Ok(first)) => {
            // No method starts with "PRI "; the preface comes in one piece from every client there is.
            Poll::Ready(Ok(if http2 && first.starts_with(b"PRI ") { Protocol::H2 } else { Protocol::H1 }))
        }
    })
    .await
}

/// Serves all requests of a connection.
pub async fn run<I>(io: I, protocol: Protocol, connection: Rc<Connection>, running: &Running)
where
    I: Read + Write + Unpin + 'static,
{
    let activity = Rc::new(Activity { connection: Rc::clone(&connection), active: Cell::new(0), protocol });
    let io = Timed { io, activity: Rc::clone(&activity) };
    let head_max = connection.worker().shared.rules.head_max;
    let service = service_fn(move |request| {
        let connection = Rc::clone(&connection);
        let busy = activity.begin();
        // Boxed: hyper keeps room for the future as long as the connection lives, and most of that time is idle.
        Box::pin(async move {
            let response = connection::answer(&connection, request).await;
            Ok::<Response<Served>, Infallible>(response.map(|body| Served { body, _busy: busy }))
        })
    });
    match protocol {
        Protocol::H1 => {
            let session = http1::Builder::new()
                .timer(rt::Hyper)
                .header_read_timeout(None)
                .max_buf_size(head_max.max(8 * 1024))
                .serve_connection(io, service);
            let mut session = pin!(session);
            let _ended = until_drained(running, session.as_mut(), http1::Connection::graceful_shutdown).await;
        }
        Protocol::H2 => {
            let session = http2::Builder::new(rt::Hyper)
                .timer(rt::Hyper)
                .max_concurrent_streams(STREAMS_MAX)
                .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
                .max_local_error_reset_streams(LOCAL_RESETS_MAX)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(SEND_BUFFER)
                .max_header_list_size(u32::try_from(head_max).unwrap_or(u32::MAX))
                .serve_connection(io, service);
            let mut session = pin!(session);
            let _ended = until_drained(running, session.as_mut(), http2::Connection::graceful_shutdown).await;
        }
    }
}

/// Polls the session to its end; once the drain begins it is told to finish what runs.
async fn until_drained<S>(
    running: &Running,
    mut session: Pin<&mut S>,
    finish: impl Fn(Pin<&mut S>),
) -> hyper::Result<()>
where
    S: Future<Output = hyper::Result<()>>,
{
    let mut told = false;
    poll_fn(|cx| {
        if !told && running.poll_begun(cx).is_ready() {
            told = true;
            finish(session.as_mut());
        }
        session.as_mut().poll(cx)
    })
    .await
}

/// How many requests are being served, which is what the watchdog's phases follow from.
struct Activity {
    connection: Rc<Connection>,
    active: Cell<usize>,
    protocol: Protocol,
}

/// One request being served, until its answer's body has ended.
struct Busy(Rc<Activity>);

impl Activity {
    fn begin(self: &Rc<Self>) -> Busy {
        self.active.set(self.active.get() + 1);
        self.connection.watched.enter(Phase::Busy);
        Busy(Rc::clone(self))
    }

    /// Bytes came from the client.
    fn heard(&self) {
        if self.active.get() > 0 {
            return;
        }
        let watched = &self.connection.watched;
        match self.protocol {
            // The first byte of a head starts its clock; more of them do not.
            Protocol::H1 if watched.phase() == Phase::Idle => watched.enter(Phase::Head),
            Protocol::H1 => {}
            Protocol::H2 => watched.enter(Phase::Idle),
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let left = self.0.active.get().saturating_sub(1);
        self.0.active.set(left);
        if left == 0 {
            self.0.connection.watched.enter(Phase::Idle);
        }
    }
}

/// A stream that tells the activity what it hears.
struct Timed<I> {
    io: I,
    activity: Rc<Activity>,
}

impl<I: Read + Unpin> Read for Timed<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            self.activity.heard();
        }
        read
    }
}

impl<I: Write + Unpin> Write for Timed<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

/// An answer's body with the mark that its request is still being served.
struct Served {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Served {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
