//! The watchdog: ends connections whose client is too slow.
//!
//! Every time-out on the client's side is here: the handshake, a request's head, the pause between
//! requests, an answer that is not read. A connection notes what it waits for in a few cells; once
//! a tick the watchdog looks at all of a worker's connections and hangs up those over their time.
//! So the hot path sets no timers, and no read in flight is ever dropped: the hang-up completes it.
//! Its tick also drives the worker's alarms ([`Alarms`]).
//!
//! Precision: a time-out fires up to two ticks late, never early.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::coarse_timer::{CoarseTimers, TICK, to_ticks};
use crate::runtime;
use crate::runtime::ShutdownHandle;

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The TLS handshake, from the accept on.
    Handshake,
    /// The rest of a request's head; over HTTP/2 the preface and the first frame. A later head has
    /// its own clock there ([`Watched::head`]), beside the requests that are being served.
    Head,
    /// The next request.
    Idle,
    /// Nothing of the client's: a request is being served.
    Busy,
    /// A stream's bytes, in either direction: the relay keeps its own time, by the upstream's
    /// time-outs.
    Relay,
}

/// How long each phase may take.
#[derive(Debug, Clone, Copy)]
pub struct ClientTimeouts {
    /// `limits.handshake_timeout`
    pub handshake: Duration,
    /// `client_header_timeout`
    pub head: Duration,
    /// `keepalive_timeout`
    pub idle: Duration,
    /// `send_timeout`: between two writes that the client's side takes.
    pub send: Duration,
}

/// Which limit a connection was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeoutKind {
    /// The handshake took too long.
    Handshake,
    /// A head took too long.
    Head,
    /// No request came.
    Idle,
    /// The client took nothing of what was sent to it.
    Send,
}

/// A worker's watchdog.
pub struct ConnectionTimeouts {
    connections: RefCell<Slab<Rc<TimeoutState>>>,
    timers: Rc<CoarseTimers>,
    /// In ticks: handshake, head, idle, send.
    limits: Cell<[u32; 4]>,
}

/// For the head of a request while the worker drains: a connection that was accepted last gets its
/// first answer, and one that never asks for anything does not hold the process up.
const HEAD_DRAINING: Duration = Duration::from_secs(5);

/// What one connection tells the watchdog.
#[derive(Debug)]
pub(crate) struct TimeoutState {
    hang_up: ShutdownHandle,
    phase: Cell<Phase>,
    phase_since: Cell<u32>,
    write_since: Cell<Option<u32>>,
    /// The head that is under way over HTTP/2, and since when.
    pending_head: Cell<Option<(u32, u32)>>,
    expired: Cell<Option<TimeoutKind>>,
}

/// A connection's place in the watchdog. The pump, which owns the descriptor, ends the watch when
/// it goes; other holders may live longer and then speak to nobody.
#[derive(Clone)]
pub struct TimeoutHandle(Rc<TimeoutRegistration>);

struct TimeoutRegistration {
    timeouts: Rc<ConnectionTimeouts>,
    state: Rc<TimeoutState>,
    key: Cell<Option<usize>>,
}

impl ConnectionTimeouts {
    /// A watchdog that looks as long as the worker runs.
    pub fn start(limits: &ClientTimeouts) -> Rc<Self> {
        let dog = Rc::new(Self::new(limits));
        let looking = Rc::downgrade(&dog);
        let start = Instant::now();
        runtime::spawn(async move {
            loop {
                runtime::sleep(TICK).await;
                let Some(dog) = looking.upgrade() else { return };
                // By the clock: a worker that was busy for a while finds every time-out that has passed
                // meanwhile.
                let passed = start.elapsed().as_millis() / TICK.as_millis();
                let passed = u32::try_from(passed % (1 << 32)).unwrap_or_default();
                dog.tick(passed.wrapping_sub(dog.timers.current_tick()));
            }
        });
        dog
    }

