//! The relay: a stream's bytes, both ways, until both sides have said all.
//!
//! Stands between the two connections and keeps no bytes of its own: it lends from one and writes
//! to the other, and reads no more while the other does not take it. So a stream holds at most what
//! its two pumps do, however slow a side is.
//!
//! A side that ends its direction (FIN, `close_notify`) ends that direction at the other side, and
//! the opposite direction goes on. Where an end within TLS is not said, something may have been cut
//! off: what came is still delivered, and then both sides end without a `close_notify`, so that
//! nobody takes a part for the whole.

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
use crate::observability::metrics::Counter;
use crate::reason::Reason;
use crate::runtime;
use crate::runtime::Timer;

/// Chunks moved in one direction before the worker's other connections get their turn.
const CHUNKS_PER_POLL: usize = 64;
/// How long a client may take to hear that it is over, and how much it may still say meanwhile.
const FAREWELL: Duration = Duration::from_millis(500);
const FAREWELL_BYTES: usize = 64 * 1024;

/// What was carried, for the metrics.
pub(crate) struct ByteCounters<'a> {
    /// Bytes from clients to upstreams.
    pub to_upstream: &'a Counter,
    /// Bytes back.
    pub to_client: &'a Counter,
}

/// A stream that did not end as both sides said.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    /// The client went away.
    #[error("the client broke off: {0}")]
    Client(io::Error),
    /// The node did.
    #[error("the upstream broke off: {0}")]
    Upstream(io::Error),
    /// Nothing was said for too long.
    #[error("neither side said anything for {0:?}")]
    IdleTimeout(Duration),
    /// The process stops, and nothing was said for too long.
    #[error("the process stops, and neither side said anything for {0:?}")]
    DrainTimeout(Duration),
    /// Nothing was taken for too long.
    #[error("one side took nothing for {0:?}")]
    WriteTimeout(Duration),
}

impl RelayError {
    /// For the log and the metric; `None`: the client left.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Client(_) => None,
            Self::Upstream(_) => Some(Reason::UpstreamClosed),
            Self::IdleTimeout(_) | Self::DrainTimeout(_) | Self::WriteTimeout(_) => {
                Some(Reason::StreamTimeout)
            }
        }
    }
}

/// A connection that can be relayed.
pub(crate) trait RelayIo: ChunkRead + Write + Unpin {}

impl<T: ChunkRead + Write + Unpin> RelayIo for T {}

/// The stop of the process, for a stream.
pub(crate) struct DrainLimit<'a> {
    /// Says when it begins.
    pub drain: &'a Rc<Drain>,
    /// How long the stream may be silent from then on.
    pub idle: Duration,
}

/// Carries a stream to its end.
///
/// # Errors
/// [`RelayError`], when it was another end than both sides said.
pub(crate) async fn relay(
    client: &mut impl RelayIo,
    upstream: &mut impl RelayIo,
    timeouts: &Timeouts,
    moved: &ByteCounters<'_>,
    stop: &DrainLimit<'_>,
) -> Result<(), RelayError> {
    let mut up = OneWayCopy::new(moved.to_upstream);
    let mut down = OneWayCopy::new(moved.to_client);
    let mut clock = RelayTimer::start(timeouts);
    let running = stop.drain.enter();
    poll_fn(|cx| {
        if !clock.draining && running.poll_draining(cx).is_ready() {
            clock.start_drain(stop.idle);
        }
        let carried = (up.bytes, down.bytes);
        up.run(cx, client, upstream);
        down.run(cx, upstream, client);
        if let Some(broken) =
            up.take_error(RelayError::Client).or_else(|| down.take_error(RelayError::Upstream))
        {
            return Poll::Ready(Err(broken));
        }
        if up.is_done() && down.is_done() {
            return Poll::Ready(Ok(()));
        }
        if carried != (up.bytes, down.bytes) {
            clock.record_progress();
        }
        clock.poll(cx, [&up, &down]).map(Err)
    })
    .await
}

/// Tells a client that it is over, and reads it out within bounds: what it still says must not turn
/// the end, and the last of what it was told, into a reset.
pub(crate) async fn farewell(client: &mut impl RelayIo) {
    let parted = async {
        if poll_fn(|cx| Pin::new(&mut *client).poll_shutdown(cx)).await.is_err() {
            return;
        }
        let mut left = FAREWELL_BYTES;
        while left > 0 {
            let said = poll_fn(|cx| match ready!(client.poll_chunk(cx)) {
                Ok(Chunk::Data(data)) => Poll::Ready(data.len()),
                Ok(Chunk::Eof | Chunk::Truncated) | Err(_) => Poll::Ready(0),
            });
            let said = said.await;
            if said == 0 {
                return;
            }
            client.consume(said);
            left = left.saturating_sub(said);
        }
    };
    let _gave_up = runtime::timeout(FAREWELL, parted).await;
}

/// One of the two ways of a stream.
struct OneWayCopy<'a> {
    state: CopyState,
    /// Bytes, so far.
    bytes: u64,
    count: &'a Counter,
    /// Since when the receiving side takes nothing.
    blocked_since: Option<Instant>,
}

