//! Interim responses (1xx, RFC 9110 section 15.2) on their way from the connection of an upstream
//! to that of the client, while the final response is waited for.
//!
//! [`InterimResponses`] is the channel of one request. The upstream's side pushes what arrives; the
//! client's server sends it before the final response. 100 is not passed on: it lets the request's
//! body go ([`InterimResponses::poll_continue`]), and the server sends a 100 of its own when it
//! reads that body.
//!
//! Invariant: what an upstream sends is bounded in number and bytes, and brings the client neither
//! a field of the upstream's connection nor a length.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use http::{HeaderMap, Request, Response, StatusCode, header};

use super::hop_by_hop::remove_hop_by_hop;

/// The interim responses of one request that are passed on; later ones are dropped.
const FORWARDED_MAX: usize = 8;
/// More responses to one request than this are an attack.
pub(crate) const RECEIVED_MAX: u32 = 16;
/// Around a field in HTTP/1: `: ` and CR LF.
const FIELD_OVERHEAD: usize = 4;

/// The channel of one request. `Send`, because hyper demands it of the callback that pushes; both
/// sides are on one thread, so the lock is always free.
#[derive(Debug, Clone)]
pub(crate) struct InterimResponses(Arc<Mutex<ChannelState>>);

#[derive(Debug)]
struct ChannelState {
    queue: VecDeque<Response<()>>,
    /// How many more are passed on, and with how many bytes of fields in all.
    left: usize,
    bytes_left: usize,
    /// How many the upstream has sent.
    received: u32,
    /// The upstream has sent 100.
    continued: bool,
    /// The task that sends to the client.
    sender: Option<Waker>,
    /// The task that waits to send the request's body.
    body: Option<Waker>,
}

impl ChannelState {
    fn new(bytes_max: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            left: FORWARDED_MAX,
            bytes_left: bytes_max,
            received: 0,
            continued: false,
            sender: None,
            body: None,
        }
    }

    fn send(&mut self, response: Response<()>) {
        self.queue.push_back(response);
        wake(&mut self.sender);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn set_waker(slot: &mut Option<Waker>, cx: &Context<'_>) {
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *slot = Some(cx.waker().clone());
    }
}

impl InterimResponses {
    /// `bytes_max`: the most bytes of header fields of all responses together.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Mutex::new(ChannelState::new(bytes_max))))
    }

    /// A channel for the next request of a connection: this one, unless its last request still
    /// holds it.
    pub(super) fn renew(mut self, bytes_max: usize) -> Self {
        match Arc::get_mut(&mut self.0).map(Mutex::get_mut) {
            Some(Ok(state)) => {
                // The same task sends for the next request.
                let sender = state.sender.take();
                *state = ChannelState { sender, ..ChannelState::new(bytes_max) };
            }
            _ => return Self::new(bytes_max),
        }
        self
    }

    fn lock(&self) -> MutexGuard<'_, ChannelState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has hyper push the interim responses to a request over HTTP/1.
    pub(crate) fn attach<B>(&self, request: &mut Request<B>) {
        let interim = self.clone();
        hyper::ext::on_informational(request, move |response| {
            interim.push(response.status(), response.headers());
        });
    }

    /// An upstream has sent an interim response.
    pub(crate) fn push(&self, status: StatusCode, headers: &HeaderMap) {
        let mut state = self.lock();
        state.received = state.received.saturating_add(1);
        if state.received > RECEIVED_MAX {
            return wake(&mut state.sender);
        }
        match status {
            StatusCode::CONTINUE => {
                state.continued = true;
                wake(&mut state.body);
                return;
            }
            // HTTP/2 has no such status (RFC 9113 section 8.6), and in HTTP/1 it is final.
            StatusCode::SWITCHING_PROTOCOLS => return,
            _ => {}
        }
        let size = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD);
        let (Some(left), Some(bytes_left)) =
            (state.left.checked_sub(1), state.bytes_left.checked_sub(size.sum()))
        else {
            return;
        };
        (state.left, state.bytes_left) = (left, bytes_left);
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = headers.clone();
        remove_hop_by_hop(response.headers_mut());
        // RFC 9110 section 8.6.
        response.headers_mut().remove(header::CONTENT_LENGTH);
        state.send(response);
    }

    /// Whether the upstream has sent any.
    pub(crate) fn has_received(&self) -> bool {
        self.lock().received > 0
    }

    /// Whether the upstream has sent more than [`RECEIVED_MAX`]. The task that sends to the client
    /// is woken then.
    pub(crate) fn is_flooded(&self) -> bool {
        self.lock().received > RECEIVED_MAX
    }

    /// The server reads a body whose client waits for 100.
    pub(super) fn send_continue(&self) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::CONTINUE;
        self.lock().send(response);
    }

    /// Waits for the upstream's 100.
    pub(crate) fn poll_continue(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.continued {
            return Poll::Ready(());
        }
        set_waker(&mut state.body, cx);
        Poll::Pending
    }

    /// The next response for the client. `None`: there is none yet, and the task is woken when
    /// there is.
    pub(super) fn next(&self, cx: &Context<'_>) -> Option<Response<()>> {
        let mut state = self.lock();
        let next = state.queue.pop_front();
        if next.is_none() {
            set_waker(&mut state.sender, cx);
        }
        next
    }
}

