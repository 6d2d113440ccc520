//! One HTTP/2 connection to a node: its handshake, its task, and how many streams it may carry.
//!
//! Invariants: no stream is opened beyond what the node allows, so none waits inside `h2`; after a
//! GOAWAY no stream is opened, and those that the node still processes go on; a connection whose
//! last handle is gone closes, if need be without the node.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::SendStream;
use h2::client::{self, ResponseFuture, SendRequest};
use http::Request;
use hyper::rt::{Read, Write};
use model::KeepalivePool;

use super::observed_io::{ObservedIo, ReceivedAlert};
use crate::http::head::HeadLimits;
use crate::http::http2::intake::{Intakes, SharedIntake};
use crate::http::http2::max_header_list_size;
use crate::observability::HasReason;
use crate::reason::Reason;
use crate::runtime::{self, Timer};
use crate::upstream::client_tls::ClientTlsConfig;

/// The most streams of a connection, where the node allows more.
pub(crate) const STREAMS_MAX: u32 = 100;
/// What a node may send on one stream before the client has taken it, in bytes.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Of all streams together: a smaller window would let clients that do not read stop all others on
/// the connection.
const CONNECTION_WINDOW: u32 = STREAMS_MAX * STREAM_WINDOW;
/// Request data of one stream that waits for the socket, in bytes.
const SEND_BUFFER: usize = 32 * 1024;
/// Streams of a connection that are reset before their end, by clients that give up or by
/// deadlines. After them it opens no further one.
const CANCELLED_MAX: u32 = 500;
/// How many of them `h2` remembers, and for how long, so that what the node still sends for them is
/// no error of the node.
const CANCELLED_REMEMBERED: usize = 2 * CANCELLED_MAX as usize;
const CANCELLED_TIME: Duration = Duration::from_secs(30);
/// Streams that we may have to reset because of the node's errors (CVE-2025-8671), over the life of
/// the connection: `h2` then ends it with all its streams. Far more than what comes too late for
/// the cancelled ones.
const LOCAL_RESETS_MAX: usize = 4096;
/// A node that does not read gets no more time than this for the GOAWAY.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// There is no HTTP/2 on a new connection.
#[derive(Debug, thiserror::Error)]
pub enum Http2HandshakeError {
    #[error(transparent)]
    Protocol(h2::Error),
    #[error("the node closed the connection before its SETTINGS")]
    Closed,
    /// It rejects the client certificate, for example.
    #[error("the node sent the TLS alert {0}")]
    Alert(String),
}

impl Http2HandshakeError {
    fn new(error: h2::Error, alert: &ReceivedAlert) -> Self {
        alert.take().map_or(Self::Protocol(error), Self::Alert)
    }
}

impl HasReason for Http2HandshakeError {
    fn reason(&self) -> Reason {
        match self {
            Self::Alert(_) => Reason::UpstreamTls,
            // The node sent something that is no HTTP/2.
            Self::Protocol(error) if error.is_library() => Reason::UpstreamInvalid,
            Self::Protocol(_) | Self::Closed => Reason::UpstreamClosed,
        }
    }
}

/// An open connection. It closes when its last handle is dropped.
pub(crate) struct Http2Connection {
    sender: RefCell<SendRequest<Bytes>>,
    /// Streams in use.
    open: Cell<u32>,
    /// Streams so far.
    started: Cell<u32>,
    /// Those of them that ended without a whole response.
    cancelled: Cell<u32>,
    /// The most streams at a time that the node allows.
    limit: Cell<u32>,
    draining: Cell<bool>,
    keepalive: KeepalivePool,
    /// Of its TLS.
    config: Option<Arc<ClientTlsConfig>>,
    alert: ReceivedAlert,
    idle_since: Cell<Instant>,
    /// Called when `limit` or `draining` has changed.
    on_change: RefCell<Option<Rc<dyn Fn()>>>,
    /// The bodies of responses.
    intakes: Intakes,
    /// How many frames of data were small.
    small_frames: Rc<Cell<u32>>,
}

/// Opens HTTP/2 on a connection. Returns once the node's SETTINGS have come: only they say that it
/// is an HTTP/2 server, and how many streams it takes.
///
/// # Errors
/// [`Http2HandshakeError`]; no request has been sent.
pub(crate) async fn handshake<I>(
    io: I,
    limits: HeadLimits,
    keepalive: KeepalivePool,
    config: Option<Arc<ClientTlsConfig>>,
) -> Result<Rc<Http2Connection>, Http2HandshakeError>
where
    I: Read + Write + Unpin + 'static,
{
    let alert = ReceivedAlert::default();
    let io = ObservedIo::new(io, &alert);
    let small_frames = Rc::clone(io.small_frames());
    let (sender, mut connection) = client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(0)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(CANCELLED_REMEMBERED)
        .reset_stream_duration(CANCELLED_TIME)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .max_header_list_size(max_header_list_size(limits))
        .handshake::<_, Bytes>(io)
        .await
        .map_err(|error| Http2HandshakeError::new(error, &alert))?;
    poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Ready(Ok(())) => Poll::Ready(Err(Http2HandshakeError::Closed)),
        Poll::Ready(Err(error)) => Poll::Ready(Err(Http2HandshakeError::new(error, &alert))),
        Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    })
    .await?;
    let handle = Rc::new(Http2Connection {
        limit: Cell::new(stream_limit(&sender)),
        sender: RefCell::new(sender),
        open: Cell::new(0),
        started: Cell::new(0),
        cancelled: Cell::new(0),
        draining: Cell::new(false),
        keepalive,
        config,
        alert,
        idle_since: Cell::new(Instant::now()),
        on_change: RefCell::default(),
        intakes: Intakes::default(),
        small_frames,
    });
    runtime::spawn(drive(connection, Rc::downgrade(&handle)));
    Ok(handle)
}

