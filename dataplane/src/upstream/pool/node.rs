//! The connections to one node: how many are open, those of each key, and the requests that wait
//! for one.
//!
//! Invariants: a node has never more than its maximum of slots, and each open connection has one;
//! what becomes free goes to the request that has waited longest; a connection or stream goes to a
//! request of its own key only.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use foldhash::fast::RandomState;
use model::KeepalivePool;
use tokio::sync::oneshot;

use super::idle::Http1Connection;
use super::key::{ConnectionKey, DialError, KeyPool, Removed, SlotQueue, UpstreamProtocol, Waiter};
use crate::upstream::http2::connection::Http2Connection;

/// Keys without connections that a node keeps until the next sweep. Clients may choose the name in
/// a key, so there are not arbitrarily many.
const EMPTY_KEYS_MAX: usize = 64;

/// The connections of a worker to one address, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConnections {
    pub addr: SocketAddr,
    /// The most open connections.
    pub max: u32,
    pub open: u64,
    /// Of the open ones, those without a request.
    pub idle: u64,
    /// Requests that wait for a connection.
    pub waiting: u64,
}

/// The connections of a worker to one address, under one maximum.
pub(crate) struct NodePool {
    pub addr: SocketAddr,
    /// The most open connections.
    pub max: u32,
    /// Requests that wait, at all nodes of the worker.
    queued: Rc<Cell<usize>>,
    state: RefCell<Connections>,
}

#[derive(Default)]
struct Connections {
    /// Slots in use.
    open: u32,
    keys: HashMap<ConnectionKey, KeyPool<Grant>, RandomState>,
    slot_queue: SlotQueue,
    next_ticket: u64,
    /// Whether one may be idle: a search in vain clears it, so that requests that wait with keys of
    /// their own do not search them all again.
    may_have_idle: bool,
}

/// A place for one exchange on a connection of its key.
pub(crate) enum Available {
    /// A whole connection.
    Connection(Http1Connection),
    /// A stream on a connection.
    Stream(StreamSlot),
}

impl From<Http1Connection> for Available {
    fn from(connection: Http1Connection) -> Self {
        Self::Connection(connection)
    }
}

/// What a request gets of its node.
pub(crate) enum Grant {
    Available(Available),
    /// It may open a connection.
    Dial(Dial),
    /// The connection that it waited for could not be opened.
    Failed(DialError),
}

/// One open connection among those that a node may have, until it is dropped.
pub(crate) struct ConnectionSlot(Rc<NodePool>);

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut state = self.0.state.borrow_mut();
        state.open = state.open.saturating_sub(1);
        drop(state);
        self.0.grant_slots();
    }
}

/// One stream among those that its connection may have, until it is dropped.
pub(crate) struct StreamSlot {
    pub connection: Rc<Http2Connection>,
    node: Rc<NodePool>,
    key: ConnectionKey,
    /// The response has ended.
    finished: bool,
}

impl StreamSlot {
    fn new(node: &Rc<NodePool>, key: &ConnectionKey, connection: Rc<Http2Connection>) -> Self {
        connection.begin_stream();
        Self { connection, node: Rc::clone(node), key: key.clone(), finished: false }
    }

    /// Ends the exchange whose response has ended. A dropped one is cancelled.
    pub(crate) fn finish(mut self) {
        self.finished = true;
    }

    /// The address of the node.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.node.addr
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.connection.end_stream(self.finished);
        if self.connection.idle_since().is_some() {
            self.node.state.borrow_mut().may_have_idle = true;
        }
        self.node.streams_changed(&self.key);
    }
}

/// The right to open a connection, for the request that has it and for those that wait for its
/// further streams. Dropping it gives up, and leaves them to another.
pub(crate) struct Dial {
    /// For the connection.
    slot: Option<ConnectionSlot>,
    node: Rc<NodePool>,
    key: ConnectionKey,
    ended: bool,
}

