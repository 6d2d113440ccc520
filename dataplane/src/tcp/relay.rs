//! The relay of a TCP connection: bytes in both directions, until both sides have closed.
//!
//! It buffers nothing: it borrows a chunk from one side, writes it to the other, and reads no more
//! while the other side accepts nothing. A connection holds at most the buffers of its two sockets,
//! however slow a side is.
//!
//! When a side shuts down its direction (FIN, `close_notify`), that direction is shut down at the
//! other side, and the opposite one continues. After a truncation (TLS without a `close_notify`)
//! the received bytes are delivered, and both sides close without a `close_notify`, so that no peer
//! takes a part for the whole.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::Write;
use model::Timeouts;

use crate::io::chunk_read::{Chunk, ChunkRead};
use crate::lifecycle::drain::Drain;
use crate::observability::metrics::counter::Counter;
use crate::reason::Reason;
use crate::reporting::record::RelayedBytes;
use crate::runtime::Timer;
use crate::tls::alert::received_alert;

/// Chunks that one direction moves before the worker's other connections run.
const CHUNKS_PER_POLL: usize = 64;

/// The counters of relayed bytes: the worker's, and those of one relay.
pub(crate) struct ByteCounters<'a> {
    pub(crate) to_upstream: &'a Counter,
    pub(crate) to_client: &'a Counter,
    /// Set when the relay has ended.
    pub(crate) relayed: Cell<RelayedBytes>,
}

/// A relay that ended before both sides had closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("the client broke off: {0}")]
    Client(io::Error),
    #[error("the upstream broke off: {0}")]
    Upstream(io::Error),
    /// Before it had sent anything: it rejects the client certificate, for example.
    #[error("the upstream sent the TLS alert {0}")]
    UpstreamAlert(String),
    #[error("neither side sent anything for {0:?}")]
    IdleTimeout(Duration),
    #[error("the process stops, and neither side sent anything for {0:?}")]
    DrainTimeout(Duration),
    #[error("one side read nothing for {0:?}")]
    WriteTimeout(Duration),
}

impl RelayError {
    /// The reason, or `None` where the client closed: that is no error.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Client(_) => None,
            Self::Upstream(_) => Some(Reason::UpstreamClosed),
            Self::UpstreamAlert(_) => Some(Reason::UpstreamTls),
            Self::IdleTimeout(_) | Self::DrainTimeout(_) | Self::WriteTimeout(_) => Some(Reason::TcpTimeout),
        }
    }
}

/// One side of a relay.
pub(crate) trait RelayIo: ChunkRead + Write + Unpin {}

impl<T: ChunkRead + Write + Unpin> RelayIo for T {}

/// How a drain of the worker ends a relay.
pub(crate) struct DrainLimit<'a> {
    pub(crate) drain: &'a Rc<Drain>,
    /// How long the connection may be idle while the worker drains.
    pub(crate) idle: Duration,
}

/// Relays both directions until both sides have closed.
///
/// # Errors
/// [`RelayError`] when the relay ends otherwise.
pub(crate) async fn relay(
    client: &mut impl RelayIo,
    upstream: &mut impl RelayIo,
    timeouts: &Timeouts,
    counters: &ByteCounters<'_>,
    drain_limit: &DrainLimit<'_>,
) -> Result<(), RelayError> {
    let mut up = OneWayCopy::new(counters.to_upstream);
    let mut down = OneWayCopy::new(counters.to_client);
    let mut timer = RelayTimer::start(timeouts);
    let guard = drain_limit.drain.enter();
    let result = poll_fn(|cx| {
        if !timer.draining && guard.poll_stopping(cx).is_ready() {
            timer.start_drain(drain_limit.idle);
        }
        let before = (up.bytes, down.bytes);
        up.run(cx, client, upstream);
        down.run(cx, upstream, client);
        let up_error = up.take_error().map(RelayError::Client);
        let down_error = || down.take_error().map(|error| upstream_error(error, down.bytes));
        if let Some(error) = up_error.or_else(down_error) {
            return Poll::Ready(Err(error));
        }
        if up.is_done() && down.is_done() {
            return Poll::Ready(Ok(()));
        }
        if before != (up.bytes, down.bytes) {
            timer.record_progress();
        }
        timer.poll(cx, [&up, &down]).map(Err)
    })
    .await;
    counters.relayed.set(RelayedBytes { to_upstream: up.bytes, to_client: down.bytes });
    result
}

/// The error of an upstream that has sent `received` bytes.
fn upstream_error(error: io::Error, received: u64) -> RelayError {
    match received_alert(&error).filter(|_| received == 0) {
        Some(alert) => RelayError::UpstreamAlert(alert),
        None => RelayError::Upstream(error),
    }
}

/// One direction of a relay.
struct OneWayCopy<'a> {
    state: CopyState,
    /// Bytes copied.
    bytes: u64,
    counter: &'a Counter,
    /// Since when the receiver accepts nothing.
    blocked_since: Option<Instant>,
}

enum CopyState {
    Open,
    /// The sender has closed: written data is flushed, then the receiver is shut down.
    ShuttingDown,
    /// The sender broke off: written data is flushed.
    Failing(io::Error),
    /// The sender broke off, and all its data is flushed.
    Failed(io::Error),
    /// All data is delivered, or the receiver accepts no more.
    Done,
}