enum CopyState {
    /// Bytes go through.
    Open,
    /// The sending side said its last; what is under way is delivered, then the receiving side is
    /// told.
    ShuttingDown,
    /// The sending side broke off; what is under way is delivered.
    Failing(io::Error),
    /// The sending side broke off, and all that came has been delivered.
    Failed(io::Error),
    /// All was said and delivered, or the receiving side takes no more.
    Over,
}

impl<'a> OneWayCopy<'a> {
    fn new(count: &'a Counter) -> Self {
        Self { state: CopyState::Open, bytes: 0, count, blocked_since: None }
    }

    fn is_done(&self) -> bool {
        matches!(self.state, CopyState::Over)
    }

    /// The error, once all is delivered that came before it.
    fn take_error(&mut self, blame: impl FnOnce(io::Error) -> RelayError) -> Option<RelayError> {
        match std::mem::replace(&mut self.state, CopyState::Over) {
            CopyState::Failed(error) => Some(blame(error)),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Moves what can be moved now.
    fn run(&mut self, cx: &mut Context<'_>, from: &mut impl RelayIo, to: &mut impl RelayIo) {
        match self.poll(cx, from, to) {
            Poll::Ready(Ok(())) => self.blocked_since = None,
            // The receiving side is gone: its own direction tells how the stream ends.
            Poll::Ready(Err(_)) => self.state = CopyState::Over,
            Poll::Pending => {}
        }
    }

    /// Ready: no more for now on the receiving side's account. An error is the receiving side's.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl RelayIo,
        to: &mut impl RelayIo,
    ) -> Poll<io::Result<()>> {
        if matches!(self.state, CopyState::Open) {
            ready!(self.poll_open(cx, from, to))?;
        }
        match std::mem::replace(&mut self.state, CopyState::Over) {
            CopyState::ShuttingDown => {
                self.state = CopyState::ShuttingDown;
                ready!(self.track_blocked(Pin::new(to).poll_shutdown(cx)))?;
                self.state = CopyState::Over;
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
            let taken = match from.poll_chunk(cx) {
                Poll::Ready(Ok(Chunk::Data(data))) => match Pin::new(&mut *to).poll_write(cx, data) {
                    Poll::Pending => return self.track_blocked(Poll::Pending),
                    Poll::Ready(taken) => taken?,
                },
                Poll::Ready(Ok(Chunk::Eof)) => {
                    self.state = CopyState::ShuttingDown;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(Chunk::Truncated)) => {
                    let unsaid = io::Error::new(io::ErrorKind::UnexpectedEof, "no close_notify");
                    self.state = CopyState::Failing(unsaid);
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => {
                    self.state = CopyState::Failing(error);
                    return Poll::Ready(Ok(()));
                }
                // Nothing more for now: what was written leaves.
                Poll::Pending => return self.track_blocked(Pin::new(to).poll_flush(cx)),
            };
            from.consume(taken);
            self.blocked_since = None;
            let taken = u64::try_from(taken).unwrap_or(u64::MAX);
            self.bytes = self.bytes.saturating_add(taken);
            self.count.inc_by(taken);
        }
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }

    /// Notes since when the receiving side is waited for.
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

/// How long a stream has been silent. Its timer is set anew when it fires, not whenever something
/// moves.
struct RelayTimer {
    idle: Duration,
    send: Duration,
    last_progress: Instant,
    timer: Timer,
    /// The process stops, and `idle` is no longer the upstream's.
    draining: bool,
}

impl RelayTimer {
    fn start(timeouts: &Timeouts) -> Self {
        let (idle, send) = (timeouts.read, timeouts.send);
        Self {
            idle,
            send,
            last_progress: Instant::now(),
            timer: Timer::after(idle.min(send)),
            draining: false,
        }
    }

    fn record_progress(&mut self) {
        self.last_progress = Instant::now();
    }

    /// The process stops: from now on the stream may be silent for `idle` at most, the silence
    /// until now included.
    fn start_drain(&mut self, idle: Duration) {
        self.draining = true;
        if idle < self.idle {
            self.idle = idle;
            self.timer.reset(idle.saturating_sub(self.last_progress.elapsed()).min(self.send));
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, ways: [&OneWayCopy<'_>; 2]) -> Poll<RelayError> {
        while self.timer.poll(cx).is_ready() {
            let idle = self.idle.saturating_sub(self.last_progress.elapsed());
            if idle.is_zero() {
                let error = if self.draining { RelayError::DrainTimeout } else { RelayError::IdleTimeout };
                return Poll::Ready(error(self.idle));
            }
            let longest = ways.iter().filter_map(|way| way.blocked_since).map(|since| since.elapsed()).max();
            let send = self.send.saturating_sub(longest.unwrap_or_default());
            if send.is_zero() {
                return Poll::Ready(RelayError::WriteTimeout(self.send));
            }
            self.timer.reset(idle.min(send));
        }
        Poll::Pending
    }
}