fn stream_limit(sender: &SendRequest<Bytes>) -> u32 {
    u32::try_from(sender.current_max_send_streams()).unwrap_or(u32::MAX).min(STREAMS_MAX)
}

/// The task of a connection.
async fn drive<T>(mut connection: client::Connection<T, Bytes>, handle: Weak<Http2Connection>)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut close_timer: Option<Timer> = None;
    poll_fn(|cx| {
        // The streams of the connection get its errors.
        let ended = Pin::new(&mut connection).poll(cx).is_ready();
        match handle.upgrade() {
            Some(handle) => handle.update(ended),
            None => {
                let timer = close_timer.get_or_insert_with(|| Timer::after(CLOSE_TIMEOUT));
                if timer.poll(cx).is_ready() {
                    return Poll::Ready(());
                }
            }
        }
        if ended { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

impl Http2Connection {
    /// Reads what the node has changed.
    fn update(&self, ended: bool) {
        self.intakes.compact(self.small_frames.get());
        let mut sender = self.sender.borrow_mut();
        let limit = stream_limit(&sender);
        // Pending only for a stream that waits inside `h2`, which there never is.
        let ready = sender.poll_ready(&mut Context::from_waker(Waker::noop()));
        let draining = ended || matches!(ready, Poll::Ready(Err(_)));
        drop(sender);
        let was_draining = self.draining.replace(self.draining.get() || draining);
        if self.limit.replace(limit) != limit || was_draining != self.draining.get() {
            let on_change = self.on_change.borrow().clone();
            if let Some(on_change) = on_change {
                on_change();
            }
        }
    }

    /// Sets the function that is called when more or fewer streams may be opened.
    pub(crate) fn on_change(&self, function: Rc<dyn Fn()>) {
        self.on_change.replace(Some(function));
    }

    /// The most streams at a time.
    pub(crate) fn limit(&self) -> u32 {
        self.limit.get()
    }

    /// Whether another stream may be opened now.
    pub(crate) fn can_open(&self) -> bool {
        !self.is_retired() && self.open.get() < self.limit.get()
    }

    /// Whether no stream is opened any more: the node drains or closed the connection, an exchange
    /// got no answer, `keepalive_pool.requests` are served, [`CANCELLED_MAX`] were cancelled, or
    /// its identity is no longer used.
    pub(crate) fn is_retired(&self) -> bool {
        self.draining.get()
            || self.started.get() >= self.keepalive.requests
            || self.cancelled.get() >= CANCELLED_MAX
            || self.config.as_ref().is_some_and(|config| config.is_retired())
    }

    /// The TLS alert by which the node ended the connection.
    pub(crate) fn alert(&self) -> Option<String> {
        self.alert.borrow().clone()
    }

    /// Opens no further stream: the node may be gone.
    pub(crate) fn retire(&self) {
        self.draining.set(true);
    }

    /// Whether a request was sent before, so that the node may have closed the connection for its
    /// age.
    pub(crate) fn has_served(&self) -> bool {
        self.started.get() > 1
    }

    /// Since when it has no stream; `None`: it has one.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        (self.open.get() == 0).then(|| self.idle_since.get())
    }

    /// Whether it is idle for longer than `keepalive_pool.idle_timeout`.
    pub(crate) fn is_expired(&self) -> bool {
        self.idle_since().is_some_and(|since| since.elapsed() >= self.keepalive.idle_timeout)
    }

    /// Counts a stream. [`Http2Connection::end_stream`] ends it.
    pub(crate) fn begin_stream(&self) {
        self.open.set(self.open.get() + 1);
        self.started.set(self.started.get().saturating_add(1));
    }

    /// `finished`: its response has ended.
    pub(crate) fn end_stream(&self, finished: bool) {
        if !finished {
            self.cancelled.set(self.cancelled.get().saturating_add(1));
        }
        self.open.set(self.open.get().saturating_sub(1));
        self.idle_since.set(Instant::now());
    }

    /// The body of a response on this connection.
    pub(crate) fn add_intake(&self, intake: &SharedIntake) {
        self.intakes.add(intake);
    }

    /// Sends a head, as the head of a stream that was counted.
    ///
    /// # Errors
    /// `h2` cannot send it.
    pub(crate) fn send_request(
        &self,
        head: Request<()>,
        ends: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.sender.borrow_mut().send_request(head, ends)
    }
}