impl<'a> OneWayCopy<'a> {
    fn new(counter: &'a Counter) -> Self {
        Self { state: CopyState::Open, bytes: 0, counter, blocked_since: None }
    }

    fn is_done(&self) -> bool {
        matches!(self.state, CopyState::Done)
    }

    /// The sender's error, once the data before it is flushed.
    fn take_error(&mut self) -> Option<io::Error> {
        match std::mem::replace(&mut self.state, CopyState::Done) {
            CopyState::Failed(error) => Some(error),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Copies as much as possible now.
    fn run(&mut self, cx: &mut Context<'_>, from: &mut impl RelayIo, to: &mut impl RelayIo) {
        match self.poll(cx, from, to) {
            Poll::Ready(Ok(())) => self.blocked_since = None,
            // The receiver's own direction shows how it ended.
            Poll::Ready(Err(_)) => self.state = CopyState::Done,
            Poll::Pending => {}
        }
    }

    /// Ready: the receiver blocks nothing. Errors are the receiver's.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl RelayIo,
        to: &mut impl RelayIo,
    ) -> Poll<io::Result<()>> {
        if matches!(self.state, CopyState::Open) {
            ready!(self.poll_open(cx, from, to))?;
        }
        match std::mem::replace(&mut self.state, CopyState::Done) {
            CopyState::ShuttingDown => {
                self.state = CopyState::ShuttingDown;
                ready!(self.track_blocked(Pin::new(to).poll_shutdown(cx)))?;
                self.state = CopyState::Done;
            }
            CopyState::Failing(error) => match self.track_blocked(Pin::new(to).poll_flush(cx)) {
                Poll::Ready(_) => self.state = CopyState::Failed(error),
                Poll::Pending => {
                    self.state = CopyState::Failing(error);
                    return Poll::Pending;
                }
            },
            other => self.state = other,
        }
        Poll::Ready(Ok(()))
    }

    fn poll_open(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl RelayIo,
        to: &mut impl RelayIo,
    ) -> Poll<io::Result<()>> {
        for _ in 0..CHUNKS_PER_POLL {
            let written = match from.poll_chunk(cx) {
                Poll::Ready(Ok(Chunk::Data(data))) => match Pin::new(&mut *to).poll_write(cx, data) {
                    Poll::Pending => return self.track_blocked(Poll::Pending),
                    Poll::Ready(written) => written?,
                },
                Poll::Ready(Ok(Chunk::Eof)) => {
                    self.state = CopyState::ShuttingDown;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(Chunk::Truncated)) => {
                    let error = io::Error::new(io::ErrorKind::UnexpectedEof, "no close_notify");
                    self.state = CopyState::Failing(error);
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => {
                    self.state = CopyState::Failing(error);
                    return Poll::Ready(Ok(()));
                }
                // No more data for now: what was written is flushed.
                Poll::Pending => return self.track_blocked(Pin::new(to).poll_flush(cx)),
            };
            from.consume(written);
            self.blocked_since = None;
            let written = u64::try_from(written).unwrap_or(u64::MAX);
            self.bytes = self.bytes.saturating_add(written);
            self.counter.inc_by(written);
        }
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }

    /// Notes since when the receiver blocks.
    fn track_blocked(&mut self, polled: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        match &polled {
            Poll::Pending => {
                self.blocked_since.get_or_insert_with(Instant::now);
            }
            Poll::Ready(_) => self.blocked_since = None,
        }
        polled
    }
}

/// The timeouts of a relay. The timer is reset when it fires, not on every progress.
struct RelayTimer {
    idle: Duration,
    send: Duration,
    last_progress: Instant,
    timer: Timer,
    /// The worker drains, and `idle` is the limit of the drain.
    draining: bool,
}

impl RelayTimer {
    fn start(timeouts: &Timeouts) -> Self {
        let (idle, send) = (timeouts.read, timeouts.send);
        let timer = Timer::after(idle.min(send));
        Self { idle, send, last_progress: Instant::now(), timer, draining: false }
    }

    fn record_progress(&mut self) {
        self.last_progress = Instant::now();
    }

    /// Limits the idle time to `idle`, the time since the last progress included.
    fn start_drain(&mut self, idle: Duration) {
        self.draining = true;
        if idle < self.idle {
            self.idle = idle;
            self.timer.reset(idle.saturating_sub(self.last_progress.elapsed()).min(self.send));
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, directions: [&OneWayCopy<'_>; 2]) -> Poll<RelayError> {
        while self.timer.poll(cx).is_ready() {
            let idle = self.idle.saturating_sub(self.last_progress.elapsed());
            if idle.is_zero() {
                let error = if self.draining { RelayError::DrainTimeout } else { RelayError::IdleTimeout };
                return Poll::Ready(error(self.idle));
            }
            let blocked = directions.iter().filter_map(|direction| direction.blocked_since);
            let longest = blocked.map(|since| since.elapsed()).max();
            let send = self.send.saturating_sub(longest.unwrap_or_default());
            if send.is_zero() {
                return Poll::Ready(RelayError::WriteTimeout(self.send));
            }
            self.timer.reset(idle.min(send));
        }
        Poll::Pending
    }
}