impl Dial {
    fn new(node: &Rc<NodePool>, key: ConnectionKey) -> Self {
        let slot = Some(ConnectionSlot(Rc::clone(node)));
        Self { slot, node: Rc::clone(node), key, ended: false }
    }

    /// The slot for the connection. `None`: it is taken.
    pub(crate) fn take_slot(&mut self) -> Option<ConnectionSlot> {
        self.slot.take()
    }

    /// The connection is an HTTP/1 one, for one request at a time.
    pub(crate) fn opened_http1(mut self) {
        self.end(|pool| pool.streams = 1);
    }

    /// The connection has streams for those who wait, too. Gives the first.
    pub(crate) fn opened_http2(mut self, connection: Rc<Http2Connection>) -> StreamSlot {
        let (node, key) = (Rc::downgrade(&self.node), self.key.clone());
        connection.on_change(Rc::new(move || {
            if let Some(node) = node.upgrade() {
                node.streams_changed(&key);
            }
        }));
        let first = StreamSlot::new(&self.node, &self.key, Rc::clone(&connection));
        self.end(|pool| {
            pool.streams = connection.limit().max(1);
            pool.http2.push(connection);
        });
        first
    }

    /// There is no connection, and none for those who waited for it: each may have another node.
    pub(crate) fn failed(mut self, error: impl Fn() -> DialError) {
        let mut state = self.node.state.borrow_mut();
        let waiters = state.keys.get_mut(&self.key).map(KeyPool::take_dependent).unwrap_or_default();
        drop(state);
        for waiter in waiters {
            let _gave_up = waiter.grant.send(Grant::Failed(error()));
        }
        self.end(|_| {});
    }

    fn end(&mut self, with: impl FnOnce(&mut KeyPool<Grant>)) {
        self.ended = true;
        let mut state = self.node.state.borrow_mut();
        let pool = state.keys.entry(self.key.clone()).or_insert_with(|| KeyPool::new(&self.key));
        pool.dialling = pool.dialling.saturating_sub(1);
        with(pool);
        drop(state);
        self.node.streams_changed(&self.key);
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        if !self.ended {
            self.end(|_| {});
        }
    }
}

impl NodePool {
    pub(super) fn new(addr: SocketAddr, max: u32, queued: Rc<Cell<usize>>) -> Self {
        Self { addr, max, queued, state: RefCell::default() }
    }