/// Waits for the final response, and gives `send` each interim one that comes before it.
///
/// Takes the handler pinned: moved in here, its future would have its place twice.
pub(super) async fn handle_and_send<T>(
    mut handling: Pin<&mut impl Future<Output = T>>,
    interim: Option<&InterimResponses>,
    mut send: impl FnMut(Response<()>),
) -> T {
    poll_fn(|cx| {
        let handled = handling.as_mut().poll(cx);
        // After the handler: what came with the final response is sent before it.
        if let Some(interim) = interim {
            while let Some(response) = interim.next(cx) {
                send(response);
            }
        }
        handled
    })
    .await
}

/// An interim response as it goes over the wire of HTTP/1 (RFC 9112 section 4).
pub(super) fn encode(response: &Response<()>, out: &mut Vec<u8>) {
    let status = response.status();
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in response.headers() {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::pin::pin;
    use std::task::Wake;

    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn queued(interim: &InterimResponses) -> Vec<Response<()>> {
        let cx = Context::from_waker(Waker::noop());
        std::iter::from_fn(|| interim.next(&cx)).collect()
    }

    #[test]
    fn only_end_to_end_fields_are_passed_on() {
        let interim = InterimResponses::new(1000);
        let sent = [
            ("link", "</style.css>; rel=preload"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
        ];
        interim.push(StatusCode::EARLY_HINTS, &headers(&sent));
        let responses = queued(&interim);
        let [response] = &responses[..] else { panic!("{responses:?}") };
        let mut wire = Vec::new();
        encode(response, &mut wire);
        let expected = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n";
        assert_eq!(String::from_utf8(wire).unwrap(), expected);
    }

    #[test]
    fn continue_opens_the_gate_and_101_is_dropped() {
        let interim = InterimResponses::new(1000);
        let cx = Context::from_waker(Waker::noop());
        interim.push(StatusCode::SWITCHING_PROTOCOLS, &HeaderMap::new());
        interim.push(StatusCode::PROCESSING, &HeaderMap::new());
        assert!(interim.poll_continue(&cx).is_pending());
        interim.push(StatusCode::CONTINUE, &headers(&[("link", "</x>")]));
        assert!(interim.poll_continue(&cx).is_ready());
        let statuses: Vec<_> = queued(&interim).iter().map(Response::status).collect();
        assert_eq!(statuses, [StatusCode::PROCESSING]);
    }

    #[test]
    fn number_and_bytes_are_bounded() {
        let interim = InterimResponses::new(1000);
        (0..RECEIVED_MAX).for_each(|_| interim.push(StatusCode::EARLY_HINTS, &headers(&[("a", "b")])));
        assert_eq!(queued(&interim).len(), FORWARDED_MAX);
        assert!(!interim.is_flooded());
        interim.push(StatusCode::CONTINUE, &headers(&[]));
        assert!(interim.is_flooded());
        let interim = InterimResponses::new(100);
        (0..3).for_each(|_| interim.push(StatusCode::EARLY_HINTS, &headers(&[("a", &"b".repeat(40))])));
        assert_eq!(queued(&interim).len(), 2, "two times 45 bytes");
    }

    #[test]
    fn a_channel_that_is_held_is_not_used_again() {
        let interim = InterimResponses::new(1000);
        let held = interim.clone();
        let next = interim.renew(1000);
        held.push(StatusCode::EARLY_HINTS, &HeaderMap::new());
        assert!(queued(&next).is_empty(), "a late response to the last request");
        let kept = Arc::as_ptr(&next.0);
        next.push(StatusCode::EARLY_HINTS, &HeaderMap::new());
        let next = next.renew(1000);
        assert_eq!(Arc::as_ptr(&next.0), kept);
        assert!(queued(&next).is_empty());
    }

    struct Woken(Mutex<usize>);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            *self.0.lock().unwrap() += 1;
        }
    }

    #[test]
    fn responses_that_come_with_the_final_one_precede_it() {
        let interim = InterimResponses::new(1000);
        let woken = Arc::new(Woken(Mutex::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let sent = RefCell::new(Vec::new());
        let mut polls = 0;
        let handler = pin!(poll_fn(|_| {
            polls += 1;
            if polls < 3 { Poll::Pending } else { Poll::Ready("final") }
        }));
        let send = |response: Response<()>| sent.borrow_mut().push(response.status());
        let mut handling = pin!(handle_and_send(handler, Some(&interim), send));
        assert!(handling.as_mut().poll(&mut cx).is_pending());
        interim.push(StatusCode::EARLY_HINTS, &HeaderMap::new());
        assert_eq!(*woken.0.lock().unwrap(), 1, "the handler's task is woken");
        assert!(handling.as_mut().poll(&mut cx).is_pending());
        interim.push(StatusCode::PROCESSING, &HeaderMap::new());
        assert_eq!(handling.as_mut().poll(&mut cx), Poll::Ready("final"));
        assert_eq!(*sent.borrow(), [StatusCode::EARLY_HINTS, StatusCode::PROCESSING]);
    }
}