    fn new(limits: &ClientTimeouts) -> Self {
        let limits = [limits.handshake, limits.head, limits.idle, limits.send].map(to_ticks);
        Self { connections: RefCell::default(), timers: Rc::default(), limits: Cell::new(limits) }
    }

    /// Watches a connection, first in this phase.
    pub fn register(self: &Rc<Self>, hang_up: ShutdownHandle, phase: Phase) -> TimeoutHandle {
        let watch = Rc::new(TimeoutState {
            hang_up,
            phase: Cell::new(phase),
            phase_since: Cell::new(self.timers.current_tick()),
            write_since: Cell::new(None),
            pending_head: Cell::new(None),
            expired: Cell::new(None),
        });
        let key = self.connections.borrow_mut().insert(Rc::clone(&watch));
        TimeoutHandle(Rc::new(TimeoutRegistration {
            timeouts: Rc::clone(self),
            state: watch,
            key: Cell::new(Some(key)),
        }))
    }

    /// The worker drains: what has not sent the head of a request may not take long over it any
    /// more.
    pub fn start_drain(&self) {
        let [handshake, head, idle, send] = self.limits.get();
        self.limits.set([handshake, head.min(to_ticks(HEAD_DRAINING)), idle, send]);
    }

    /// The alarms that it rings.
    pub fn timers(&self) -> &Rc<CoarseTimers> {
        &self.timers
    }

    /// `passed`: ticks since the last look.
    fn tick(&self, passed: u32) {
        self.timers.advance(passed);
        let now = self.timers.current_tick();
        for (_, watch) in self.connections.borrow().iter() {
            if watch.expired.get().is_some() {
                continue;
            }
            if let Some(late) = self.expired(watch, now) {
                watch.expired.set(Some(late));
                watch.hang_up.shutdown_both();
            }
        }
    }

    /// Which limit it is over.
    fn expired(&self, watch: &TimeoutState, now: u32) -> Option<TimeoutKind> {
        let [handshake, head, idle, send] = self.limits.get();
        let is_over = |since: u32, limit| now.wrapping_sub(since) > limit;
        let (limit, late) = match watch.phase.get() {
            Phase::Relay => return None,
            Phase::Handshake => (handshake, TimeoutKind::Handshake),
            Phase::Head => (head, TimeoutKind::Head),
            Phase::Idle => (idle, TimeoutKind::Idle),
            Phase::Busy => (u32::MAX, TimeoutKind::Idle),
        };
        if is_over(watch.phase_since.get(), limit) {
            return Some(late);
        }
        if watch.write_since.get().is_some_and(|since| is_over(since, send)) {
            return Some(TimeoutKind::Send);
        }
        watch.pending_head.get().is_some_and(|(_, since)| is_over(since, head)).then_some(TimeoutKind::Head)
    }
}

impl TimeoutHandle {
    /// Enters a phase now.
    pub fn enter_phase(&self, phase: Phase) {
        self.0.state.phase.set(phase);
        self.0.state.phase_since.set(self.0.timeouts.timers.current_tick());
    }

    /// The phase it is in.
    pub fn phase(&self) -> Phase {
        self.0.state.phase.get()
    }

    /// Whether the phase has lasted for at least so long; it may have for up to two ticks more.
    pub fn phase_has_lasted(&self, limit: Duration) -> bool {
        self.0.timeouts.timers.has_elapsed(self.0.state.phase_since.get(), limit)
    }

    /// The number of the head that is under way beside the requests that are being served: its
    /// clock starts when it is first seen.
    pub fn set_pending_head(&self, under_way: Option<u32>) {
        let head = &self.0.state.pending_head;
        if head.get().map(|(number, _)| number) != under_way {
            head.set(under_way.map(|number| (number, self.0.timeouts.timers.current_tick())));
        }
    }

    /// A write is under way from now on, or has been taken in part.
    pub fn write_started(&self) {
        self.0.state.write_since.set(Some(self.0.timeouts.timers.current_tick()));
    }