    /// A stream or an idle connection of this key, if there is one. `fresh`: a stream only.
    pub(super) fn take(self: &Rc<Self>, key: &ConnectionKey, fresh: bool) -> Option<Available> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let pool = state.keys.get_mut(key)?;
        if let Some(connection) = pool.open_http2() {
            return Some(Available::Stream(StreamSlot::new(self, key, connection)));
        }
        let connection = if fresh { None } else { pool.idle.take() };
        if state.keys.len() > EMPTY_KEYS_MAX {
            state.remove_unused(key);
        }
        connection.map(Available::Connection)
    }

    /// Waits for a connection of this key, or for a slot to open one. `fresh`: for no connection
    /// that has served a request. Dropping the future ends the wait.
    pub(crate) async fn wait(self: &Rc<Self>, key: &ConnectionKey, fresh: bool) -> Grant {
        let Some((receiver, _ticket)) = self.enqueue(key, fresh) else {
            return Grant::Dial(Dial::new(self, key.clone()));
        };
        match receiver.await {
            Ok(grant) => grant,
            // The waiter is dropped with the ticket or by a grant.
            Err(_impossible) => future::pending().await,
        }
    }

    /// Waits for a slot for a connection that serves one client and never enters the pool. Dropping
    /// the future ends the wait.
    pub(crate) async fn slot(self: &Rc<Self>) -> ConnectionSlot {
        let key = ConnectionKey { protocol: UpstreamProtocol::Unpooled, tls: None };
        loop {
            // No connection of this key is ever released, so a grant is a slot.
            if let Grant::Dial(mut dial) = self.wait(&key, true).await
                && let Some(slot) = dial.take_slot()
            {
                return slot;
            }
        }
    }

    /// `None`: a slot is free, and is in use from now on.
    fn enqueue(
        self: &Rc<Self>,
        key: &ConnectionKey,
        fresh: bool,
    ) -> Option<(oneshot::Receiver<Grant>, Ticket)> {
        let mut state = self.state.borrow_mut();
        let number = state.next_ticket;
        state.next_ticket += 1;
        let Connections { open, keys, slot_queue, .. } = &mut *state;
        let pool = keys.entry(key.clone()).or_insert_with(|| KeyPool::new(key));
        let must_dial = pool.is_dial_needed(pool.waiters.len() + 1);
        if must_dial && *open < self.max {
            *open += 1;
            pool.dialling += 1;
            return None;
        }
        let (grant, receiver) = oneshot::channel();
        pool.waiters.insert(number, Waiter { fresh, grant });
        pool.update_places(key, slot_queue);
        self.queued.set(self.queued.get() + 1);
        drop(state);
        if must_dial {
            // An idle connection of another key must not keep this request waiting.
            drop(self.remove_oldest());
        }
        Some((receiver, Ticket { node: Rc::clone(self), key: key.clone(), number }))
    }

    /// Gives free slots to those who have waited longest.
    fn grant_slots(self: &Rc<Self>) {
        loop {
            let mut state = self.state.borrow_mut();
            if state.open >= self.max {
                return;
            }
            let Some((key, waiter)) = state.pop_waiter() else { return };
            state.open += 1;
            if let Some(pool) = state.keys.get_mut(&key) {
                pool.dialling += 1;
            }
            // The borrow ends first: a grant that is not taken is dropped at once.
            drop(state);
            let _gave_up = waiter.grant.send(Grant::Dial(Dial::new(self, key)));
        }
    }

    /// Gives the streams of a key to those who wait for them, and has connections opened for the
    /// others.
    fn streams_changed(self: &Rc<Self>, key: &ConnectionKey) {
        loop {
            let mut state = self.state.borrow_mut();
            let Connections { keys, slot_queue, .. } = &mut *state;
            let Some(pool) = keys.get_mut(key) else { break };
            let retired = pool.remove_retired();
            let next =
                pool.open_http2().and_then(|connection| Some((connection, pool.waiters.pop_first()?.1)));
            let Some((connection, waiter)) = next else {
                pool.update_places(key, slot_queue);
                let closed = state.close_if_another_waits(key);
                drop(state);
                drop((retired, closed));
                break;
            };
            let stream = StreamSlot::new(self, key, connection);
            drop(state);
            drop(retired);
            let _gave_up = waiter.grant.send(Grant::Available(Available::Stream(stream)));
        }
        self.grant_slots();
    }

    /// Passes a connection on that can serve another request, or keeps it within the limits of
    /// `keepalive`. It is closed where a request of another key has waited longest, which gets the
    /// slot.
    pub(super) fn release(&self, key: ConnectionKey, connection: Http1Connection, keepalive: KeepalivePool) {
        let mut state = self.state.borrow_mut();
        let closed = match state.first_in_queue() {
            None => {
                state.may_have_idle = true;
                let pool = state.keys.entry(key).or_insert_with_key(KeyPool::new);
                pool.idle.keep(connection, keepalive.size, keepalive.idle_timeout)
            }
            Some((first, false)) if *first == key => {
                let waiter = state.pop_waiter();
                drop(state);
                // Without a receiver the connection ends, and its slot goes to the next.
                let grant = Grant::Available(connection.into());
                let _gave_up = waiter.map(|(_, waiter)| waiter.grant.send(grant));
                return;
            }
            Some(_) => Some(connection),
        };
        drop(state);
        drop(closed);
    }

    /// Takes the connection out that has been idle for longest; it closes when it is dropped.
    pub(super) fn remove_oldest(&self) -> Option<Removed> {
        let mut state = self.state.borrow_mut();
        let (_, key) = state.oldest_idle()?;
        let removed = state.keys.get_mut(&key)?.remove_oldest();
        state.remove_unused(&key);
        Some(removed)
    }

    /// Since when its oldest idle connection is idle.
    pub(super) fn oldest_idle(&self) -> Option<Instant> {
        Some(self.state.borrow_mut().oldest_idle()?.0)
    }

    /// Whether it has as many connections as it may have.
    pub(crate) fn is_full(&self) -> bool {
        self.state.borrow().open >= self.max
    }

    pub(super) fn idle_count(&self) -> usize {
        self.state.borrow().keys.values().map(KeyPool::idle_count).sum()
    }

    pub(super) fn state(&self) -> NodeConnections {
        let state = self.state.borrow();
        let waiting: usize = state.keys.values().map(|pool| pool.waiters.len()).sum();
        let idle: usize = state.keys.values().map(KeyPool::idle_count).sum();
        let (open, idle, waiting) = (state.open.into(), idle as u64, waiting as u64);
        NodeConnections { addr: self.addr, max: self.max, open, idle, waiting }
    }

    /// HTTP/2 connections with a stream.
    pub(super) fn busy_http2(&self) -> usize {
        self.state.borrow().keys.values().map(KeyPool::busy_http2).sum()
    }

    /// Closes the idle connections that are past their time.
    pub(super) fn sweep(&self) {
        let mut state = self.state.borrow_mut();
        let closed: Vec<_> = state.keys.values_mut().map(KeyPool::sweep).collect();
        state.keys.retain(|_, pool| !pool.is_unused());
        drop(state);
        drop(closed);
    }

    /// Closes all idle connections.
    pub(super) fn clear(&self) {
        let mut state = self.state.borrow_mut();
        let closed: Vec<_> = state.keys.values_mut().map(KeyPool::clear).collect();
        drop(state);
        drop(closed);
    }

    /// Whether nothing would be lost with it.
    pub(super) fn is_unused(&self) -> bool {
        let state = self.state.borrow();
        state.open == 0 && state.keys.is_empty()
    }
}

