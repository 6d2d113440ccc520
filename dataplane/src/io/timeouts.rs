//! The timeouts of a worker's client connections: handshake, request head, keep-alive, send.
//!
//! A connection notes its phase in a few cells. Once a tick [`ConnectionTimeouts`] checks all
//! connections of the worker, and shuts down those that are over a limit. So the hot path sets no
//! timer, and no read in flight is dropped: the shutdown completes it. The tick also drives the
//! worker's [`CoarseTimers`].
//!
//! A timeout fires up to two ticks late, never early.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::coarse_timer::{CoarseTimers, TICK, to_ticks};
use crate::runtime::{self, ShutdownHandle};

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The TLS handshake, from the accept on.
    Handshake,
    /// The rest of a request's head; over HTTP/2 the preface and the first frame. Later heads of
    /// HTTP/2 are timed beside the requests in flight ([`TimeoutHandle::set_pending_head`]).
    Head,
    /// The next request.
    Idle,
    /// The response to a request, which has timeouts of its own.
    Busy,
    /// The end of a TCP connection, whose relay keeps the timeouts of its upstream.
    Relay,
}

/// The limits of the phases.
#[derive(Debug, Clone, Copy)]
pub struct ClientTimeouts {
    /// `limits.handshake_timeout`
    pub handshake: Duration,
    /// `client_header_timeout`
    pub head: Duration,
    /// `keepalive_timeout`
    pub idle: Duration,
    /// `send_timeout`: between two writes that the client takes.
    pub send: Duration,
}

/// The limit that a connection exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeoutKind {
    Handshake,
    Head,
    Idle,
    Send,
}

/// The timeouts of all client connections of a worker.
pub(crate) struct ConnectionTimeouts {
    connections: RefCell<Slab<Rc<TimeoutState>>>,
    timers: Rc<CoarseTimers>,
    /// Of handshake, head, idle and send. Ticks.
    limits: Cell<[u32; 4]>,
}

/// The limit of a request's head while the worker drains: a connection that was accepted last gets
/// its first response, and a silent one does not delay the exit.
const HEAD_WHILE_DRAINING: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct TimeoutState {
    shutdown: ShutdownHandle,
    phase: Cell<Phase>,
    phase_since: Cell<u32>,
    write_since: Cell<Option<u32>>,
    /// The number of the HTTP/2 head that is incomplete, and since when.
    pending_head: Cell<Option<(u32, u32)>>,
    expired: Cell<Option<TimeoutKind>>,
    /// In [`ConnectionTimeouts::connections`], while it is registered.
    key: Cell<Option<usize>>,
}

/// One connection's entry in [`ConnectionTimeouts`]. Its socket removes the entry when it is
/// dropped; other clones may outlive it.
#[derive(Clone)]
pub struct TimeoutHandle {
    timeouts: Rc<ConnectionTimeouts>,
    state: Rc<TimeoutState>,
}

impl ConnectionTimeouts {
    /// Starts to check the connections, as long as the worker runs.
    pub(crate) fn start(limits: &ClientTimeouts) -> Rc<Self> {
        let timeouts = Rc::new(Self::new(limits));
        let weak = Rc::downgrade(&timeouts);
        let start = Instant::now();
        runtime::spawn(async move {
            loop {
                runtime::sleep(TICK).await;
                let Some(timeouts) = weak.upgrade() else { return };
                // By the clock: after a busy time, several ticks have passed at once.
                let total = start.elapsed().as_millis() / TICK.as_millis();
                let total = u32::try_from(total % (1 << 32)).unwrap_or_default();
                timeouts.tick(total.wrapping_sub(timeouts.timers.current_tick()));
            }
        });
        timeouts
    }

    fn new(limits: &ClientTimeouts) -> Self {
        let limits = Cell::new(ticks(limits));
        Self { connections: RefCell::default(), timers: Rc::default(), limits }
    }

