//! The relay: a stream's bytes, both ways, until both sides have said all.
//!
//! Stands between the two connections and keeps no bytes of its own: it lends from one and writes to the other, and reads
//! no more while the other does not take it. So a stream holds at most what its two pumps do, however slow a side is.
//!
//! A side that ends its direction (FIN, `close_notify`) ends that direction at the other side, and the opposite
//! direction goes on. Where an end within TLS is not said, something may have been cut off: what came is still
//! delivered, and then both sides end without a `close_notify`, so that nobody takes a part for the whole.

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
use crate::outcome::Reason;
use crate::runtime;
use crate::runtime::Timer;

/// Chunks moved in one direction before the worker's other connections get their turn.
const TURN: usize = 64;
/// How long a client may take to hear that it is over, and how much it may still say meanwhile.
const FAREWELL: Duration = Duration::from_millis(500);
const FAREWELL_BYTES: usize = 64 * 1024;

/// What was carried, for the metrics.
pub struct Moved<'a> {
    /// Bytes from clients to upstreams.
    pub to_upstream: &'a Counter,
    /// Bytes back.
    pub to_client: &'a Counter,
}

/// A stream that did not end as both sides said.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The client went away.
    #[error("the client broke off: {0}")]
    Client(io::Error),
    /// The node did.
    #[error("the upstream broke off: {0}")]
    Upstream(io::Error),
    /// Nothing was said for too long.
    #[error("neither side said anything for {0:?}")]
    Idle(Duration),
    /// The process stops, and nothing was said for too long.
    #[error("the process stops, and neither side said anything for {0:?}")]
    Stopping(Duration),
    /// Nothing was taken for too long.
    #[error("one side took nothing for {0:?}")]
    Stuck(Duration),
}

impl RelayError {
    /// For the log and the metric; `None`: the client left.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Client(_) => None,
            Self::Upstream(_) => Some(Reason::UpstreamClosed),
            Self::Idle(_) | Self::Stopping(_) | Self::Stuck(_) => Some(Reason::StreamTimeout),
        }
    }
}

/// A connection that can be relayed.
pub trait Side: ChunkRead + Write + Unpin {}

impl<T: ChunkRead + Write + Unpin> Side for T {}

/// The stop of the process, for a stream.
pub struct Stop<'a> {
    /// Says when it begins.
    pub drain: &'a Rc<Drain>,
    /// How long the stream may be silent from then on.
    pub idle: Duration,
}

/// Carries a stream to its end.
///
/// # Errors
/// [`RelayError`], when it was another end than both sides said.
pub async fn relay(
    client: &mut impl Side,
    upstream: &mut impl Side,
    timeouts: &Timeouts,
    moved: &Moved<'_>,
    stop: &Stop<'_>,
) -> Result<(), RelayError> {
    let mut up = Direction::new(moved.to_upstream);
    let mut down = Direction::new(moved.to_client);
    let mut clock = Clock::start(timeouts);
    let running = stop.drain.enter();
    poll_fn(|cx| {
        if !clock.stopping && running.poll_draining(cx).is_ready() {
            clock.stop(stop.idle);
        }
        let carried = (up.carried, down.carried);
        up.run(cx, client, upstream);
        down.run(cx, upstream, client);
        if let Some(broken) = up.broken(RelayError::Client).or_else(|| down.broken(RelayError::Upstream)) {
            return Poll::Ready(Err(broken));
        }
        if up.is_over() && down.is_over() {
            return Poll::Ready(Ok(()));
        }
        if carried != (up.carried, down.carried) {
            clock.moved();
        }
        clock.poll(cx, [&up, &down]).map(Err)
    })
    .await
}

/// Tells a client that it is over, and reads it out within bounds: what it still says must not turn the end, and the
/// last of what it was told, into a reset.
pub async fn farewell(client: &mut impl Side) {
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
struct Direction<'a> {
    state: State,
    /// Bytes, so far.
    carried: u64,
    count: &'a Counter,
    /// Since when the receiving side takes nothing.
    blocked: Option<Instant>,
}

enum State {
    /// Bytes go through.
    Open,
    /// The sending side said its last; what is under way is delivered, then the receiving side is told.
    Ending,
    /// The sending side broke off; what is under way is delivered.
    Breaking(io::Error),
    /// The sending side broke off, and all that came has been delivered.
    Broken(io::Error),
    /// All was said and delivered, or the receiving side takes no more.
    Over,
}

impl<'a> Direction<'a> {
    fn new(count: &'a Counter) -> Self {
        Self { state: State::Open, carried: 0, count, blocked: None }
    }

    fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// The error, once all is delivered that came before it.
    fn broken(&mut self, blame: impl FnOnce(io::Error) -> RelayError) -> Option<RelayError> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Broken(error) => Some(blame(error)),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Moves what can be moved now.
    fn run(&mut self, cx: &mut Context<'_>, from: &mut impl Side, to: &mut impl Side) {
        match self.poll(cx, from, to) {
            Poll::Ready(Ok(())) => self.blocked = None,
            // The receiving side is gone: its own direction tells how the stream ends.
            Poll::Ready(Err(_)) => self.state = State::Over,
            Poll::Pending => {}
        }
    }

    /// Ready: no more for now on the receiving side's account. An error is the receiving side's.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Side,
        to: &mut impl Side,
    ) -> Poll<io::Result<()>> {
        if matches!(self.state, State::Open) {
            ready!(self.poll_open(cx, from, to))?;
        }
        match std::mem::replace(&mut self.state, State::Over) {
            State::Ending => {
                self.state = State::Ending;
                ready!(self.waited(Pin::new(to).poll_shutdown(cx)))?;
                self.state = State::Over;
            }
            State::Breaking(error) => match self.waited(Pin::new(to).poll_flush(cx)) {
                Poll::Ready(_) => self.state = State::Broken(error),
                Poll::Pending => {
                    self.state = State::Breaking(error);
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
        from: &mut impl Side,
        to: &mut impl Side,
    ) -> Poll<io::Result<()>> {
        for _ in 0..TURN {
            let taken = match from.poll_chunk(cx) {
                Poll::Ready(Ok(Chunk::Data(data))) => match Pin::new(&mut *to).poll_write(cx, data) {
                    Poll::Pending => return self.waited(Poll::Pending),
                    Poll::Ready(taken) => taken?,
                },
                Poll::Ready(Ok(Chunk::Eof)) => {
                    self.state = State::Ending;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(Chunk::Truncated)) => {
                    let unsaid = io::Error::new(io::ErrorKind::UnexpectedEof, "no close_notify");
                    self.state = State::Breaking(unsaid);
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => {
                    self.state = State::Breaking(error);
                    return Poll::Ready(Ok(()));
                }
                // Nothing more for now: what was written leaves.
                Poll::Pending => return self.waited(Pin::new(to).poll_flush(cx)),
            };
            from.consume(taken);
            self.blocked = None;
            let taken = u64::try_from(taken).unwrap_or(u64::MAX);
            self.carried = self.carried.saturating_add(taken);
            self.count.inc_by(taken);
        }
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }

    /// Notes since when the receiving side is waited for.
    fn waited(&mut self, polled: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        match &polled {
            Poll::Pending => {
                self.blocked.get_or_insert_with(Instant::now);
            }
            Poll::Ready(_) => self.blocked = None,
        }
        polled
    }
}

/// How long a stream has been silent. Its timer is set anew when it fires, not whenever something moves.
struct Clock {
    idle: Duration,
    send: Duration,
    last: Instant,
    timer: Timer,
    /// The process stops, and `idle` is no longer the upstream's.
    stopping: bool,
}

impl Clock {
    fn start(timeouts: &Timeouts) -> Self {
        let (idle, send) = (timeouts.read, timeouts.send);
        Self { idle, send, last: Instant::now(), timer: Timer::after(idle.min(send)), stopping: false }
    }

    fn moved(&mut self) {
        self.last = Instant::now();
    }

    /// The process stops: from now on the stream may be silent for `idle` at most, the silence
    /// until now included.
    fn stop(&mut self, idle: Duration) {
        self.stopping = true;
        if idle < self.idle {
            self.idle = idle;
            self.timer.reset(idle.saturating_sub(self.last.elapsed()).min(self.send));
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, ways: [&Direction<'_>; 2]) -> Poll<RelayError> {
        while self.timer.poll(cx).is_ready() {
            let idle = self.idle.saturating_sub(self.last.elapsed());
            if idle.is_zero() {
                let error = if self.stopping { RelayError::Stopping } else { RelayError::Idle };
                return Poll::Ready(error(self.idle));
            }
            let longest = ways.iter().filter_map(|way| way.blocked).map(|since| since.elapsed()).max();
            let send = self.send.saturating_sub(longest.unwrap_or_default());
            if send.is_zero() {
                return Poll::Ready(RelayError::Stuck(self.send));
            }
            self.timer.reset(idle.min(send));
        }
        Poll::Pending
    }
}