impl Connections {
    /// The key that is first in the queue, and whether its first request takes no used connection.
    fn first_in_queue(&mut self) -> Option<(&ConnectionKey, bool)> {
        while let Some(key) = self.slot_queue.first() {
            let pool = self.keys.get_mut(key)?;
            if let Some((_, waiter)) = pool.waiters.first_key_value() {
                let fresh = waiter.fresh;
                return self.slot_queue.first().map(|key| (key, fresh));
            }
            // Its requests have streams by now.
            pool.places.pop_front();
            self.slot_queue.pop_first();
        }
        None
    }

    /// Takes the request out that is first in the queue.
    fn pop_waiter(&mut self) -> Option<(ConnectionKey, Waiter<Grant>)> {
        self.first_in_queue()?;
        let key = self.slot_queue.pop_first()?;
        let pool = self.keys.get_mut(&key)?;
        pool.places.pop_front();
        let waiter = pool.waiters.pop_first()?.1;
        Some((key, waiter))
    }

    /// An idle HTTP/2 connection of `key`, while a request of another key waits for a slot.
    fn close_if_another_waits(&mut self, key: &ConnectionKey) -> Option<Rc<Http2Connection>> {
        if self.first_in_queue().is_none_or(|(first, _)| first == key) {
            return None;
        }
        self.keys.get_mut(key)?.remove_idle_http2()
    }

    /// Since when the oldest idle connection is idle, and its key. Linear in the number of keys
    /// where a connection may be idle.
    fn oldest_idle(&mut self) -> Option<(Instant, ConnectionKey)> {
        if !self.may_have_idle {
            return None;
        }
        let idle = self.keys.iter().filter_map(|(key, pool)| Some((pool.oldest_idle()?, key)));
        let oldest = idle.min_by_key(|(since, _)| *since).map(|(since, key)| (since, key.clone()));
        self.may_have_idle = oldest.is_some();
        oldest
    }

    fn remove_unused(&mut self, key: &ConnectionKey) {
        if self.keys.get(key).is_some_and(KeyPool::is_unused) {
            self.keys.remove(key);
        }
    }
}