    /// Whether a write is under way.
    pub fn is_writing(&self) -> bool {
        self.0.state.write_since.get().is_some()
    }

    /// The write is done.
    pub fn write_finished(&self) {
        self.0.state.write_since.set(None);
    }

    /// Hangs up, unless the descriptor has gone already: what is in flight completes, and the
    /// connection ends by its ordinary path.
    pub fn shutdown(&self) {
        if self.0.key.get().is_some() {
            self.0.state.hang_up.shutdown_both();
        }
    }

    /// Whether the watchdog has hung up.
    pub fn is_expired(&self) -> bool {
        self.expired().is_some()
    }

    /// The limit for which the watchdog has hung up.
    pub fn expired(&self) -> Option<TimeoutKind> {
        self.0.state.expired.get()
    }

    /// Ends the watch: the descriptor is about to go, and its number will be somebody else's.
    pub fn unregister(&self) {
        if let Some(key) = self.0.key.take() {
            self.0.timeouts.connections.borrow_mut().try_remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn dog() -> Rc<ConnectionTimeouts> {
        let limits = ClientTimeouts { handshake: TICK * 2, head: TICK * 3, idle: TICK * 4, send: TICK };
        Rc::new(ConnectionTimeouts::new(&limits))
    }

    fn pair() -> (std::net::TcpStream, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn a_phase_over_its_time_ends_the_connection_and_not_before() {
        let dog = dog();
        let (mut client, server) = pair();
        let watched = dog.register(ShutdownHandle::of(&server), Phase::Handshake);
        for _ in 0..3 {
            dog.tick(1);
            assert!(!watched.is_expired());
        }
        dog.tick(1);
        assert!(watched.is_expired());
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "the peer sees the end");
    }

    #[test]
    fn a_busy_connection_lives_unless_its_client_does_not_read() {
        let dog = dog();
        let (_client, server) = pair();
        let watched = dog.register(ShutdownHandle::of(&server), Phase::Busy);
        for _ in 0..100 {
            dog.tick(1);
        }
        assert!(!watched.is_expired());
        watched.write_started();
        watched.write_finished();
        dog.tick(1);
        dog.tick(1);
        dog.tick(1);
        assert!(!watched.is_expired());
        for _part_was_taken in 0..10 {
            watched.write_started();
            dog.tick(2);
        }
        assert!(!watched.is_expired());
        watched.write_started();
        for _ in 0..3 {
            dog.tick(1);
        }
        assert_eq!(watched.expired(), Some(TimeoutKind::Send));
    }

    #[test]
    fn a_head_beside_requests_has_its_own_clock() {
        let dog = dog();
        let (_client, server) = pair();
        let watched = dog.register(ShutdownHandle::of(&server), Phase::Busy);
        for number in 0..10 {
            // Each is another one: none of them takes long.
            watched.set_pending_head(Some(number));
            dog.tick(3);
        }
        watched.set_pending_head(None);
        dog.tick(100);
        assert_eq!(watched.expired(), None);
        watched.set_pending_head(Some(10));
        for _ in 0..4 {
            dog.tick(1);
            watched.set_pending_head(Some(10));
            assert_eq!(watched.expired(), None);
        }
        dog.tick(1);
        assert_eq!(watched.expired(), Some(TimeoutKind::Head));
    }

    #[test]
    fn a_stream_is_left_to_its_relay() {
        let dog = dog();
        let (_client, server) = pair();
        let watched = dog.register(ShutdownHandle::of(&server), Phase::Relay);
        watched.write_started();
        for _ in 0..100 {
            dog.tick(1);
        }
        assert!(!watched.is_expired());
    }

    #[test]
    fn a_closed_connection_is_forgotten() {
        let dog = dog();
        let (_client, server) = pair();
        let watched = dog.register(ShutdownHandle::of(&server), Phase::Idle);
        watched.unregister();
        watched.unregister();
        assert!(dog.connections.borrow().is_empty());
    }
}
