//! A request's body on its way from the client to the upstream: streamed, counted and timed.
//!
//! Invariant: waiting for the client is never held against the upstream, and the other way round. [`Progress`]
//! tells the exchange which of the two is being waited for, and since when.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::{
    http::activity::Asked,
    outcome::Reason,
    rt::{self, Timer},
};

/// How much of a body nobody wants is read on, and for how long: nginx's lingering close, bounded in bytes too.
const DISCARD_BYTES: usize = 16 * 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// Who is being waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The client: its next piece of body has not come.
    Client,
    /// The upstream has not taken (all of) the request.
    Send(Instant),
    /// The upstream has the whole request and has not answered.
    Answer(Instant),
}

/// Shared between a body and the exchange that watches it.
#[derive(Debug, Clone)]
pub struct Progress(Rc<State>);

#[derive(Debug)]
struct State {
    waiting: Cell<Waiting>,
    failed: Cell<Option<Reason>>,
}

impl Progress {
    fn new() -> Self {
        Self(Rc::new(State { waiting: Cell::new(Waiting::Send(Instant::now())), failed: Cell::new(None) }))
    }

    /// Who is being waited for now.
    pub fn waiting(&self) -> Waiting {
        self.0.waiting.get()
    }

    /// Why the body failed, if it did: the client's fault, not the upstream's.
    pub fn failed(&self) -> Option<Reason> {
        self.0.failed.get()
    }
}

/// The body of a request to an upstream.
pub struct RequestBody {
    incoming: Option<Asked>,
    progress: Progress,
    left: u64,
    client_timeout: Duration,
    timer: Option<Timer>,
}

/// The body cannot be forwarded: the client stopped, sent too much, or went away.
#[derive(Debug, thiserror::Error)]
#[error("the client's body ended early: {}", .0.label())]
pub struct BodyError(pub Reason);

impl RequestBody {
    /// Wraps a client's body. `max`: the most bytes it may have, 0 for no limit. `client_timeout`: the longest
    /// pause between two pieces.
    pub fn new(incoming: Asked, max: u64, client_timeout: Duration) -> Self {
        let progress = Progress::new();
        let incoming = if incoming.is_end_stream() { None } else { Some(incoming) };
        if incoming.is_none() {
            progress.0.waiting.set(Waiting::Answer(Instant::now()));
        }
        let left = if max == 0 { u64::MAX } else { max };
        Self { incoming, progress, left, client_timeout, timer: None }
    }

    /// No body: for a request that is tried again.
    pub fn empty() -> Self {
        let progress = Progress::new();
        progress.0.waiting.set(Waiting::Answer(Instant::now()));
        Self { incoming: None, progress, left: 0, client_timeout: Duration::ZERO, timer: None }
    }

    /// The watch on it.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Whether there is nothing to send: such a request can be sent again.
    pub fn is_empty(&self) -> bool {
        self.incoming.is_none()
    }

    fn fail(&mut self, reason: Reason) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.progress.0.failed.set(Some(reason));
        Poll::Ready(Some(Err(BodyError(reason))))
    }

    fn end(&mut self) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.incoming = None;
        self.progress.0.waiting.set(Waiting::Answer(Instant::now()));
        Poll::Ready(None)
    }
}

impl Drop for RequestBody {
    /// The upstream answered without reading all of it. The client is still sending: closing on it now would reset
    /// the connection and lose the answer, so what it sends is read and dropped for a while.
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take()
            && !incoming.is_end_stream()
        {
            rt::spawn(discard(incoming));
        }
    }
}

async fn discard(mut incoming: Asked) {
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
    let _patience_ended = rt::timeout(DISCARD_TIME, reading).await;
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(incoming) = &mut this.incoming else { return this.end() };
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Pending => {
                this.progress.0.waiting.set(Waiting::Client);
                let timeout = this.client_timeout;
                let timer = this.timer.get_or_insert_with(|| Timer::after(timeout));
                if timer.poll(cx).is_ready() { this.fail(Reason::BodyTimeout) } else { Poll::Pending }
            }
            Poll::Ready(None) => this.end(),
            Poll::Ready(Some(Err(_client_went_away))) => this.fail(Reason::BadRequest),
            Poll::Ready(Some(Ok(mut frame))) => {
                this.timer = None;
                // The last piece may be known as such already; hyper does not ask again then.
                let now = Instant::now();
                let last = this.incoming.as_ref().is_none_or(Body::is_end_stream);
                this.progress.0.waiting.set(if last { Waiting::Answer(now) } else { Waiting::Send(now) });
                if let Some(data) = frame.data_ref() {
                    match this.left.checked_sub(data.len() as u64) {
                        Some(left) => this.left = left,
                        None => return this.fail(Reason::BodyTooLarge),
                    }
                }
                // Trailers come from outside too, and no route decides about them: a name that a route sets, or an identity, might
                // hide in them. RFC 9110 section 6.5.1 lets a gateway drop them.
                if let Some(trailers) = frame.trailers_mut() {
                    trailers.clear();
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