/// The place of a request in the queue, until it is dropped.
struct Ticket {
    node: Rc<NodePool>,
    key: ConnectionKey,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.node.queued.set(self.node.queued.get().saturating_sub(1));
        let mut state = self.node.state.borrow_mut();
        let Connections { keys, slot_queue, .. } = &mut *state;
        let Some(pool) = keys.get_mut(&self.key) else { return };
        // `None`: it had a grant.
        let Some(waiter) = pool.waiters.remove(&self.number) else { return };
        pool.update_places(&self.key, slot_queue);
        state.remove_unused(&self.key);
        drop(state);
        drop(waiter);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use proptest::prelude::*;

    use super::*;
    use crate::io::flag::Flag;
    use crate::upstream::pool::key::UpstreamProtocol;
    use crate::upstream::pool::{Pool, PoolLease, PooledConnection};

    const KEEPALIVE: KeepalivePool = KeepalivePool {
        size: 8,
        idle_timeout: Duration::from_secs(60),
        requests: 1000,
        max_connections: None,
    };

    fn key(name: &str) -> ConnectionKey {
        ConnectionKey { protocol: UpstreamProtocol::Http1, tls: Some((name.into(), 1)) }
    }

    fn http1(lease: PoolLease) -> PooledConnection {
        match lease {
            PoolLease::Http1(connection) => connection,
            PoolLease::Http2(_) => panic!("a stream"),
        }
    }

    fn poll<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    type Task = Pin<Box<dyn Future<Output = hyper::Result<()>>>>;

    /// An open connection: the node's end, hyper's task and its slot.
    struct Open {
        key: ConnectionKey,
        abort: Rc<Flag>,
        _far_end: tokio::io::DuplexStream,
        task: Task,
        _slot: ConnectionSlot,
    }

    struct Request {
        key: ConnectionKey,
        fresh: bool,
        wait: Pin<Box<dyn Future<Output = Grant>>>,
    }

    /// A node and the programs around it.
    struct Harness {
        pool: Pool,
        node: Rc<NodePool>,
        open: Vec<Open>,
        waiting: Vec<Request>,
        in_use: Vec<PooledConnection>,
    }

    impl Harness {
        fn new(max: u32) -> Self {
            let pool = Pool::default();
            let node = pool.node(([192, 0, 2, 1], 80).into(), max);
            Self { pool, node, open: vec![], waiting: vec![], in_use: vec![] }
        }

        /// A request: served from the pool, by a new connection, or waiting.
        fn request(&mut self, name: &str, fresh: bool) {
            let key = key(name);
            if let Some(lease) = self.pool.checkout(&self.node, &key, KEEPALIVE, fresh) {
                self.in_use.push(http1(lease));
                return;
            }
            let (node, wanted) = (Rc::clone(&self.node), key.clone());
            let wait = Box::pin(async move { node.wait(&wanted, fresh).await });
            self.waiting.push(Request { key, fresh, wait });
            self.run();
        }

        /// Lets tasks of connections end, and serves those who wait.
        fn run(&mut self) {
            loop {
                let granted = self.waiting.iter_mut().enumerate().find_map(|(index, request)| {
                    match poll(&mut request.wait) {
                        Poll::Ready(grant) => Some((index, grant)),
                        Poll::Pending => None,
                    }
                });
                if let Some((index, grant)) = granted {
                    let request = self.waiting.remove(index);
                    self.serve(request, grant);
                    continue;
                }
                let open = self.open.len();
                self.open.retain_mut(|open| {
                    let aborted = open.abort.poll(&Context::from_waker(Waker::noop())).is_ready();
                    !aborted && poll(&mut open.task).is_pending()
                });
                if open == self.open.len() {
                    return;
                }
            }
        }