    /// Changes the limits, which then apply to all connections.
    pub(crate) fn set_limits(&self, limits: &ClientTimeouts) {
        self.limits.set(ticks(limits));
    }

    /// Registers a connection, which starts in `phase`.
    pub(crate) fn register(self: &Rc<Self>, shutdown: ShutdownHandle, phase: Phase) -> TimeoutHandle {
        let state = Rc::new(TimeoutState {
            shutdown,
            phase: Cell::new(phase),
            phase_since: Cell::new(self.timers.current_tick()),
            write_since: Cell::new(None),
            pending_head: Cell::new(None),
            expired: Cell::new(None),
            key: Cell::new(None),
        });
        state.key.set(Some(self.connections.borrow_mut().insert(Rc::clone(&state))));
        TimeoutHandle { timeouts: Rc::clone(self), state }
    }

    /// Shortens the limit of a request's head, because the worker drains.
    pub(crate) fn start_drain(&self) {
        let [handshake, head, idle, send] = self.limits.get();
        self.limits.set([handshake, head.min(to_ticks(HEAD_WHILE_DRAINING)), idle, send]);
    }

    /// The timers that the tick drives.
    pub(crate) fn timers(&self) -> &Rc<CoarseTimers> {
        &self.timers
    }

    /// `passed`: ticks since the last call.
    fn tick(&self, passed: u32) {
        self.timers.advance(passed);
        let now = self.timers.current_tick();
        for (_, state) in self.connections.borrow().iter() {
            if state.expired.get().is_some() {
                continue;
            }
            if let Some(kind) = self.expired(state, now) {
                state.expired.set(Some(kind));
                state.shutdown.shutdown_both();
            }
        }
    }

    /// The limit that the connection exceeds.
    fn expired(&self, state: &TimeoutState, now: u32) -> Option<TimeoutKind> {
        let [handshake, head, idle, send] = self.limits.get();
        let exceeds = |since: u32, limit| now.wrapping_sub(since) > limit;
        let (limit, kind) = match state.phase.get() {
            Phase::Relay => return None,
            Phase::Handshake => (handshake, TimeoutKind::Handshake),
            Phase::Head => (head, TimeoutKind::Head),
            Phase::Idle => (idle, TimeoutKind::Idle),
            Phase::Busy => (u32::MAX, TimeoutKind::Idle),
        };
        if exceeds(state.phase_since.get(), limit) {
            return Some(kind);
        }
        if state.write_since.get().is_some_and(|since| exceeds(since, send)) {
            return Some(TimeoutKind::Send);
        }
        state.pending_head.get().is_some_and(|(_, since)| exceeds(since, head)).then_some(TimeoutKind::Head)
    }
}

fn ticks(limits: &ClientTimeouts) -> [u32; 4] {
    [limits.handshake, limits.head, limits.idle, limits.send].map(to_ticks)
}

impl TimeoutHandle {
    /// Starts `phase`.
    pub fn enter_phase(&self, phase: Phase) {
        self.state.phase.set(phase);
        self.state.phase_since.set(self.timeouts.timers.current_tick());
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        self.state.phase.get()
    }

    /// Whether the phase has lasted for at least `duration`; true up to two ticks late.
    pub fn phase_has_lasted(&self, duration: Duration) -> bool {
        self.timeouts.timers.has_elapsed(self.state.phase_since.get(), duration)
    }

    /// Sets the number of the HTTP/2 head that is incomplete, if any. The time of a head starts
    /// with its number.
    pub fn set_pending_head(&self, number: Option<u32>) {
        let pending = &self.state.pending_head;
        if pending.get().map(|(pending, _)| pending) != number {
            pending.set(number.map(|number| (number, self.timeouts.timers.current_tick())));
        }
    }

    /// Starts the send timeout: a write is in flight, or was taken in part.
    pub fn write_started(&self) {
        self.state.write_since.set(Some(self.timeouts.timers.current_tick()));
    }

    /// Whether a write is in flight.
    pub fn is_writing(&self) -> bool {
        self.state.write_since.get().is_some()
    }

    /// Stops the send timeout.
    pub fn write_finished(&self) {
        self.state.write_since.set(None);
    }

    /// Shuts the connection down, if it is open. Its operations in flight complete, and it ends on
    /// its usual path.
    pub fn shutdown(&self) {
        self.state.shutdown.shutdown_both();
    }

    /// Whether a timeout has shut the connection down.
    pub fn is_expired(&self) -> bool {
        self.expired().is_some()
    }

    /// The limit for which the connection was shut down.
    pub fn expired(&self) -> Option<TimeoutKind> {
        self.state.expired.get()
    }

    /// Removes the connection, because its socket closes.
    pub fn unregister(&self) {
        if let Some(key) = self.state.key.take() {
            self.timeouts.connections.borrow_mut().try_remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A worker's timeouts, with one connection.
    struct World {
        timeouts: Rc<ConnectionTimeouts>,
        handle: TimeoutHandle,
        client: TcpStream,
        _server: Rc<TcpStream>,
    }

    impl World {
        fn new(phase: Phase) -> Self {
            let limits = ClientTimeouts { handshake: TICK * 2, head: TICK * 3, idle: TICK * 4, send: TICK };
            let timeouts = Rc::new(ConnectionTimeouts::new(&limits));
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let server = Rc::new(listener.accept().unwrap().0);
            let handle = timeouts.register(ShutdownHandle::of(&server), phase);
            Self { timeouts, handle, client, _server: server }
        }

        fn ticks(&self, count: u32) {
            (0..count).for_each(|_| self.timeouts.tick(1));
        }
    }

    #[test]
    fn a_phase_over_its_limit_ends_the_connection_but_not_earlier() {
        let mut world = World::new(Phase::Handshake);
        for _ in 0..3 {
            world.ticks(1);
            assert!(!world.handle.is_expired());
        }
        world.ticks(1);
        assert!(world.handle.is_expired());
        assert_eq!(world.client.read(&mut [0; 1]).unwrap(), 0, "the client reads the end");
    }

    #[test]
    fn a_busy_connection_expires_only_by_a_write_in_flight() {
        let World { timeouts, handle, .. } = &World::new(Phase::Busy);
        (0..100).for_each(|_| timeouts.tick(1));
        assert!(!handle.is_expired());
        handle.write_started();
        handle.write_finished();
        (0..3).for_each(|_| timeouts.tick(1));
        assert!(!handle.is_expired());
        for _partial_write in 0..10 {
            handle.write_started();
            timeouts.tick(2);
        }
        assert!(!handle.is_expired());
        handle.write_started();
        (0..3).for_each(|_| timeouts.tick(1));
        assert_eq!(handle.expired(), Some(TimeoutKind::Send));
    }

    #[test]
    fn an_http2_head_is_timed_beside_requests_in_flight() {
        let World { timeouts, handle, .. } = &World::new(Phase::Busy);
        for number in 0..10 {
            // Each is another head, and takes less than its limit.
            handle.set_pending_head(Some(number));
            timeouts.tick(3);
        }
        handle.set_pending_head(None);
        timeouts.tick(100);
        assert_eq!(handle.expired(), None);
        handle.set_pending_head(Some(10));
        for _ in 0..4 {
            timeouts.tick(1);
            handle.set_pending_head(Some(10));
            assert_eq!(handle.expired(), None);
        }
        timeouts.tick(1);
        assert_eq!(handle.expired(), Some(TimeoutKind::Head));
    }

    #[test]
    fn a_relayed_connection_does_not_expire() {
        let world = World::new(Phase::Relay);
        world.handle.write_started();
        world.ticks(100);
        assert!(!world.handle.is_expired());
    }

    #[test]
    fn a_closed_connection_is_unregistered() {
        let World { timeouts, handle, .. } = &World::new(Phase::Idle);
        handle.unregister();
        handle.unregister();
        assert!(timeouts.connections.borrow().is_empty());
    }
}