        fn serve(&mut self, Request { key, fresh, .. }: Request, grant: Grant) {
            let connection = match grant {
                Grant::Dial(mut dial) => {
                    let connection = self.connect(&key, dial.take_slot().unwrap());
                    dial.opened_http1();
                    connection
                }
                Grant::Available(Available::Connection(connection)) => {
                    assert!(!fresh);
                    let open = self.open.iter().find(|open| Rc::ptr_eq(&open.abort, &connection.abort));
                    assert_eq!(open.map(|open| &open.key), Some(&key), "it belongs to this identity");
                    connection
                }
                Grant::Available(Available::Stream(_)) | Grant::Failed(_) => panic!("HTTP/1"),
            };
            let lease = self.pool.check_out(&self.node, key, KEEPALIVE, connection.into());
            self.in_use.push(http1(lease));
        }

        fn connect(&mut self, key: &ConnectionKey, slot: ConnectionSlot) -> Http1Connection {
            let (near, far) = tokio::io::duplex(64);
            let mut handshake = Box::pin(http1::handshake(TokioIo::new(near)));
            let Poll::Ready(Ok((sender, task))) = poll(&mut handshake) else { panic!("nothing to wait for") };
            let mut task: Task = Box::pin(task);
            assert!(poll(&mut task).is_pending());
            let abort = Rc::<Flag>::default();
            let (key, abort_open) = (key.clone(), Rc::clone(&abort));
            self.open.push(Open { key, abort: abort_open, _far_end: far, task, _slot: slot });
            Http1Connection { sender, abort, requests: 0, config: None }
        }

        fn release(&mut self, index: usize) {
            self.in_use.remove(index).release();
            self.run();
        }

        fn keys_in_use(&self) -> Vec<String> {
            let name = |open: &Open| open.key.tls.as_ref().map(|(name, _)| name.to_string());
            self.open.iter().filter_map(name).collect()
        }
    }

    #[test]
    fn a_released_connection_goes_to_the_first_of_its_key() {
        let mut harness = Harness::new(1);
        harness.request("a", false);
        harness.request("a", false);
        harness.request("a", false);
        assert_eq!((harness.open.len(), harness.waiting.len(), harness.pool.queued()), (1, 2, 2));
        harness.release(0);
        assert_eq!((harness.in_use.len(), harness.in_use[0].reused, harness.waiting.len()), (1, true, 1));
        harness.waiting.clear();
        harness.release(0);
        assert_eq!((harness.node.idle_count(), harness.pool.queued()), (1, 0), "the queue is empty");
    }

    #[test]
    fn another_key_gets_the_slot_and_not_the_connection() {
        let mut harness = Harness::new(1);
        harness.request("a", false);
        harness.request("b", false);
        harness.request("a", false);
        harness.release(0);
        assert_eq!(harness.keys_in_use(), ["b"]);
        assert!(!harness.in_use[0].reused, "a connection of its own");
        harness.release(0);
        assert_eq!(harness.keys_in_use(), ["a"]);
    }

    #[test]
    fn an_idle_connection_makes_room_for_another_key() {
        let mut harness = Harness::new(2);
        harness.request("a", false);
        harness.request("a", false);
        harness.release(0);
        harness.request("b", false);
        assert_eq!(harness.keys_in_use(), ["a", "b"]);
        assert_eq!((harness.waiting.len(), harness.node.idle_count()), (0, 0));
    }

    #[test]
    fn a_request_that_needs_a_new_connection_gets_a_slot() {
        let mut harness = Harness::new(1);
        harness.request("a", false);
        let first = Rc::clone(&harness.open[0].abort);
        harness.request("a", true);
        assert_eq!(harness.waiting.len(), 1);
        harness.release(0);
        assert_eq!((harness.waiting.len(), harness.in_use.len()), (0, 1));
        assert!(!Rc::ptr_eq(&first, &harness.open[0].abort) && !harness.in_use[0].reused);
    }

    #[test]
    fn an_aborted_exchange_frees_its_slot() {
        let mut harness = Harness::new(1);
        harness.request("a", false);
        harness.request("a", false);
        drop(harness.in_use.remove(0));
        harness.run();
        assert_eq!((harness.waiting.len(), harness.in_use.len()), (0, 1));
        assert!(!harness.in_use[0].reused);
    }

    #[test]
    fn an_unpooled_connection_waits_for_its_slot() {
        let mut harness = Harness::new(1);
        harness.request("a", false);
        let node = Rc::clone(&harness.node);
        let mut tunnel: Pin<Box<dyn Future<Output = ConnectionSlot>>> =
            Box::pin(async move { node.slot().await });
        assert!(poll(&mut tunnel).is_pending());
        harness.request("a", false);
        assert_eq!(harness.pool.queued(), 2);
        // The one that waits for longest gets the slot, and not the connection.
        harness.release(0);
        let Poll::Ready(slot) = poll(&mut tunnel) else { panic!("a slot is free") };
        assert_eq!((harness.open.len(), harness.waiting.len(), harness.node.idle_count()), (0, 1, 0));
        drop(slot);
        harness.run();
        assert_eq!((harness.in_use.len(), harness.in_use[0].reused), (1, false));
        harness.release(0);
        let node = Rc::clone(&harness.node);
        let mut tunnel = Box::pin(async move { node.slot().await });
        assert!(poll(&mut tunnel).is_pending(), "an idle connection closes for it");
        harness.run();
        assert!(poll(&mut tunnel).is_ready());
    }

    #[test]
    fn requests_that_give_up_leave_the_queue() {
        let mut harness = Harness::new(1);
        harness.request("held", false);
        harness.request("held", false);
        for number in 0..1000 {
            harness.request(&number.to_string(), false);
            harness.waiting.pop();
        }
        let state = harness.node.state.borrow();
        assert_eq!((state.slot_queue.len(), state.keys.len()), (1, 1));
    }

    #[test]
    fn requests_that_wait_do_not_search_all_keys() {
        let mut harness = Harness::new(2);
        harness.request("a", false);
        harness.request("b", false);
        harness.release(0);
        // This one finds an idle connection, the next one none.
        harness.request("c", false);
        for number in 0..1000 {
            harness.request(&number.to_string(), false);
            assert!(!harness.node.state.borrow().may_have_idle, "{number}");
        }
        assert_eq!(harness.waiting.len(), 1000);
    }

    #[test]
    fn keys_that_clients_choose_are_not_kept() {
        let mut harness = Harness::new(1);
        for number in 0..1000 {
            harness.request(&number.to_string(), false);
            harness.release(0);
        }
        let keys = harness.node.state.borrow().keys.len();
        assert!(keys <= EMPTY_KEYS_MAX + 1, "{keys}");
    }

    proptest! {
        #[test]
        fn slots_are_bounded_and_keys_share_no_connection(
            max in 1_u32..4, steps in proptest::collection::vec((0_u8..7, 0_usize..8), 0..60),
        ) {
            let mut harness = Harness::new(max);
            for (step, index) in steps {
                match step {
                    0..=2 => harness.request(["a", "b", "c"][usize::from(step)], index == 0),
                    3 if index < harness.waiting.len() => drop(harness.waiting.remove(index)),
                    4 if index < harness.in_use.len() => drop(harness.in_use.remove(index)),
                    5..=6 if index < harness.in_use.len() => harness.release(index),
                    _ => {}
                }
                harness.run();
                let slots = harness.node.state.borrow().open as usize;
                prop_assert_eq!(slots, harness.open.len());
                prop_assert!(slots <= max as usize);
                prop_assert_eq!(harness.pool.queued(), harness.waiting.len());
                prop_assert_eq!(harness.node.state.borrow().slot_queue.len(), harness.waiting.len());
                prop_assert!(harness.waiting.is_empty() || harness.in_use.len() == max as usize);
                prop_assert!(harness.node.idle_count() == 0 || harness.node.state.borrow().may_have_idle);
            }
            while !harness.in_use.is_empty() {
                harness.release(0);
            }
            prop_assert!(harness.waiting.is_empty());
            harness.node.clear();
            harness.run();
            harness.node.sweep();
            prop_assert!(harness.node.is_unused());
        }
    }
}
